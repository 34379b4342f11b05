"""Blocks below a segment, for methods that reconstruct a network piece by piece; their inputs are captured by hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..quantization.layer import QuantLayer
from ..util.names import matches, uncompiled_name

BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock", "Attention", "Downsample2D", "Upsample2D")


class _Reached(Exception):
    """Ends a run of the parent once the block has been reached."""


def blocks(modules: dict[str, nn.Module], pattern: str = "*") -> dict[str, nn.Module]:
    """The blocks of a segment that match a pattern, by name, in definition order: ResNet and transformer blocks, the
    VAE's attention, down- and up-sampling; every quantized layer outside them is a block of its own.

    Raises:
        ValueError: the pattern matches none.
    """
    found: dict[str, nn.Module] = {}
    for prefix, module in modules.items():
        for path, child in module.named_modules(prefix=prefix):
            name = uncompiled_name(path)
            inside = any(name.startswith(f"{outer}.") for outer in found)
            if not inside and (type(child).__name__ in BLOCKS or isinstance(child, QuantLayer)):
                found[name] = child
    chosen = {name: block for name, block in found.items() if matches(name, [pattern])}
    if not chosen:
        raise ValueError(f"No block matches {pattern!r}; there are {', '.join(list(found)[:4])} and others.")
    return chosen


@torch.no_grad()
def in_order(found: dict[str, nn.Module], run: Callable[[Tensor], object], x: Tensor) -> list[str]:
    """The names of the blocks in the order in which a run of their parent on x reaches them.

    diffusers defines a UNet's middle after the blocks that follow it, and attentions before their ResNet blocks.
    """
    reached: list[str] = []
    hooks = [m.register_forward_pre_hook(lambda *_, n=name: reached.append(n)) for name, m in found.items()]
    try:
        run(x)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(reached))


@torch.no_grad()
def captured(
    block: nn.Module, run: Callable[[Tensor], object], inputs: Sequence[Tensor], rows: Sequence[Sequence[int]]
) -> list[tuple[tuple, dict]]:
    """(arguments, keywords) that reach `block` when `run` runs on the inputs, some at a time as `rows` says; one of
    batch 1 for each."""
    found: list = [None] * len(inputs)

    def catch(module, args, kwargs):
        for i, call in zip(chunk, parted((args, kwargs), len(chunk))):
            found[i] = call
        raise _Reached

    handle = block.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for chunk in rows:
            try:
                run(torch.cat([inputs[i] for i in chunk]))
            except _Reached:
                continue
            raise ValueError(f"A run of its parent does not reach {type(block).__name__}.")
    finally:
        handle.remove()
    return found


def batched(calls: Sequence[tuple[tuple, dict]]) -> tuple[tuple, dict]:
    """Several calls of batch 1 as one: tensors are joined along the batch, everything else is the first call's."""
    first_args, first_kwargs = calls[0]
    args = tuple(_joined([call[0][i] for call in calls]) for i in range(len(first_args)))
    return args, {key: _joined([call[1][key] for call in calls]) for key in first_kwargs}


def parted(call: tuple[tuple, dict], count: int) -> list[tuple[tuple, dict]]:
    """One call of this batch as so many of batch 1: `batched` gives it back."""
    args, kwargs = call
    each = zip(*(_split(value, count) for value in (*args, *kwargs.values())))
    return [(values[: len(args)], dict(zip(kwargs, values[len(args) :]))) for values in each]


def _joined(values: list):
    return torch.cat(values) if isinstance(values[0], Tensor) and values[0].ndim else values[0]


def _split(value, count: int) -> Sequence:
    if not isinstance(value, Tensor) or not value.ndim or len(value) == 1 != count:
        return [value] * count
    if len(value) != count:
        raise ValueError(f"Of a batch of {count} a block gets a tensor of {len(value)} rows, which cannot be parted.")
    return value.split(1)
