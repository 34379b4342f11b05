"""Rates chosen on tuning pictures: which runs are made, what is chosen, and what then runs."""

import pytest

from passionsr_lab.evaluation.sweep import DEFAULTS, grid, run, sweep
from passionsr_lab.evaluation.tables import write_csv
from passionsr_lab.evaluation.tuning import at_cost, chosen, tuning_grid, with_chosen

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


def test_equal_costs_are_as_many_epochs_as_a_method_can_have_for_them():
    work = grid(recipe=["W6A6", "W4A4"], method=["maxmin", "lbq", "passionsr"], seed=range(2))
    seconds = {"maxmin": 5.0, "lbq": 20.0, "passionsr": 400.0}
    frame = sweep(
        work, work=lambda c, store=None: c | {"method": c["method"].name, "cpu_seconds": seconds[c["method"].name]}
    )
    told = at_cost(work, frame, 80.0)
    assert told.groupby("method").epochs.unique().map(list).to_dict() == {"lbq": [16], "maxmin": [4], "passionsr": [1]}
    assert told.drop(columns="epochs").equals(work.drop(columns="epochs"))


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
