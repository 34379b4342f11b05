"""The bench and the sliders, without a browser: they are built, driven and asked for their pictures."""

import time

import pytest
import torch

import passionsr_lab as lab
from passionsr_lab import plots, widgets


@pytest.fixture(scope="module")
def pipe():
    return lab.tiny()


@pytest.fixture
def bench(pipe):
    tests = lab.bundled("test", 1, 64)
    return widgets.calibration_bench(pipe, lab.bundled("calibration", 2, 64), tests, epochs=1, batch=1, every=1)


def test_the_bench_calibrates_and_tells_the_result(bench):
    bench.method.value = "lbq"
    bench.start()
    q = bench.wait(300)
    assert bench.error is None and q.recipe.name == "W6A6"
    assert [r["event"] for r in bench.records] == ["plan", "start", *["step"] * 4, "end"]
    assert bytes(bench.picture.value).startswith(b"\x89PNG") and "dB against full precision" in bench.status.value
    assert bench.halt.disabled and not bench.go.disabled and bench.bar.value == bench.bar.max


def test_stop_ends_between_two_steps_and_leaves_a_model_that_works(bench):
    bench.epochs.value = 16
    bench.start()
    while not any(r["event"] == "step" for r in bench.records):
        time.sleep(0.05)
    assert bench.running and not bench.halt.disabled and bench.go.disabled
    bench.stop()
    q = bench.wait(60)
    assert not any(r["module"] == "decoder" and r["event"] == "step" for r in bench.records)
    assert torch.isfinite(q(torch.rand(3, 16, 16))).all() and "Stopped" in bench.status.value


def test_an_error_is_told_and_the_bench_stays_usable(bench, monkeypatch):
    monkeypatch.setattr(bench, "pairs", [])
    bench.start()
    assert bench.wait(60) is None
    assert "at least one pair" in bench.status.value and not bench.go.disabled


def test_every_control_has_a_label_a_tooltip_and_the_tab_key(bench):
    pictures = {"a": torch.zeros(3, 8, 8), "b": torch.ones(3, 8, 8)}
    sliders = [widgets.image_slider(*pictures.values(), ("a", "b")), widgets.method_slider(pictures, "a", "b")]
    controls = [bench.recipe, bench.method, bench.epochs, bench.go, bench.halt]
    controls += [control for slider in sliders for control in slider.controls.values()]
    assert all(control.description and control.tooltip and control.tabbable for control in controls)
    assert all(not c.continuous_update for c in controls if "continuous_update" in c.traits())


def test_a_finished_finish_changes_nothing(pipe):
    from passionsr_lab.calibration.state import state

    q = lab.quantize(pipe, lab.W6A6)
    work = lab.Calibration(q, lab.bundled("calibration", 1, 64), lab.METHODS["let"])
    list(work.run())
    before = state(q)
    work.finish()
    assert all(torch.equal(value, before[key]) for key, value in state(q).items())


def test_sliders_draw_what_the_static_twin_draws():
    from passionsr_lab.widgets.picture import png

    a, b = torch.zeros(3, 8, 8), torch.ones(3, 8, 8)
    slider = widgets.image_slider(a, b, ("black", "white"))
    slider.set(percent=25)
    assert slider.picture.value == png(plots.split(a, b, 0.25, ("black", "white")))
    menus = widgets.method_slider({"black": a, "white": b}, "black", "white")
    menus.set(left="white", right="black", percent=25)
    assert menus.picture.value == png(plots.split(b, a, 0.25, ("white", "black")))


def test_split_takes_the_left_from_one_and_the_right_from_the_other():
    fig = plots.split(torch.zeros(3, 8, 8), torch.ones(3, 8, 8), 0.25)
    shown = fig.axes[0].images[0].get_array()
    assert shown[:, :2].max() == 0 and shown[:, 2:].min() == 1


@pytest.mark.parametrize("size, at, text", [((3, 8, 4), 0.5, "one size"), ((3, 8, 8), 1.5, "between 0 and 1")])
def test_wrong_pictures_and_places_are_refused(size, at, text):
    with pytest.raises(ValueError, match=text):
        plots.split(torch.zeros(3, 8, 8), torch.ones(size), at)


def test_follow_passes_everything_on():
    assert list(widgets.follow(iter(range(5)), 5, "things")) == list(range(5))


def test_what_is_left_follows_the_costs_of_the_items(monkeypatch):
    from passionsr_lab.widgets import progress

    said, now = [], iter([0.0, 3.0, 13.0])
    monkeypatch.setattr(progress, "_update", lambda _, text: said.append(text))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    list(progress.follow("ab", 2, "runs", costs=[3, 10], knobs="EPOCHS"))
    assert said[0] == "runs: 1 of 2, 3 s, about 10 s left" and said[-1] == "runs: 2 of 2, done"


@pytest.mark.parametrize("seconds, left, warns", [(1, 119, False), (1, 121, True), (100, 15, False)])
def test_only_a_step_of_more_than_two_minutes_warns(seconds, left, warns):
    from passionsr_lab.widgets.progress import remaining

    assert ("lower EPOCHS" in remaining(seconds, left, "EPOCHS")) == warns
