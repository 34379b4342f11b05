"""The commands that count and measure: `cost`, `measure`, `prefetch`, `table2`."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from passionsr_lab.evaluation import iqa
from passionsr_lab.imaging.pictures import to_image

DATA = Path(os.environ.get("PASSIONSR_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture
def cli(cli):
    """A function (*arguments) -> (exit code, the one JSON object on standard output or None, standard error)."""

    def run(*arguments):
        code, out, err = cli(*arguments, "--json")
        strict = lambda name: pytest.fail(f"{name} is not JSON")
        return code, json.loads(out, parse_constant=strict) if out else None, err

    return run


@pytest.fixture
def folders(tmp_path):
    """Two folders of the same three names."""
    generator = torch.Generator().manual_seed(0)
    for side in ("ours", "theirs"):
        (tmp_path / side).mkdir()
        for i in range(3):
            to_image(torch.rand(3, 24, 24, generator=generator)).save(tmp_path / side / f"{i}.png")
    return tmp_path / "ours", tmp_path / "theirs"


def test_cost_of_the_full_size_needs_no_weights_and_few_seconds(cli):
    code, told, _ = cli("cost", "--model", "sd21", "--recipe", "W6A6")
    assert code == 0 and told["recipe"] == "W6A6" and told["size"] == 512
    assert (round(told["paper"]["params_M"]), int(told["paper"]["ops_G"])) == (178, 795)
    assert told["seconds"] < 60


def test_cost_in_full_precision_has_nothing_to_compare_with(cli):
    _, told, _ = cli("cost", "--model", "tiny", "--size", "256")
    assert told["recipe"] == "W32A32" and told["exact"]["weight_bits"] == 32 and "full" not in told["exact"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--model", "nowhere"), "no folder"),
        (("--recipe", "8bits"), "like W6A6"),
        (("--model", "tiny", "--size", "100"), "multiple of"),
    ],
)
def test_cost_tells_in_one_sentence_what_is_wrong(cli, arguments, words):
    code, told, err = cli("cost", *arguments)
    assert code == 2 and told is None and err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_measure_is_the_mean_with_its_interval(cli, folders, tmp_path):
    code, told, _ = cli("measure", "-i", folders[0], "-r", folders[1], "--metrics", "psnr", "--csv", tmp_path / "a.csv")
    frame = pd.read_csv(tmp_path / "a.csv")
    (row,) = told["scores"]
    assert code == 0 and told["images"] == row["n"] == 3 and row["metric"] == "psnr_y" and row["protocol"] == "osediff"
    assert row["mean"] == pytest.approx(frame.value.mean()) and row["low"] < row["mean"] < row["high"]
    assert told["versions"]["protocol"] == "osediff" and len(told["versions"]["digest"]) == 12


def test_measure_leaves_a_column_without_weights_empty_and_says_why_once(cli, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    iqa.network.cache_clear()
    code, told, _ = cli("measure", "-i", folders[0], "-r", folders[1], "--metrics", "psnr,musiq")
    iqa.network.cache_clear()
    scores = {row["metric"]: row for row in told["scores"]}
    assert code == 0 and scores["psnr_y"]["n"] == 3 and not scores["psnr_y"]["note"]
    assert scores["musiq"]["n"] == 0 and scores["musiq"]["mean"] is None
    assert scores["musiq"]["note"].startswith("musiq is not available: ")
    assert told["versions"]["weights"] == {"musiq_koniq_ckpt-e95806b9.pth": "absent"}


def test_measure_needs_references_only_for_metrics_that_compare(cli, folders):
    code, _, err = cli("measure", "-i", folders[0], "--metrics", "psnr")
    assert code == 2 and "give references" in err
    (folders[1] / "0.png").unlink()
    code, _, err = cli("measure", "-i", folders[0], "-r", folders[1])
    assert code == 2 and "0.png" in err


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "realsr" / "osediff").is_dir(), reason="the RealSR test pairs are not here")
def test_measure_gives_the_published_numbers(cli):
    folders = DATA / "realsr" / "osediff", DATA / "realsr" / "hr"
    _, told, _ = cli("measure", "-i", folders[0], "-r", folders[1], "--protocol", "osediff", "--metrics", "psnr,ssim")
    assert [round(row["mean"], 4) for row in told["scores"]] == [25.1511, 0.7341] and told["images"] == 100


def test_prefetch_goes_on_after_a_file_that_cannot_be_had(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    there = tmp_path / "hub" / "pyiqa" / "niqe_modelparameters.mat"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"weights")
    code, told, _ = cli("prefetch", "--protocol", "passionsr")
    files = {row["file"]: row for row in told["files"]}
    assert files[there.name]["sha256"] == iqa.sha256(there) and not files[there.name]["note"]
    assert files[there.name]["metrics"] == ["niqe"]
    missing = [row for row in files.values() if row["sha256"] == "absent"]
    assert code == 1 and len(missing) == told["missing"] and all("HF_HUB_OFFLINE" in row["note"] for row in missing)
    assert {"RN50.pt", "ckpt_koniq10k.pt"} <= {row["file"] for row in missing}
    assert np.unique(list(files)).size == len(told["files"])


def test_table2_is_one_command(cli, pipe, tmp_path):
    model, out = pipe.save(tmp_path / "small"), tmp_path / "out"
    arguments = ["table2", "--model", model, "--out", out, "--bits", "W4A4", "--methods", "PassionSR-FP,maxmin",
                 "--metrics", "psnr", "--count", 1, "--crop", 32, "--pairs", 1, "--size", 16, "--store", tmp_path]  # fmt: skip
    code, told, _ = cli(*arguments)
    assert code == 0 and [row["method"] for row in told["rows"]] == ["PassionSR-FP", "MaxMin"]
    assert told["rows"][0]["PSNR"] > 0 and told["notes"] == [] and all(Path(p).is_file() for p in told["paths"])
    assert cli(*arguments, "--resume")[1] == told
    code, _, err = cli("table2", "--out", tmp_path / "no", "--datasets", f"RealSR={tmp_path}")
    assert code == 2 and "There is no RealSR" in err and "lr/*.png with hr/*.png" in err


def test_pairs_makes_what_calibrate_reads(cli, folders, tmp_path):
    code, told, _ = cli("pairs", "--images", folders[0], "--out", tmp_path / "set", "--count", 4, "--size", 16)
    assert code == 0 and told["pairs"] == 4 and len(list((tmp_path / "set" / "lr").iterdir())) == 4
    code, _, err = cli("pairs", "--images", folders[0], "--out", tmp_path / "set", "--size", 512)
    assert code == 2 and "No photograph" in err
