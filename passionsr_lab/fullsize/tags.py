"""OSEDiff's own prompt, made of tags: the branch that PassionSR cuts away.

OSEDiff has the picture tagged by DAPE and embeds the tags.  DAPE is not on the package registries, so the tags come
from you: one string, a table, or any function of the picture.

To tag with OSEDiff's own code two files are needed.  `ram_swin_large_14m.pth` is RAM (Swin-L at 384 pixels): a dict
whose "model" is the state.  `DAPE.pth` is the LoRA that OSEDiff's authors trained on it: a flat state of loralib names,
rank 8, in the queries and values of the Swin layers and the queries and keys of the cross-attention; it is loaded on
top and replaces nothing.  They read the bicubic x4 picture resized to 384x384, with ImageNet's mean and deviation, and
give those of 4,585 tags whose probability is above the tag's own threshold (0.68 where it has none), joined by ", ".
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor, nn

from ..imaging.pictures import read_image, to_tensor
from ..util.compat import clip_importable


def prompt_text(tags: str, user: str = "") -> str:
    """The prompt that OSEDiff's test script makes: the tags, the user's words, each followed by a comma.

    Example:
        >>> prompt_text("grass, sky")
        'grass, sky, ,'
    """
    return f"{tags}, {user},"


def tagger(tags: str | Path | Callable[[Tensor], str]) -> Callable[[Tensor], str]:
    """A function LR picture (3, h, w) in [0, 1] -> its tags.

    Args:
        tags: the path of a .csv (see `read_tags`), a string for every picture, or such a function itself.
    """
    if callable(tags):
        return tags
    return read_tags(tags) if str(tags).endswith(".csv") else lambda picture: str(tags)


def read_tags(path: str | Path) -> Callable[[Tensor], str]:
    """Tags out of a CSV beside the pictures, with the columns `image` (path from the CSV's folder) and `tags`.

    A picture is found by its pixels, so that it may come from anywhere as long as it is the same picture.

    Raises:
        ValueError: columns or pictures are missing, a row has other columns than the head, or one picture has two
            rows; the returned function raises it for a picture without a row.
    """
    path, known = Path(path), {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            for row in rows:
                if None in row or None in row.values():
                    raise ValueError(f"{path}, line {rows.line_num}: put tags that have commas into double quotes.")
                key = _digest(to_tensor(read_image(path.parent / row["image"])))
                if known.setdefault(key, row["tags"]) != row["tags"]:
                    raise ValueError(f"{path}, line {rows.line_num}: {row['image']} has had other tags before.")
    except KeyError as error:
        raise ValueError(f"{path} has no column {error}; its columns are image and tags.") from None
    except OSError as error:
        raise ValueError(f"{path} or a picture in it cannot be read: {error}") from None

    def tags(picture: Tensor) -> str:
        if (key := _digest(picture)) not in known:
            raise ValueError(f"{path} has no row for this picture ({picture.shape[2]}x{picture.shape[1]} pixels).")
        return known[key]

    return tags


def _digest(picture: Tensor) -> str:
    pixels = (picture.detach().cpu() * 255).round().byte().contiguous()
    return hashlib.sha256(f"{tuple(pixels.shape)}".encode() + pixels.numpy().tobytes()).hexdigest()


class TagBranch(nn.Module):
    """LR picture -> tags -> OSEDiff's prompt -> embedding: the branch that PassionSR cuts away.

    Args:
        encoder: SD2.1's text encoder.
        tags: a function of a picture (3, h, w) in [0, 1] that gives a string.
        user: the user's words, which OSEDiff appends.
    """

    def __init__(self, encoder: nn.Module, tags: Callable[[Tensor], str], user: str = ""):
        super().__init__()
        self.text_encoder, self.tags, self.user = encoder, tags, user
        self.eval().requires_grad_(False)

    def forward(self, lr: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] -> (B, 77, D)."""
        return self.embed(self.describe(lr))

    def describe(self, lr: Tensor) -> list[str]:
        """The prompt for each picture."""
        return [prompt_text(self.tags(picture), self.user) for picture in lr]

    def embed(self, prompts: list[str]) -> Tensor:
        """Prompts -> last hidden state of the text encoder, (B, 77, D)."""
        ids = tokenize(prompts).to(self.text_encoder.device)
        with torch.no_grad():
            return self.text_encoder(ids).last_hidden_state

    def save(self, folder: Path) -> None:
        """Refuses: where tags come from cannot be saved."""
        raise ValueError("A prompt made of tags is not saved; save pipe.prune(), and give the tags when you load it.")


def tokenize(prompts: list[str]) -> Tensor:
    """CLIP's tokens, (B, 77): start, text, end, zeros; a text that is too long is cut."""
    if not clip_importable():
        raise ValueError("Tokenizing a prompt needs CLIP's vocabulary: pip install openai-clip")
    import clip

    return clip.tokenize(prompts, truncate=True).long()
