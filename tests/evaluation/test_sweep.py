"""Many runs: the table, the cache, resuming, executors."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from passionsr_lab.evaluation.sweep import DEFAULTS, grid, key, run, summary, sweep


@pytest.fixture
def work():
    """A stand-in for a run that counts its calls: results that depend on the configuration alone."""

    class Work:
        def __init__(self):
            self.seen, self.fail_at = [], None

        def __call__(self, c):
            if len(self.seen) == self.fail_at:
                raise KeyboardInterrupt
            self.seen.append(c)
            score = len(c["method"]) + c["seed"] / 10
            shared = {"psnr_y": score, "ssim_y": 0.5, "psnr_fp": 2 * score, "seconds": 1.0, "peak_bytes": 2_000_000_000}
            return shared | {"psnr_y_full": 30.0, "ssim_y_full": 0.9}

    return Work()


@pytest.fixture
def table():
    return grid(recipe=["W6A6", "W4A4"], method=["maxmin", "lbq", "passionsr"], seed=range(2))


def test_a_grid_has_every_combination_and_defaults_for_the_rest(table):
    assert len(table) == 12 and not table.duplicated().any()
    assert set(table.columns) == set(DEFAULTS)
    assert (table.epochs == DEFAULTS["epochs"]).all()
    assert table.method.tolist()[:6:2] == ["maxmin", "lbq", "passionsr"], "the last value changes fastest"
    with pytest.raises(ValueError, match="no setting 'bits'"):
        grid(bits=[4])


def test_results_come_in_the_order_of_the_table(table, work):
    frame = sweep(table, work=work)
    pd.testing.assert_frame_equal(frame[list(table.columns)], table)
    assert frame.psnr_fp.tolist() == [2 * (len(m) + s / 10) for m, s in zip(table.method, table.seed)]


def test_finished_runs_are_not_run_again(table, work, tmp_path):
    first, told = sweep(table, tmp_path, work=work), []
    assert len(work.seen) == 12
    second = sweep(table, tmp_path, work=work, callback=told.append)
    assert len(work.seen) == 12 and len(told) == 12
    pd.testing.assert_frame_equal(first, second)


def test_a_sweep_that_was_killed_goes_on(table, work, tmp_path):
    work.fail_at = 5
    with pytest.raises(KeyboardInterrupt):
        sweep(table, tmp_path, work=work)
    work.fail_at = None
    frame = sweep(table, tmp_path, work=work)
    assert len(work.seen) == 12 and len({json.dumps(c, sort_keys=True) for c in work.seen}) == 12
    pd.testing.assert_frame_equal(frame, sweep(table, work=work))


def test_a_half_written_result_is_run_again_or_refused_clearly(table, work, tmp_path):
    sweep(table, tmp_path, work=work)
    for file in tmp_path.iterdir():
        assert json.loads(file.read_text())
    assert len(list(tmp_path.iterdir())) == 12, "no temporary files stay behind"


def test_settings_that_a_method_does_not_use_do_not_count():
    base = {"method": "maxmin", "recipe": "W6A6", "seed": 0}
    assert key(base | {"epochs": 4}) == key(base | {"epochs": 9})
    other = base | {"method": "lbq"}
    assert key(other | {"epochs": 4}) != key(other | {"epochs": 9})
    keys = [base, base | {"seed": 1}, base | {"recipe": "W4A4"}, base | {"size": 128}, base | {"pairs": 3}, other]
    assert len({key(c) for c in keys}) == len(keys)


def test_the_key_follows_the_weights(make_pipe, tmp_path, monkeypatch):
    configuration = {"method": "maxmin", "model": str(tmp_path / "model")}
    first = key(configuration | {"model": str(make_pipe().save(tmp_path / "model"))})
    assert key(configuration) == first
    make_pipe(seed=1).save(tmp_path / "model")
    assert key(configuration) != first
    monkeypatch.setattr(sys.modules["passionsr_lab.evaluation.sweep"], "versions", lambda: {"torch": "0"})
    assert key(configuration) not in (first, None)


def test_any_executor_gives_the_same_frame(table, work):
    with ThreadPoolExecutor(3) as executor:
        pd.testing.assert_frame_equal(sweep(table, executor=executor, work=work), sweep(table, work=work))


def test_the_callback_hears_of_every_run(table, work):
    heard = []
    sweep(table, work=work, callback=heard.append)
    assert len(heard) == 12 and all("psnr_fp" in row for row in heard)


def test_the_summary_is_the_mean_over_seeds_with_full_precision_first(table, work):
    result = summary(sweep(table, work=work))
    assert result.method.tolist() == ["full precision", *["maxmin", "lbq", "passionsr"] * 2]
    assert result.recipe.tolist() == ["W32A32", *["W6A6"] * 3, *["W4A4"] * 3]
    assert result.psnr_y[0] == 30 and result.ssim_y[0] == 0.9
    row = result[(result.method == "lbq") & (result.recipe == "W4A4")].iloc[0]
    assert row.psnr_fp == pytest.approx(6.1) and row.psnr_fp_std == pytest.approx(0.1) and row.seeds == 2
    assert row.peak_gb == 2


def test_a_run_measures_what_it_says(make_pipe, tmp_path):
    folder = make_pipe().save(tmp_path / "small")
    small = {"model": str(folder), "pairs": 1, "size": 16, "test_pairs": 2, "test_size": 32}
    rough, fine = (run(small | {"recipe": recipe, "method": "let"}) for recipe in ("W4A4", "W8A8"))
    assert rough["psnr_fp"] < fine["psnr_fp"]
    assert rough["psnr_y_full"] == fine["psnr_y_full"] and 0 < fine["ssim_y_full"] < 1
    assert {"torch", "diffusers", "passionsr_lab"} <= rough.keys() and rough["method"] == "let"
    frame = sweep(grid(method=["let"], recipe=["W4A4"], **{k: [v] for k, v in small.items()}), tmp_path / "cache")
    for name in ("psnr_y", "ssim_y", "psnr_fp", "psnr_y_full"):
        assert frame[name][0] == rough[name], "the same seed gives the same numbers"
