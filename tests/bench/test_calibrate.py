"""The benchmark of calibration steps, with few and small pairs, on a small model."""

import json

import pytest

from passionsr_lab.bench import calibrate as bench
from passionsr_lab.bench.calibrate import BASE, Steps

QUICK = {"batch": 1, "crop": 32, "rounds": 1, "blocks": False, "whole": False}


@pytest.fixture(scope="module")
def ran(pipe):
    """All records of one run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "tiny", lambda: pipe)
        return list(bench.calibrate(Steps(**QUICK)))


def test_every_module_and_stage_has_a_ratio_over_its_base(ran):
    machine, *modules, ratios = ran
    assert machine["threads"] == 1 and machine["cores"] >= 1 and machine["torch"]
    assert [m["module"] for m in modules] == ["encoder", "unet", "decoder"]
    for module in modules:
        seconds, peaks = module["cpu_seconds"], module["peak_bytes"]
        assert all(value > 0 for value in seconds.values())
        for name, base in (BASE | {"forward": "float forward"}).items():
            assert ratios["ratios"][module["module"]][name] == pytest.approx(seconds[name] / seconds[base])
        for name, base in BASE.items():
            if peaks[base]:
                assert ratios["memory_ratios"][module["module"]][name] == pytest.approx(peaks[name] / peaks[base])


def test_the_command_prints_one_object_and_writes_it(cli, ran, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(bench, "calibrate", lambda options: asked.append(options.recipe) or iter(ran))
    code, out, err = cli("bench", "calibrate", "--recipe", "W4A8", "--json", "--report", tmp_path / "report.json")
    told = json.loads(out)
    assert code == 0 and asked == ["W4A8"]
    assert told == json.loads((tmp_path / "report.json").read_text()) and "machine: " in err
    assert told["ratios"].keys() == told["memory_ratios"].keys() == {"encoder", "unet", "decoder"}
