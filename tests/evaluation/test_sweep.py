"""Many runs: the table, the store, what fails, executors; the same number wherever a model is asked for."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch

import passionsr_lab as lab
from passionsr_lab.evaluation import sweep as module
from passionsr_lab.evaluation.sweep import DEFAULTS, differences, grid, run, summary, sweep
from passionsr_lab.imaging.psnr import psnr_rgb

SMALL = {"epochs": [1], "pairs": [2], "size": [32], "test_pairs": [2], "test_size": [32], "batch": [2]}


def fake(c, store=None):
    """In a run's place: results that depend on the configuration alone."""
    if c["method"].name == "lbq" and c["seed"] == 1:
        raise ValueError("no luck")
    score = len(c["method"].name) + c["seed"] / 10
    shared = {"psnr_y": score, "ssim_y": 0.5, "psnr_fp": 2 * score, "seconds": 1.0, "cpu_seconds": 1.0}
    c = c | {"method": c["method"].name}
    return c | shared | {"peak_bytes": 2_000_000_000, "psnr_y_full": 30.0, "ssim_y_full": 0.9}


@pytest.fixture
def table():
    return grid(recipe=["W6A6", "W4A4"], method=["maxmin", "let", "passionsr"], seed=range(2))


def test_a_grid_has_every_combination_and_defaults_for_the_rest(table):
    assert len(table) == 12 and not table.duplicated().any() and set(table.columns) == set(DEFAULTS)
    assert table.method.tolist()[:6:2] == ["maxmin", "let", "passionsr"], "the last value changes fastest"
    with pytest.raises(ValueError, match="no setting 'bits'"):
        grid(bits=[4])


def test_results_come_in_the_order_of_the_table_on_any_executor(table):
    frame = sweep(table, work=fake)
    pd.testing.assert_frame_equal(frame[list(table.columns)], table)
    with ThreadPoolExecutor(3) as executor:
        pd.testing.assert_frame_equal(sweep(table, executor=executor, work=fake), frame)
    means = summary(frame)
    assert means.method.tolist() == ["full precision", *["maxmin", "let", "passionsr"] * 2]
    assert means.psnr_fp[1] == pytest.approx(2 * 6.05) and means.peak_gb[1] == 2 and means.seeds[1] == 2
    assert means.psnr_fp_std[1] == pytest.approx(0.1 * 2**0.5) and means.psnr_fp_spread[1] == pytest.approx(0.2)
    both = summary(pd.concat([frame, frame.assign(model="other")]))
    assert both.model.tolist() == ["tiny"] * len(means) + ["other"] * len(means) and "model" not in means


def test_differences_are_paired_by_seed_with_the_interval_of_t():
    scores = {"a": (10.0, 13.0, 22.0), "b": (11.0, 15.0, 25.0)}
    runs = [("tiny", "W6A6", method, seed, value) for method in scores for seed, value in enumerate(scores[method])]
    frame = pd.DataFrame(runs, columns=["model", "recipe", "method", "seed", "psnr_fp"])
    found = differences(frame).iloc[0]
    assert (found.method, found.other, found.seeds, found.difference) == ("b", "a", 3, 2.0)
    assert found.half_width == pytest.approx(4.3027 * 1 / 3**0.5, rel=1e-4)  # t of two degrees, gaps 1, 2, 3
    threads = differences(pd.concat([frame, frame.assign(psnr_fp=frame.psnr_fp + 1)])).iloc[0]
    assert threads.half_width == pytest.approx(found.half_width) and threads.seeds == 3, "other threads are no seeds"
    both = differences(pd.concat([frame, frame.assign(model="other", psnr_fp=2 * frame.psnr_fp)]))
    assert both.model.tolist() == ["tiny", "other"] and both.difference.tolist() == [2.0, 4.0]


def test_a_failed_run_is_told_after_the_others_have_been_made():
    told = []
    with pytest.raises(RuntimeError, match=r"1 of 4 runs failed, the first \(W6A6 lbq, seed 1\): no luck"):
        sweep(grid(method=["lbq", "let"], seed=range(2)), work=fake, callback=told.append)
    assert len(told) == 3


def test_pairs_have_a_seed_of_their_own_where_it_is_given():
    """A method without training, which no order of steps touches, is then the same with every seed."""
    own, shared = (sweep(grid(method=["let"], seed=range(2), **SMALL | more)) for more in ({}, {"pairs_seed": [1]}))
    assert own.psnr_fp[0] != own.psnr_fp[1] and shared.psnr_fp.tolist() == [own.psnr_fp[1]] * 2
    assert "pairs_seed" not in own and shared.pairs_seed.tolist() == [1, 1]


def test_a_run_is_made_once_and_says_what_was_asked(pipe, tmp_path, monkeypatch):
    model, store = str(pipe.save(tmp_path / "small")), tmp_path / "store"
    asked = grid(model=[model], method=["maxmin", "lbq"], recipe=["W4A4"], **SMALL)
    first = sweep(asked, store)
    with monkeypatch.context() as patch:
        patch.setattr(module, "calibrated", None)  # nothing is calibrated again
        pd.testing.assert_frame_equal(sweep(asked, store), first)
    other = sweep(asked.assign(epochs=2).iloc[:1], store)
    assert other.epochs[0] == 2 and other.psnr_fp[0] == first.psnr_fp[0], "maxmin trains nothing"
    assert run(asked.iloc[0].to_dict() | {"recipe": lab.W4A4}, store)["psnr_fp"] == first.psnr_fp[0]
    before = torch.get_num_threads()
    more = run(asked.iloc[0].to_dict() | {"method": "let", "threads": before + 1}, store)
    assert more["threads"] == before + 1 and torch.get_num_threads() == before == first.threads[0]
    assert (first.seconds > 0).all() and (first.peak_bytes > 0).all()
    full = lab.load(model)
    q = lab.calibrated(full, "W4A4", "lbq", lab.bundled("calibration", 2, 32), epochs=1, batch=2, store=store)
    tests = lab.bundled("test", 2, 32)
    assert first.psnr_fp[1] == pytest.approx(np.mean([psnr_rgb(q(t.lr), full(t.lr)) for t in tests]), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dask", "submitit"])
def test_clusters_give_the_same_table(pipe, tmp_path, kind):
    model = str(pipe.save(tmp_path / "small"))
    asked = grid(model=[model], method=["maxmin", "let"], recipe=["W4A4"], **SMALL)
    here = sweep(asked, tmp_path / "here").drop(columns=["seconds", "cpu_seconds", "peak_bytes"])
    if kind == "dask":
        distributed = pytest.importorskip("distributed")
        with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
            with distributed.Client(cluster) as client:
                there = sweep(asked, tmp_path / "there", client.get_executor())
    else:
        submitit = pytest.importorskip("submitit")
        there = sweep(asked, tmp_path / "there", submitit.LocalExecutor(tmp_path / "jobs"))
    pd.testing.assert_frame_equal(there[here.columns], here)
