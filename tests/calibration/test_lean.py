"""Calibrating with little memory: the same numbers; and the full-size benchmark, on a small architecture."""

import json

import pytest
import torch
from passionsr_lab.quantization.surgery import quantize, state

from passionsr_lab.analysis.cost import count
from passionsr_lab.bench import fullsize as bench
from passionsr_lab.bench.fullsize import EPOCHS, PAIRS, STAGES, FullSize, extrapolation, fullsize, plan, step_bytes
from passionsr_lab.calibration.loop import Calibration
from passionsr_lab.fullsize.sd21 import sd21
from passionsr_lab.util.memory import Remade, checkpointing


def calibrated(pipe, pairs, method, **options):
    quantized = quantize(pipe, "W4A4")
    work = Calibration(quantized, pairs, method, epochs=1, batch=2, **options)
    return [record["loss"] for record in work.run()], state(quantized), work


@pytest.mark.parametrize("method", ["passionsr", "lbq+let"])
def test_a_lean_calibration_gives_the_same_numbers(make_pipe, pairs, method):
    pipe = make_pipe(cross=True)
    losses, tensors, _ = calibrated(pipe, pairs[:2], method)
    lean_losses, lean_tensors, _ = calibrated(pipe, pairs[:2], method, lean=True)
    assert lean_losses == pytest.approx(losses, rel=1e-4)
    for name, tensor in tensors.items():
        torch.testing.assert_close(lean_tensors[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_lean_calibration_keeps_no_image_and_leaves_the_pipeline_as_it_was(pipe, pairs):
    _, _, work = calibrated(pipe, pairs[:2], "passionsr", lean=True)
    assert isinstance(work.inputs, Remade) and isinstance(work.full["decoder"], Remade)
    assert all(isinstance(work.full[name], list) for name in ("encoder", "unet"))
    assert not work.pipe.unet.is_gradient_checkpointing and not work.pipe.vae.is_gradient_checkpointing
    assert not any(m.mode == "float" for m in work.pipe.modules() if hasattr(m, "mode"))


def kept_for_backward(pipe, x):
    """Numbers that a decoder's graph holds on to."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        pipe.decode(x.requires_grad_(True))
    return sum(sizes)


def test_checkpointing_keeps_less_and_ends_with_its_block(pipe):
    z = torch.randn(1, 4, 16, 16)
    before = kept_for_backward(pipe, z)
    with checkpointing(pipe.unet, pipe.vae):
        assert kept_for_backward(pipe, z) < before / 2
    assert kept_for_backward(pipe, z) == before


def test_what_is_remade_can_be_gone_through_again():
    made = []
    remade = Remade(lambda i: made.append(i) or torch.tensor(i), 3)
    assert [int(x) for x in remade] == [int(x) for x in remade] == [0, 1, 2] and len(made) == 6
    with pytest.raises(IndexError):
        remade[3]


# -- the benchmark ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(make_pipe):
    """A function device -> small pipeline, in place of SD2.1's."""
    return lambda device: make_pipe(cross=True).to(device)


def test_the_benchmark_steps_every_module_once_and_restores_an_image(small):
    records = list(fullsize(FullSize(size=64, crop=32), small))
    names = ["plan", "build", "quantize", *["calibrate"] * 3, "restore", "extrapolation"]
    assert [r["step"] for r in records] == names
    steps = records[3:6]
    assert [r["module"] for r in steps] == ["encoder", "unet", "decoder"]
    assert all(r["loss"] > 0 and r["seconds"] > 0 and r["peak_bytes"] > 0 for r in steps)
    assert records[-2]["shape"] == [3, 64, 64] and records[-2]["finite"]
    assert records[-1]["hours"] == pytest.approx(PAIRS * EPOCHS * STAGES * sum(r["seconds"] for r in steps) / 3600)


def test_a_probe_trains_all_that_its_module_has(pipe, pairs):
    quantized = quantize(pipe, "W4A4")
    before = state(quantized)
    list(Calibration(quantized, pairs[:1], lean=True).probe())
    after = state(quantized)
    moved = {name.partition(".")[0] for name in before if "trim" in name and not torch.equal(before[name], after[name])}
    assert moved == {"unet", "vae"}
    assert torch.isfinite(quantized(torch.rand(3, 8, 8))).all()


def test_the_estimate_grows_with_the_crop_and_holds_the_weights(small):
    little, much = (plan(FullSize(size=64, crop=c), small) for c in (32, 64))
    assert little["weights_bytes"] == much["weights_bytes"]
    for module, taken in much["calibrate_bytes"].items():
        assert taken > little["calibrate_bytes"][module] > little["weights_bytes"]
    lean, whole = much["kept_bytes_of_500_pairs"].values()
    assert lean < whole / 3


def test_the_estimate_of_the_full_size_is_below_its_limit():
    pipe = sd21()
    frame = count(pipe, 512)
    assert sum(p.numel() for p in pipe.vae.decoder.up_blocks[3].parameters()) > 0
    needed = [4 * int(frame.parameters.sum()) + step_bytes(frame, pipe, m) for m in ("encoder", "unet", "decoder")]
    assert all(4e9 < n < 20 * 2**30 for n in needed) and max(needed) == needed[2]


def test_the_extrapolation_is_marked_with_what_it_was_measured_on():
    told = extrapolation({"encoder": 1.0, "unet": 2.0, "decoder": 3.0}, FullSize(crop=256))
    assert told["hours"] == pytest.approx(500 * 2 * 2 * 6 / 3600) and told["crop"] == 256
    assert (told["paper_hours"], told["paper_gpu_GB"]) == (1.07, 28)


def test_the_command_prints_one_object(small, capsys, monkeypatch):
    original = bench.fullsize
    monkeypatch.setattr(bench, "fullsize", lambda options: original(options, small))
    assert bench.main(["fullsize", "--size", "32", "--crop", "32", "--device", "cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["peak_bytes"] > 0 and told["records"][0]["step"] == "plan" and "plan: " in err


@pytest.mark.slow
def test_the_full_size_stays_below_20_gib_on_a_cpu():
    records = list(fullsize(FullSize(size=512, crop=64)))
    assert records[-2]["shape"] == [3, 512, 512] and records[-2]["finite"]
    assert max(r["peak_bytes"] for r in records[1:-1]) < 20 * 2**30
