"""Calibrating with little memory: the same numbers, nothing of an image's size kept, the pipeline as it was."""

import pytest
import torch
from filled import relative

from passionsr_lab.calibration.loop import Calibration
from passionsr_lab.calibration.method import Loss, Method, Stage
from passionsr_lab.calibration.state import state
from passionsr_lab.methods import METHODS
from passionsr_lab.quantization.filling import LET
from passionsr_lab.quantization.place import quantize
from passionsr_lab.util.memory import Recomputed, checkpointing

# A loss behind a decoder in float, whose blocks are recomputed when nothing says float any more; blocks; and all.
AROUND = Method("around", "Around", "", LET(), (
    Stage("unet", ("transform",), losses=(Loss(), Loss(at="image")), downstream="float"),
    Stage("decoder", ("bounds",), blocks="vae.decoder.up_blocks.1.*"),
    Stage("all", ("transform", "bounds")),
), "quantized")  # fmt: skip


def test_a_lean_calibration_gives_the_same_numbers_and_leaves_the_pipeline_as_it_was(make_pipe, pairs):
    pipe, found = make_pipe(cross=True), {}
    for lean in (False, True):
        work = Calibration(quantize(pipe, "W4A4"), pairs[:2], AROUND, epochs=1, batch=2, lean=lean)
        found[lean] = [r["loss"] for r in work.run()], state(work.q)
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-4)
    for name, tensor in found[False][1].items():
        torch.testing.assert_close(found[True][1][name], tensor, rtol=1e-4, atol=1e-5)
    assert isinstance(work.data.inputs, Recomputed) and isinstance(work.data.full["decoder"], Recomputed)
    assert all(isinstance(work.data.full[name], list) for name in ("encoder", "unet")) and work.data.resident == "all"
    assert not work.q.unet.is_gradient_checkpointing and not work.q.vae.is_gradient_checkpointing
    assert {layer.mode for layer in work.q.layers.values()} == {"quantized"}


def test_a_block_is_at_work_with_its_segment_on_the_device(pipe, pairs, monkeypatch):
    seen, q = [], quantize(pipe, "W4A4")
    work = Calibration(q, pairs[:1], AROUND, epochs=1, lean=True)
    block = q.get_submodule("vae.decoder.up_blocks.1.resnets.0")
    block.register_forward_pre_hook(lambda *_: seen.append((work.data.resident, torch.is_grad_enabled())))
    list(work.run())
    assert ("decoder", True) in seen and {place for place, _ in seen} <= {"decoder", "all"}


def kept_for_backward(pipe, x):
    """Numbers that a decoder's graph holds on to, and the gradient."""
    sizes, x = [], x.clone().requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        y = pipe.decode(x)
    y.square().sum().backward()
    return sum(sizes), x.grad


def test_checkpointing_keeps_less_gives_the_same_gradient_and_ends_with_its_block(pipe):
    z = torch.randn(1, 4, 16, 16)
    before, gradient = kept_for_backward(pipe, z)
    with checkpointing(pipe.unet, pipe.vae):
        less, same = kept_for_backward(pipe, z)
    assert less < before / 2 and relative(same, gradient) < 1e-4 and kept_for_backward(pipe, z)[0] == before


def test_what_is_recomputed_can_be_gone_through_again():
    made = []
    again = Recomputed(lambda i: made.append(i) or torch.tensor(i), 3)
    assert [int(x) for x in again] == [int(x) for x in again] == [0, 1, 2] and len(made) == 6
    with pytest.raises(IndexError):
        again[3]


def test_a_probe_trains_all_that_a_method_has(pipe, pairs):
    q = quantize(pipe, "W4A4")
    records = list(Calibration(q, pairs[:1], METHODS["passionsr"], lean=True).probe())
    assert [(r["module"], r["stage"]) for r in records] == [
        (m, "transform+bounds") for m in ("encoder", "unet", "decoder")
    ]
    moved = {name.partition(".")[0] for name, t in state(q).items() if name.endswith("trim") and t.any()}
    assert moved == {"unet", "vae"} and torch.isfinite(q(torch.rand(3, 8, 8))).all()
