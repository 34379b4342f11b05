"""SD2.1's text encoder, and the embedding of the empty prompt that PassionSR conditions the UNet on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..util import checkpoint
from ..util.compat import torchvision_importable

ENCODER = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,  # of OpenCLIP's 24: the last but one is what SD2.1 was trained on
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "pad_token_id": 1,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
START, END = 49406, 49407  # tokens; the padding is 0
PREFIX = "cond_stage_model.model."
_NAMES = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.": "final_layer_norm.",
    "transformer.resblocks.": "encoder.layers.",
}
_INSIDE = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn": "self_attn", "c_fc": "fc1", "c_proj": "fc2"}
_UNUSED = ("text_projection", "logit_scale", "attn_mask")


# -- the encoder ------------------------------------------------------------------------------------------------------


def text_encoder(source: str | Path) -> nn.Module:
    """SD2.1's text encoder, float32, from a diffusers folder or from the single file.

    Raises:
        ValueError: it is not there, or lacks a tensor; the message names it.
    """
    source = Path(source)
    return _from_folder(source / "text_encoder") if source.is_dir() else from_open_clip(checkpoint.read(source))


def _from_folder(folder: Path) -> nn.Module:
    torchvision_importable()
    from transformers import CLIPTextModel

    from ..pipeline.prompt import without_progress_bar

    try:
        with without_progress_bar():
            model, report = CLIPTextModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except Exception as error:
        raise ValueError(f"{folder} is not SD2.1's text encoder: {str(error).splitlines()[0]}") from None
    if report["missing_keys"]:
        raise ValueError(f"{folder} has no weights for {sorted(report['missing_keys'])[0]}.")
    return model.eval().requires_grad_(False)


def from_open_clip(state: dict) -> nn.Module:
    """The text encoder of a single-file checkpoint, whose names are OpenCLIP's."""
    torchvision_importable()
    from transformers import CLIPTextConfig, CLIPTextModel

    state = state.get("state_dict", state)
    own = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
    tensors = {}
    for key, value in own.items():
        if key not in _UNUSED:
            tensors |= _renamed(key, value.float())
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**ENCODER))
    wanted = {key: key.removeprefix("text_model.") for key in model.state_dict()}
    missing = [key for key in wanted.values() if key not in tensors]
    if missing:
        raise ValueError(f"The checkpoint's text encoder has no {missing[0]} ({len(missing)} tensors are missing).")
    model.load_state_dict({key: tensors[name] for key, name in wanted.items()}, assign=True)
    for name, buffer in model.named_buffers():  # position_ids, which no checkpoint holds
        model.get_submodule(name.rpartition(".")[0]).position_ids = torch.arange(buffer.shape[-1])[None]
    return model.eval().requires_grad_(False)


def _renamed(key: str, value: Tensor) -> dict[str, Tensor]:
    """An OpenCLIP tensor under transformers' name; the three projections that share a tensor become three."""
    for old, new in _NAMES.items():
        if key.startswith(old):
            key = new + key[len(old) :]
    key = ".".join(_INSIDE.get(part, part) for part in key.split("."))
    for kind in ("weight", "bias"):
        if key.endswith(f".in_proj_{kind}"):
            stem = key.removesuffix(f".in_proj_{kind}")
            return {f"{stem}.{p}_proj.{kind}": part.clone() for p, part in zip("qkv", value.chunk(3))}
    return {key: value}


# -- the empty prompt -------------------------------------------------------------------------------------------------


def empty_embedding(encoder: nn.Module) -> Tensor:
    """The embedding of the empty prompt, (1, 77, D): start, end, and zeros to the end, as SD2.1's tokenizer gives."""
    length = encoder.config.max_position_embeddings
    ids = torch.tensor([[START, END] + [0] * (length - 2)], device=encoder.device)
    with torch.no_grad():
        return encoder(ids).last_hidden_state


def read_embedding(path: str | Path) -> Tensor:
    """The official `empty_context_embedding.pt`, or any file of one tensor (1, T, D): float32.

    Raises:
        ValueError: the file holds something else.
    """
    content = checkpoint.read(path)
    tensors = list(content.values()) if isinstance(content, dict) else [content]
    if [getattr(tensor, "ndim", 0) for tensor in tensors] != [3] or len(tensors[0]) != 1:
        raise ValueError(f"{path} does not hold one tensor (1, tokens, width), an embedding of a prompt.")
    return tensors[0].float().clone()
