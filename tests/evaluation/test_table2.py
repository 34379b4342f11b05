"""The big table: what is in a cell, the paper's numbers beside it, and resuming after a kill."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest

from passionsr_lab.evaluation import table2
from passionsr_lab.evaluation.scores import summary
from passionsr_lab.evaluation.table2 import Plan, run, wide
from passionsr_lab.evaluation.tables import read_table
from passionsr_lab.imaging.pairs import bundled
from passionsr_lab.imaging.psnr import psnr_y
from passionsr_lab.methods import calibrate
from passionsr_lab.quantization.place import quantize
from passionsr_lab.store.folder import load

ROOT = Path(__file__).parents[2]
TABLES = ("table2.csv", "table2.tex", "table2_means.csv", "table2_images.csv", "table2_versions.json")


@pytest.fixture(scope="module")
def plan(make_pipe, tmp_path_factory):
    """A table of three rows on a small model of random weights."""
    return Plan(
        model=str(make_pipe().save(tmp_path_factory.mktemp("models") / "small")), bits=("W6A6",),
        methods=("PassionSR-FP", "maxmin", "passionsr"), metrics=("psnr_y", "ssim_y"), count=2, crop=32, pairs=2,
        size=16, epochs=1, batch=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def whole(plan, store, tmp_path_factory):
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    list(run(plan, out, store))
    return out


def same_tables(a, b):
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in TABLES)


# -- what is in it ----------------------------------------------------------------------------------------------------


def test_a_cell_is_what_calibrating_and_measuring_by_hand_gives(plan, whole):
    pipe = load(plan.model)
    quantized = quantize(pipe, "W6A6")
    calibrate(quantized, bundled("calibration", 2, 16), "passionsr", epochs=1, batch=1)
    frame = read_table(whole / "table2_images.csv").query("metric == 'psnr_y'").set_index(["method", "name"]).value
    for pair in bundled("test", 2, 32):
        for method, model in (("PassionSR-FP", pipe), ("PassionSR", quantized)):
            restored = (model(pair.lr) * 255).round() / 255
            assert frame[method, pair.name] == pytest.approx(psnr_y(restored, pair.hr), abs=1e-4)


def test_rows_come_in_the_order_of_the_plan_with_the_means(plan, whole):
    table, frame = read_table(whole / "table2.csv"), read_table(whole / "table2_images.csv")
    assert table[["bits", "method"]].values.tolist() == [
        ["W32A32", "PassionSR-FP"], ["W6A6", "MaxMin"], ["W6A6", "PassionSR"],
    ]  # fmt: skip
    for row in table.itertuples():
        part = frame[(frame.bits == row.bits) & (frame.method == row.method) & (frame.metric == "psnr_y")]
        assert len(part) == 2 and pytest.approx(part.value.mean()) == row.PSNR


def test_the_latex_ranks_within_data_set_and_bits(whole):
    text = (whole / "table2.tex").read_text()
    assert text.count(r"\midrule") == 2 and "bundled, W6A6" in text and "simulated" in text
    assert text.count(r"\textbf") >= 4 and "nan" not in text.lower()


def test_the_papers_numbers_stand_beside_the_same_cell_only():
    cells = [("RealSR", "W32A32", "FP"), ("RealSR", "W6A6", "PassionSR"), ("bundled", "W6A6", "PassionSR"),
             ("RealSR", "W4A4", "MaxMin")]  # fmt: skip
    rows = [dict(zip(("dataset", "bits", "method"), cell), name="a", metric=m, value=1.0, note="")
            for cell in cells for m in ("psnr_y", "maniqa_pipal")]  # fmt: skip
    table = wide(summary(pd.DataFrame(rows)))
    assert table["PSNR paper"].tolist()[:2] == [25.27, 25.15] and table["PSNR paper"].isna().tolist()[2:] == [True] * 2
    assert table.columns.tolist() == ["dataset", "bits", "method", "PSNR", "PSNR paper", "MANIQA-pipal"]
    assert table["MANIQA-pipal"].tolist() == [1.0] * 4, "the paper's MANIQA is another metric"


def test_a_metric_without_weights_is_an_empty_column_and_one_sentence(plan, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    table2.quality.iqa.network.cache_clear()
    small = replace(plan, methods=("PassionSR-FP",), metrics=("psnr_y", "musiq"))
    *_, last = run(small, tmp_path / "out", tmp_path / "store")
    table2.quality.iqa.network.cache_clear()
    table = read_table(tmp_path / "out" / "table2.csv")
    assert table.PSNR.notna().all() and table.MUSIQ.isna().all()
    assert len(last["notes"]) == 1 and last["notes"][0].startswith("musiq is not available")
    assert "MUSIQ" not in (tmp_path / "out" / "table2.tex").read_text()


@pytest.mark.parametrize(
    "change, words",
    [(dict(methods=("magic",)), "A method is one of"), (dict(bits=("W6",)), "like W6A6"),
     (dict(metrics=("vmaf",)), "not a metric of protocol"), (dict(datasets=("A=x", "A=y")), "A is given twice"),
     (dict(bits=("W6A6", "W6A6")), "W6A6 is given twice")],
)  # fmt: skip
def test_a_plan_that_cannot_be_carried_out_fails_when_it_is_made(plan, change, words):
    with pytest.raises(ValueError, match=words):
        replace(plan, **change)


def test_the_full_model_needs_its_prompt_branch(plan, tmp_path):
    with pytest.raises(ValueError, match="no prompt branch, so leave FP out"):
        list(run(replace(plan, methods=("FP",)), tmp_path, tmp_path))


# -- from the store ---------------------------------------------------------------------------------------------------

KILLED = """
import os, signal
from passionsr_lab.calibration import loop
from passionsr_lab.evaluation import table2
loop.SAVE_EVERY, original = 0, loop.Calibration._descend
def descend(self, *arguments):
    if self.method.name == "passionsr" and self.stage == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *arguments)
loop.Calibration._descend = descend
list(table2.run(table2.Plan(**{plan}), {out!r}, {store!r}))
"""


def test_a_killed_run_ends_with_the_same_bytes(plan, whole, tmp_path):
    out, store = tmp_path / "out", tmp_path / "store"
    code = KILLED.format(plan=asdict(plan), out=str(out), store=str(store))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(store.glob("models/*/unfinished.pt")) and not (out / "table2.csv").exists()
    list(run(plan, out, store))
    assert same_tables(out, whole)


def test_a_damaged_score_is_made_anew_and_a_finished_table_costs_nothing_more(
    plan, whole, store, tmp_path, monkeypatch
):
    kept = sorted((store / "results").glob("*.json"))
    good = kept[0].read_bytes()
    for bad in (b"", good[: len(good) // 2], good.replace(b'"value": ', b'"value": 1', 1), kept[1].read_bytes()):
        kept[0].write_bytes(bad)
        list(run(plan, tmp_path, store))
        assert kept[0].read_bytes() == good and same_tables(tmp_path, whole)
    monkeypatch.setattr(table2, "calibrated", None)
    monkeypatch.setattr(table2.quality, "stream", None)
    for executor in (None, ThreadPoolExecutor(2)):
        list(run(plan, tmp_path, store, executor))
        assert same_tables(tmp_path, whole)


def test_other_pairs_epochs_or_timesteps_are_measured_anew(plan, whole, store, tmp_path):
    list(run(replace(plan, methods=("PassionSR-FP",), count=1), tmp_path, store))
    assert len(read_table(tmp_path / "table2_images.csv").name.unique()) == 1
    other = load(plan.model)
    other.timestep = 500
    other = replace(plan, model=str(other.save(tmp_path / "t500")), methods=("PassionSR-FP", "maxmin"))
    list(run(other, tmp_path, store))
    before, after = (read_table(folder / "table2.csv").PSNR[:2] for folder in (whole, tmp_path))
    assert (before != after).all()
