"""The full-size benchmark, on a small architecture."""

import json

import pytest

from passionsr_lab.analysis.cost import count
from passionsr_lab.bench import fullsize as bench
from passionsr_lab.bench.fullsize import EPOCHS, PAIRS, STAGES, FullSize, extrapolation, fullsize, plan, step_bytes
from passionsr_lab.fullsize.sd21 import sd21


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
    needed = [4 * int(frame.parameters.sum()) + step_bytes(frame, pipe, m) for m in ("encoder", "unet", "decoder")]
    assert all(4e9 < n < 20 * 2**30 for n in needed) and max(needed) == needed[2]


def test_the_extrapolation_is_marked_with_what_it_was_measured_on():
    told = extrapolation({"encoder": 1.0, "unet": 2.0, "decoder": 3.0}, FullSize(crop=256))
    assert told["hours"] == pytest.approx(500 * 2 * 2 * 6 / 3600) and told["crop"] == 256
    assert (told["paper_hours"], told["paper_gpu_GB"]) == (1.07, 28)


def test_the_command_prints_one_object(small, cli, monkeypatch):
    original = bench.fullsize
    monkeypatch.setattr(bench, "fullsize", lambda options: original(options, small))
    code, out, err = cli("bench", "fullsize", "--size", 32, "--crop", 32, "--device", "cpu", "--json")
    told = json.loads(out)
    assert code == 0 and told["peak_bytes"] > 0 and told["records"][0]["step"] == "plan" and "plan: " in err


@pytest.mark.slow
def test_the_full_size_stays_below_20_gib_on_a_cpu():
    records = list(fullsize(FullSize(size=512, crop=64)))
    assert records[-2]["shape"] == [3, 512, 512] and records[-2]["finite"]
    assert max(r["peak_bytes"] for r in records[1:-1]) < 20 * 2**30
