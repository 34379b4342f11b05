"""The bench and progress, without a browser: they are built, driven and asked for their pictures."""

import re
import time
from dataclasses import replace

import pytest
import torch
from filled import same

import passionsr_lab as lab
from passionsr_lab import widgets
from passionsr_lab.util import progress


@pytest.fixture
def bench(pipe, pairs):
    return widgets.calibration_bench(pipe, pairs[:2], pairs[2:3], epochs=1, batch=1, every=1)


def test_the_bench_calibrates_any_registered_method_and_tells_the_result(pipe, pairs, monkeypatch):
    """One with stages on blocks; its model is the one that `calibrate` gives."""
    stages = (lab.Stage("unet", ("bounds",), blocks="*mid_block*"), lab.Stage("all", ("bounds",)))
    mine = replace(lab.METHODS["lbq"], name="mine", label="My own", stages=stages)
    monkeypatch.setitem(lab.METHODS, "mine", mine)  # what lab.register does
    bench = widgets.calibration_bench(pipe, pairs[:2], pairs[2:3], method="mine", epochs=1, batch=1, every=8)
    assert [name for _, name in bench.controls["method"].options] == list(lab.METHODS) and bench.controls[
        "method"
    ].label == "My own"
    bench.start()
    q = bench.wait(300)
    assert bench.error is None and q.recipe.name == "W6A6" and q.method == mine
    plan = [r for r in bench.records if r["event"] == "plan"]
    events = [r["event"] for r in bench.records[len(plan) :]]
    assert len(plan) > 2 and events == ["start", "step", "step", "end"] * len(plan)
    assert bytes(bench.picture.value).startswith(b"\x89PNG") and "dB against full precision" in bench.status.value
    assert bench.halt.disabled and not bench.go.disabled and bench.bar.value == bench.bar.max
    other = lab.quantize(pipe, "W6A6")
    lab.calibrate(other, pairs[:2], mine, epochs=1, batch=1)
    assert same(q, other)


def test_stop_ends_between_two_steps_and_leaves_a_model_that_works(bench):
    bench.controls["epochs"].value = 16
    bench.start()
    while not any(r["event"] == "step" for r in bench.records):
        time.sleep(0.01)
    assert bench.running and not bench.halt.disabled and bench.go.disabled
    bench.stop()
    q = bench.wait(60)
    assert not any(r["module"] == "decoder" and r["event"] == "step" for r in bench.records)
    assert torch.isfinite(q(torch.rand(3, 16, 16))).all() and "Stopped" in bench.status.value


def test_continue_goes_on_from_stop_to_the_bits_of_a_run_that_was_never_stopped(pipe, pairs):
    bench = widgets.calibration_bench(pipe, pairs[:2], epochs=1, batch=1, every=100)
    for events in (1, 4):  # within the first stage, and in a later one
        bench.resume() if bench.further.disabled is False else bench.start()
        while sum(r["event"] == "step" for r in bench.records) < events:
            time.sleep(0.01)
        bench.stop()
        assert bench.wait(60) is not None and not bench.further.disabled
    bench.controls["method"].value = "maxmin"  # it goes on with what it began with
    bench.resume()
    q = bench.wait(120)
    assert bench.controls["method"].value == q.method.name == lab.methods.DEFAULT and bench.further.disabled
    other = lab.quantize(pipe, "W6A6")
    frame = lab.calibrate(other, pairs[:2], epochs=1, batch=1)
    assert same(q, other)
    assert len(frame) == sum(r["event"] != "plan" for r in bench.records)


def test_any_recipe_runs_a_row_of_a_table_too_and_runs_stand_side_by_side(pipe, pairs):
    rows = lab.grid(recipe=["W3A5"], method=["maxmin", "let"], epochs=[1], pairs=[1])
    bench = widgets.calibration_bench(pipe, pairs[:2], pairs[2:3], epochs=1, every=100, rows=rows)
    for i in (0, 1):
        bench.row.value = i
        bench.start()
        q = bench.wait(60)
        assert (q.recipe.weight_bits, q.recipe.act_bits, q.method.name) == (3, 5, rows.method[i])
        assert q.history["pairs"] == 1
    bench.controls["modules"].value = ("unet",)
    bench.start()
    assert bench.wait(60).recipe.modules == ("unet",)
    first, second, third = bench.runs
    assert second["to the first (dB)"] == second["dB"] - first["dB"] and third["modules"] == "unet"
    assert bench.table.value.count("<tr") == 4


def test_integers_stand_beside_what_is_simulated_and_only_they_and_full_precision_have_seconds(pipe, pairs):
    pytest.importorskip("openvino")
    bench = widgets.calibration_bench(pipe, pairs[:2], pairs[2:3], method="let", epochs=1, every=100)
    assert bench.integers.disabled and bench.comparison is None
    bench.start()
    q = bench.wait(60)
    bench.deploy()
    assert bench.wait(120) is q and bench.error is None and bench.deployed.label == "deployed"
    simulated, deployed = bench.runs
    assert (simulated["label"], deployed["label"]) == ("simulated", "deployed")
    assert "seconds" not in simulated and deployed["seconds"] > 0
    assert deployed["dB"] == pytest.approx(simulated["dB"], abs=1) and "Deployed" in bench.status.value
    names = [re.sub(r"[\d.e-]+ s$", "T s", name) for name in bench.comparison.pictures]
    assert names == ["full precision, T s", "1: W6A6 LET, simulated", "2: W6A6 LET, deployed, T s"]
    assert "<iframe" in bench.slider.value and bench.table.value.count("deployed") == 1


def test_what_cannot_be_deployed_is_told_and_the_simulated_model_stays(pipe, pairs):
    bench = widgets.calibration_bench(pipe, pairs[:2], method="let", epochs=1, every=100)
    bench.start()
    q = bench.wait(60)
    q.method = None
    bench.deploy()
    assert bench.wait(60) is q and "role='alert'" in bench.status.value and not bench.integers.disabled


def test_a_new_bench_ends_what_another_one_runs(pipe, pairs, bench):
    bench.controls["epochs"].value = 16
    bench.start()
    while not bench.records:
        time.sleep(0.01)
    widgets.calibration_bench(pipe, pairs[:2])
    assert bench.wait(60) is not None and "Stopped" in bench.status.value


@pytest.mark.slow
def test_interrupting_the_idle_kernel_ends_a_run():
    from jupyter_client.manager import start_new_kernel

    code = """
import time, passionsr_lab as lab
from passionsr_lab import widgets
bench = widgets.calibration_bench(lab.tiny(), lab.bundled("calibration", 8, 64), epochs=16)
bench.start()
"""
    manager, client = start_new_kernel()
    try:
        client.execute_interactive(code, timeout=120)
        time.sleep(3)
        manager.interrupt_kernel()
        time.sleep(2)
        wait = "assert bench.wait(60) is not None and 'Stopped' in bench.status.value"
        assert client.execute_interactive(wait, timeout=120)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_an_error_is_told_and_the_bench_stays_usable(bench):
    bench.pairs = []
    bench.start()
    assert bench.wait(60) is None
    assert "give at least one" in bench.status.value and not bench.go.disabled


def test_every_control_has_a_label_a_tooltip_and_the_tab_key(bench):
    controls = [bench.row, *bench.controls.values(), bench.go, bench.halt, bench.further, bench.integers]
    assert all(control.description and control.tooltip and control.tabbable for control in controls)
    assert all(not c.continuous_update for c in controls if "continuous_update" in c.traits())


def test_follow_passes_everything_on_and_says_what_is_left_by_the_costs_of_the_items(monkeypatch):
    said, now = [], iter([0.0, 3.0, 13.0])
    monkeypatch.setattr(progress, "_update", lambda _, text: said.append(text))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    assert list(widgets.follow("ab", 2, "runs", costs=[3, 10], knobs="EPOCHS")) == ["a", "b"]
    assert said[0] == "runs: 1 of 2, 3 s, about 10 s left" and said[-1] == "runs: 2 of 2, done"
    warned = ["lower EPOCHS" in progress.remaining(*times, "EPOCHS") for times in ((1, 119), (1, 121), (100, 15))]
    assert warned == [False, True, False]
