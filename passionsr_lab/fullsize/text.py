"""SD2.1's text encoder, and the embedding of the empty prompt that PassionSR conditions the UNet on."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping

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
    "layer_norm_eps": 1e-5,
}
START, END = 49406, 49407  # tokens; the padding is 0
PREFIX = "cond_stage_model.model."  # of OpenCLIP's names in SD2.1's single file
_NAMES = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.": "final_layer_norm.",
    "transformer.resblocks.": "encoder.layers.",
}
_INSIDE = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn": "self_attn", "c_fc": "fc1", "c_proj": "fc2"}
_UNUSED = ("text_projection", "logit_scale", "attn_mask")


def text_encoder(tensors: Mapping[str, Tensor], what: str = "The text encoder") -> nn.Module:
    """SD2.1's text encoder, float32, from tensors under transformers' names, with or without "text_model." before them.

    Raises:
        ValueError: a tensor does not fit (see `checkpoint.fill`); the message begins with `what`.
    """
    torchvision_importable()
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**ENCODER, pad_token_id=1, bos_token_id=START, eos_token_id=END))
    prefix = next(iter(model.state_dict())).partition("embeddings.")[0]
    named = {prefix + name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    positions = f"{prefix}embeddings.position_ids"  # 0, 1, 2...: some files hold them, some do not
    checkpoint.fill(model, {name: tensor for name, tensor in named.items() if name != positions}, what)
    model.get_submodule(f"{prefix}embeddings").position_ids = torch.arange(ENCODER["max_position_embeddings"])[None]
    return model


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text encoder in a single file's state, OpenCLIP's but for the last block, under transformers' names."""
    own = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    renamed = [item for key, value in own.items() if key not in _UNUSED for item in _renamed(key, value)]
    last = f"encoder.layers.{ENCODER['num_hidden_layers']}."
    return {name: value for name, value in renamed if not name.startswith(last)}


def _renamed(key: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """An OpenCLIP tensor under transformers' name; the three projections that share a tensor become three."""
    for old, new in _NAMES.items():
        if key.startswith(old):
            key = new + key.removeprefix(old)
    key = ".".join(_INSIDE.get(word, word) for word in key.split("."))
    stem, joined, kind = key.partition(".in_proj_")
    if joined:
        return [(f"{stem}.{side}_proj.{kind}", third) for side, third in zip("qkv", value.chunk(3))]
    return [(key, value)]


def empty_embedding(encoder: nn.Module) -> Tensor:
    """The embedding of the empty prompt, (1, 77, D): start, end, and zeros to the end, as SD2.1's tokenizer gives."""
    ids = torch.tensor([[START, END] + [0] * (ENCODER["max_position_embeddings"] - 2)], device=encoder.device)
    with torch.no_grad():
        return encoder(ids).last_hidden_state


def read_embedding(path: str | Path) -> Tensor:
    """The official `empty_context_embedding.pt`, or any file of one tensor (1, T, D): float32.

    Raises:
        ValueError: the file holds something else.
    """
    content = checkpoint.read_checkpoint(path)
    tensors = list(content.values()) if isinstance(content, dict) else [content]
    if [getattr(tensor, "ndim", 0) for tensor in tensors] != [3] or len(tensors[0]) != 1:
        raise ValueError(f"{path} does not hold one tensor (1, tokens, width), an embedding of a prompt.")
    if not tensors[0].is_floating_point() or not tensors[0].isfinite().all():
        raise ValueError(f"{path} has values that are not finite numbers; the file is damaged.")
    return tensors[0].float().clone()
