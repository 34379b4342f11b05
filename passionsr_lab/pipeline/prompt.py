"""The branch that PassionSR cuts: an image tagger (in DAPE's place) and a CLIP text encoder.

The tagger looks at the LR image and names what a ruler would measure: light, colour, texture and direction of the HR
image, and how much of its detail the LR image has.  The tags become a prompt, the prompt an embedding (B, T, D) that
conditions the UNet.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..util.compat import torchvision_importable
from ..util.files import read_json, write_json, write_tensors
from .configs import refuse_non_finite, refuse_numbers
from .reading import first_sentence, refuse_unmatched, require_undamaged, variant, weight_files

TAGS = (
    *("dark", "bright", "flat", "contrasty", "grey", "vivid"),
    *("red", "yellow", "green", "cyan", "blue", "magenta"),
    *("smooth", "textured", "busy", "horizontal", "vertical"),
    *("blurred", "soft", "crisp", "sharpened"),
)
LENGTH = 16  # tokens in a prompt; CLIP has 77
_tokenizing = threading.Lock()  # a tokenizer keeps its padding between calls


def measure_tags(image: Tensor, lr: Tensor) -> Tensor:
    """(B, 3, H, W) and its LR image (B, 3, h, w), both in [0, 1] -> (B, len(TAGS)) of 0 and 1, by measuring them: the
    tagger's training target."""
    grey = image.mean(1)
    light, contrast = grey.mean((1, 2)), grey.std((1, 2))
    mean = image.mean((2, 3))
    chroma = (image.amax(1) - image.amin(1)).mean((1, 2))
    axes = torch.tensor(
        [[1, -0.5, -0.5], [0.5, 0.5, -1], [-0.5, 1, -0.5], [-1, 0.5, 0.5], [-0.5, -0.5, 1], [0.5, -1, 0.5]]
    )
    hue = mean @ axes.to(mean).T > 0.05
    dx, dy = grey.diff(dim=2).abs().mean((1, 2)), grey.diff(dim=1).abs().mean((1, 2))
    edges = (dx + dy) / 2
    rest = [edges < 0.015, (edges >= 0.03) & (edges < 0.06), edges >= 0.06, dy > 1.3 * dx, dx > 1.3 * dy]
    detail = _detail(lr, F.adaptive_avg_pool2d(image, lr.shape[-2:]))
    kept = [detail < 0.5, (detail >= 0.5) & (detail < 0.63), (detail >= 0.63) & (detail < 0.77), detail >= 0.77]
    first = [light < 0.3, light > 0.6, contrast < 0.1, contrast > 0.25, chroma < 0.06, chroma > 0.25]
    return torch.cat([torch.stack(first, 1), hue, torch.stack(rest + kept, 1)], 1).float()


def _detail(lr: Tensor, reference: Tensor) -> Tensor:
    """(B,) how large the LR image's differences between neighbouring pixels are, by regression on the reference's."""
    a, b = (torch.cat([x.diff(dim=d).flatten(1) for d in (1, 2)], 1) for x in (lr.mean(1), reference.mean(1)))
    return (a * b).sum(1) / (b * b).sum(1).clamp(min=1e-12)


class Tagger(nn.Sequential):
    """A four-layer convolutional network: (B, 3, h, w) in [0, 1] -> one logit per tag, (B, len(TAGS)).

    It looks at the pixels as they are, for softness is lost in a smaller picture."""

    def __init__(self, width: int = 24):
        super().__init__(
            *(nn.Conv2d(3, width, 3, 2, 1), nn.SiLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.SiLU()),
            *(nn.Conv2d(2 * width, 2 * width, 3, 2, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(2 * width, len(TAGS)),
        )

    def forward(self, lr: Tensor) -> Tensor:
        return super().forward((lr * 2 - 1).to(self[0].weight.dtype))


class PromptBranch(nn.Module):
    """LR image -> tags -> prompt -> embedding."""

    def __init__(self, tagger: Tagger, tokenizer, text_encoder):
        super().__init__()
        self.tagger, self.tokenizer, self.text_encoder = tagger, tokenizer, text_encoder
        self.eval().requires_grad_(False)

    def forward(self, lr: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] -> (B, T, D)."""
        return self.embed(self.describe(lr))

    def describe(self, lr: Tensor) -> list[str]:
        """The prompt for each image: the tags whose probability is above one half."""
        return [words(row) for row in self.tagger(lr) > 0]

    def embed(self, prompts: list[str]) -> Tensor:
        """Prompts -> last hidden state of the text encoder, (B, T, D)."""
        with _tokenizing:
            ids = self.tokenizer(prompts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        return self.text_encoder(ids.input_ids.to(self.text_encoder.device)).last_hidden_state

    def save(self, folder: Path) -> None:
        """Writes `tagger/`, `tokenizer/` and `text_encoder/`."""
        write_tensors(folder / "tagger" / "model.safetensors", self.tagger.state_dict())
        write_json(folder / "tagger" / "config.json", {"width": self.tagger[0].out_channels, "tags": list(TAGS)})
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.text_encoder.save_pretrained(folder / "text_encoder")
        weights = folder / "text_encoder" / "model.safetensors"
        write_tensors(weights, load_file(weights))  # with a digest

    @classmethod
    def load(cls, folder: Path) -> PromptBranch:
        """Reads what `save` wrote; `ValueError` names the part that is missing, damaged or does not fit the others."""
        torchvision_importable()
        from transformers import PreTrainedTokenizerFast

        try:
            tagger = _load_tagger(folder / "tagger")
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
            text_encoder = _load_text_encoder(folder / "text_encoder")
            if max(tokenizer.get_vocab().values()) >= text_encoder.config.vocab_size:
                raise ValueError(f"{folder / 'tokenizer'} has more words than the text encoder")
        except Exception as error:  # every library on this path raises its own kind, some in many lines
            raise ValueError(f"{folder} has no complete prompt branch: {first_sentence(error)}.") from error
        return cls(tagger, tokenizer, text_encoder)


def _load_tagger(folder: Path) -> Tagger:
    config = read_json(folder / "config.json")
    if config.keys() != {"width", "tags"} or config["tags"] != list(TAGS):
        raise ValueError(f"{folder} is a tagger of other tags than this library's.")
    refuse_numbers({"width": config["width"]}, folder)
    tagger = Tagger(config["width"])
    require_undamaged(folder / "model.safetensors")
    tagger.load_state_dict(load_file(folder / "model.safetensors"))
    refuse_non_finite(tagger, folder)
    return tagger.float()


def _load_text_encoder(folder: Path) -> nn.Module:
    from transformers import CLIPTextModel

    refuse_numbers(read_json(folder / "config.json"), folder)
    for file in weight_files(folder, "model"):
        require_undamaged(file)
    options = {"dtype": torch.float32, "variant": variant(folder, "model"), "output_loading_info": True}
    with without_progress_bar():
        encoder, report = CLIPTextModel.from_pretrained(folder, **options)
    refuse_unmatched(report, folder)
    refuse_non_finite(encoder, folder)
    return encoder


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Within the block transformers shows no bar; afterwards as before."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def words(row: Tensor) -> str:
    """A row of 0 and 1 per tag as a prompt: "dark, blue, smooth"."""
    return ", ".join(tag for tag, on in zip(TAGS, row.tolist()) if on)


def new_branch(width: int = 64) -> PromptBranch:
    """An untrained branch whose embeddings have `width` channels."""
    torchvision_importable()
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(("<pad>", "<start>", "<end>", "<unknown>", ",", *TAGS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unknown>"
    )
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return PromptBranch(Tagger(), fast, CLIPTextModel(config))
