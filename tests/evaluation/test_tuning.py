"""Rates chosen on tuning pictures: which runs are made, what is chosen, and what then runs."""

import math

import pytest

from passionsr_lab.evaluation.sweep import DEFAULTS, grid, run, sweep
from passionsr_lab.evaluation.tables import write_csv
from passionsr_lab.evaluation.tuning import at_cost, chosen, cost_of, tuned, tuning_grid, with_chosen

BEST = {"lbq": 3.0, "passionsr": 0.3}


def fake(c, store=None):
    """In a run's place: the nearer to `BEST`, the better; seeds pull by less than that."""
    name = c["method"].name
    return c | {"method": name, "psnr_fp": 30 - abs(c["rates"] - BEST[name]) + 0.1 * c["seed"]}


def test_every_method_that_trains_gets_the_same_grid_and_its_best_is_taken(tmp_path):
    work = tuning_grid(["W6A6", "W4A4"], ["maxmin", "lbq", "passionsr"], seed=range(2))
    assert set(work.method) == set(BEST) and set(work.tests) == {"tuning"}
    assert work.groupby(["recipe", "method"]).size().tolist() == [4 * 2] * 4
    table = chosen(sweep(work, work=fake))
    assert {(row.method, row.rates) for row in table[table.chosen].itertuples()} == set(BEST.items())
    write_csv(table, tmp_path / "tuning.csv")
    asked = grid(recipe=["W6A6"], method=["maxmin", "lbq", "passionsr"], seed=range(2))
    told = with_chosen(asked, tmp_path / "tuning.csv")
    assert told.rates.tolist() == [1.0, 1.0, 3.0, 3.0, 0.3, 0.3] and set(told.tests) == {"test"}
    assert told.drop(columns="rates").equals(asked.drop(columns="rates"))


def test_the_mean_over_recipes_decides():
    """A run that is best by luck at one width does not."""
    luck = lambda c: 8 * (c["rates"] == 10 and c["recipe"] == "W4A4")
    lucky = lambda c, store=None: fake(c) | {"psnr_fp": fake(c)["psnr_fp"] + luck(c)}
    table = chosen(sweep(tuning_grid(["W6A6", "W4A4"], ["lbq"], seed=range(2)), work=lucky))
    assert table[table.recipe == "W4A4"].set_index("rates").psnr_fp.idxmax() == 10
    assert set(table[table.chosen].rates) == {3.0} and set(table[table.chosen].recipe) == {"W6A6", "W4A4"}


def test_equals_take_the_smaller_rates():
    table = chosen(sweep(tuning_grid(["W6A6"], ["lbq"]), work=lambda c, store=None: fake(c) | {"psnr_fp": 30.0}))
    assert table[table.chosen].rates.tolist() == [0.3]


@pytest.mark.parametrize("best", [30.0, 1.0, 0.1])
def test_a_method_whose_best_rates_are_at_the_end_goes_on_until_they_are_not(best):
    score = lambda c: 30 - abs(math.log(c["rates"] / (best if c["method"].name == "lbq" else 1.0)))
    run = lambda work: sweep(work, work=lambda c, store=None: c | {"method": c["method"].name, "psnr_fp": score(c)})
    table = tuned(run, ["W6A6", "W4A4"], ["lbq", "passionsr"], seed=range(2))
    tried = {name: sorted({*runs.rates}) for name, runs in table.groupby("method")}
    assert tried["passionsr"] == [0.3, 1, 3, 10]
    assert tried["lbq"] == {30.0: [0.3, 1, 3, 10, 30, 100], 1.0: [0.3, 1, 3, 10], 0.1: [0.03, 0.1, 0.3, 1, 3, 10]}[best]
    assert {*table[table.chosen].groupby("method").rates.first()} == {best, 1.0}
    assert (table.groupby(["method", "rates"]).size() == 2 * 2).all() and {*table.tests} == {"tuning"}


def test_what_was_not_tuned_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no rates to choose"):
        tuning_grid(["W6A6"], ["maxmin", "let"])
    write_csv(chosen(sweep(tuning_grid(["W6A6"], ["lbq"]), work=fake)), tmp_path / "tuning.csv")
    with pytest.raises(ValueError, match="no rates for passionsr on tiny; run `tune`"):
        with_chosen(grid(recipe=["W6A6"], method=["passionsr"]), tmp_path / "tuning.csv")
    write_csv(chosen(sweep(tuning_grid(["W6A6"], ["passionsr"]), work=fake)), tmp_path / "more.csv")
    both = with_chosen(grid(method=["passionsr", "lbq"]), tmp_path / "tuning.csv", tmp_path / "more.csv")
    assert both.rates.tolist() == [0.3, 3.0]
    write_csv(grid(), tmp_path / "other.csv")
    with pytest.raises(ValueError, match="no table that `tune` wrote"):
        with_chosen(grid(), tmp_path / "other.csv")


def test_equal_costs_are_as_many_pairs_as_a_method_can_have_for_them():
    work = grid(recipe=["W6A6", "W4A4"], method=["maxmin", "lbq", "passionsr"], seed=range(2), epochs=[2])
    seconds = {"maxmin": 5.0, "lbq": 20.0, "passionsr": 4000.0}
    frame = sweep(
        work, work=lambda c, store=None: c | {"method": c["method"].name, "cpu_seconds": seconds[c["method"].name]}
    )
    assert cost_of("80", frame) == 80 and cost_of("lbq", frame) == 20
    for text in ("svdquant", "0", "nan", "-3", ""):
        with pytest.raises(ValueError, match="A cost is CPU seconds or one of maxmin, lbq, passionsr, not"):
            cost_of(text, frame)
    told = at_cost(work, frame, 80.0)
    assert told.groupby("method").pairs.unique().map(list).to_dict() == {"lbq": [64], "maxmin": [16], "passionsr": [4]}
    assert told.drop(columns="pairs").equals(work.drop(columns="pairs"))
    assert at_cost(work.assign(epochs=1), frame, 80.0).pairs.max() == 128, "half the epochs, twice the pairs"
    with pytest.raises(ValueError, match="No given run says what lbq costs at W6A6 on tiny"):
        at_cost(work, frame[frame.recipe == "W4A4"], 80.0)


def test_a_run_trains_with_its_rates_and_is_measured_on_its_pictures(pipe, tmp_path):
    small = {
        "model": str(pipe.save(tmp_path / "model")),
        "recipe": "W4A4",
        "method": "lbq",
        "epochs": 1,
        "pairs": 2,
        "size": 32,
        "batch": 2,
    }
    small |= {"test_pairs": 2, "test_size": 32}
    usual, none, other = (run(DEFAULTS | small | more, tmp_path) for more in ({}, {"rates": 1e-9}, {"tests": "tuning"}))
    assert usual["psnr_fp"] != none["psnr_fp"] and other["psnr_y_full"] != usual["psnr_y_full"]
