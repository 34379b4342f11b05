"""Stages on blocks: which there are, in which order, what enters them, and that each learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from filled import relative
from made import refused
from torch import nn

from passionsr_lab.calibration.blocks import blocks, captured
from passionsr_lab.calibration.method import Method, Stage
from passionsr_lab.calibration.task import task
from passionsr_lab.methods import METHODS
from passionsr_lab.quantization.filling import LET
from passionsr_lab.quantization.layer import Quantized, mode
from passionsr_lab.quantization.place import quantize
from passionsr_lab.quantization.recipe import W4A4, W6A6

STAGES = tuple(Stage(segment, ("transform", "bounds"), blocks="*") for segment in ("encoder", "unet", "decoder"))
BLOCKWISE = Method("blockwise", "Block by block", "", LET(), STAGES, "quantized")


@pytest.fixture(scope="module")
def q(pipe):
    return quantize(pipe, W6A6)


def test_blocks_hold_every_quantized_layer_once_and_are_chosen_by_pattern(q):
    held = []
    for segment in q.segments():
        found = blocks(segment.modules)
        held += [m for block in found.values() for m in block.modules() if isinstance(m, Quantized)]
        for name, block in found.items():
            assert block is q.get_submodule(name) and not any(other.startswith(f"{name}.") for other in found)
    assert len(held) == len(q.layers) and set(held) == set(q.layers.values())
    assert {type(block).__name__ for block in found.values()} >= {
        "ResnetBlock2D",
        "Attention",
        "Upsample2D",
        "QuantLayer",
    }
    unet = q.segments()[1].modules
    assert {type(b).__name__ for b in blocks(unet).values()} >= {"BasicTransformerBlock", "Downsample2D"}
    assert [*blocks(unet, "unet.conv_*")] == ["unet.conv_in", "unet.conv_out"]
    with refused("No block matches 'vae.*'", "unet.conv_in"):
        blocks(unet, "vae.*")


def test_stages_on_blocks_come_in_the_order_in_which_the_path_runs(begin, q):
    work, order = begin(BLOCKWISE), []
    hooks = [m.register_forward_hook(lambda m, *_, n=n: order.append(n)) for n, m in named_blocks(q).items()]
    with mode(q.pipe, "float"):
        q(torch.rand(3, 8, 8))
    for hook in hooks:
        hook.remove()
    assert [name for _, name in work.stages] == order and len(order) == 37
    assert order.index("unet.mid_block.resnets.0") < order.index("unet.up_blocks.0.resnets.0")


def named_blocks(q):
    return {name: block for segment in q.segments() for name, block in blocks(segment.modules).items()}


def test_what_reaches_a_block_is_captured_and_a_block_that_is_not_reached_is_refused(q):
    segment, x = q.segments()[0], torch.rand(1, 3, 32, 32)
    resnet = blocks(segment.modules)["vae.encoder.down_blocks.0.resnets.0"]
    with mode(q.pipe, "float"), torch.no_grad():
        (((first, *_), _),) = captured(resnet, segment.run, [x], [[0]])
        assert torch.equal(first, q.get_submodule("vae.encoder.conv_in")(x))
        with refused("does not reach Linear"):
            captured(nn.Linear(1, 1), segment.run, [x], [[0]])
    assert not resnet._forward_pre_hooks


def test_every_block_learns_and_is_fed_by_the_quantized_blocks_before_it(begin):
    """And is compared with the float block on what float blocks give."""
    work, name = begin(BLOCKWISE, W4A4, epochs=2, batch=3), "unet.mid_block.resnets.0"
    ends = [r for r in work.run() if r["event"] == "end"]
    assert [(r["module"], r["block"]) for r in ends] == [(stage.segment, block) for stage, block in work.stages]
    ratios = np.array([r["loss"] / r["first"] for r in ends])
    assert (ratios <= 1).all() and (ratios < 1).sum() >= 28 and ratios.mean() < 0.98, "what blocks before err stays"
    segment, stage = work.q.segments()[1], Stage("unet", ("bounds",))
    found, block = task(stage, name, work.data), blocks(segment.modules)[name]
    quantized = captured(block, segment.run, work.data.entering("unet"), work.data.batches)
    for (args, _), (expected, _) in zip(found.inputs, quantized, strict=True):
        assert torch.equal(args[0], expected[0])
    with mode(work.q.pipe, "float"), torch.no_grad():
        inputs, alone = work.data.entering("unet", "float"), [[i] for i in range(len(found.inputs))]
        full, singly = (captured(block, segment.run, inputs, rows) for rows in (work.data.batches, alone))
        targets = [block(*args, **kwargs) for args, kwargs in full]
    assert all(torch.equal(a, b) for a, b in zip(found.targets["output"], targets, strict=True))
    assert all(relative(a[0], b[0]) < 1e-5 for (a, _), (b, _) in zip(full, singly, strict=True))
    assert not torch.equal(full[0][0][0], found.inputs[0][0][0]), "the quantized blocks before it err"
    apart = task(replace(stage, upstream="float"), name, work.data)
    assert torch.equal(apart.inputs[0][0][0], full[0][0][0])


def test_a_stage_on_a_block_moves_that_block_only(begin):
    method = replace(BLOCKWISE, stages=(Stage("unet", ("bounds",), blocks="unet.down_blocks.0.*"),))
    work = begin(method)
    records = list(work.run())
    assert {r["block"] for r in records} == {b for _, b in work.stages} and len(work.stages) == 2
    moved = [n for n, m in work.q.layers.items() if any(p.any() for k, p in m.named_parameters() if k.endswith("trim"))]
    assert moved and all(name.startswith("unet.down_blocks.0.") for name in moved)


def test_blocks_of_pipelines_with_fewer_modules_and_of_unknown_names(begin):
    work = begin(BLOCKWISE, replace(W6A6, modules=("unet",)))
    assert {stage.segment for stage, _ in work.stages} == {"unet"}
    with refused("No block matches 'unet.nowhere'"):
        begin(replace(METHODS["lbq"], stages=(Stage("unet", ("bounds",), blocks="unet.nowhere"),)))
