"""The explorers: their arithmetic against direct computation, and one call of it per change."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import passionsr_lab as lab
from passionsr_lab import plots
from passionsr_lab.analysis.budget import width_errors, within_budget
from passionsr_lab.analysis.observe import layer_input, observing
from passionsr_lab.analysis.propagation import propagation
from passionsr_lab.quantization.layer import QuantLayer, mode
from passionsr_lab.quantization.quantizer import fake_quantize
from passionsr_lab.widgets import boundaries, budget_explorer, layers, let

generator = torch.Generator().manual_seed(0)
X = torch.nn.functional.silu(3 * torch.randn(2, 6, 8, 8, generator=generator)) * torch.logspace(-1, 1, 6)[:, None, None]
PAIRS = [(-0.3, 4.0), (-2.0, 1.0), (-0.1, 40.0), (0.5, 3.0)]
CONV = torch.nn.Conv2d(6, 5, 3, padding=1).requires_grad_(False)


def total(x, lower, upper, bits, zero_point="integer"):
    """The squared error, computed without any of the code under test but the quantizer."""
    bounds = (torch.tensor(float(b), dtype=torch.float64) for b in (lower, upper))
    return (fake_quantize(x.double(), *bounds, bits, zero_point) - x).square().mean().item()


def decibels(x, *asked):
    return 10 * np.log10(total(x, *asked) / x.double().square().mean().item())


def least(x, bits, zero_point="integer"):
    return boundaries.best_boundaries(boundaries.sample(x), bits, zero_point)


# -- boundaries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_point", ["integer", "real"])
def test_clipping_and_rounding_add_up_to_the_whole_error(zero_point):
    for bits in (2, 4, 8):
        parts = boundaries.quantization_noise(boundaries.sample(X), *zip(*PAIRS), bits, zero_point)
        assert sum(parts).tolist() == pytest.approx([total(X, *pair, bits, zero_point) for pair in PAIRS], rel=1e-9)
        assert all((part >= 0).all() for part in parts)
    clipping, rounding = boundaries.quantization_noise(boundaries.sample(X), [X.min().item()], [X.max().item()], 4)
    assert clipping.item() == 0 and rounding.item() > 0
    outside = boundaries.sample(torch.tensor([5.0, 6.0]))
    clipping, rounding = boundaries.quantization_noise(outside, [0.0], [1.0], 4)
    assert rounding.item() == 0 and clipping.item() == pytest.approx((16 + 25) / 2)


def test_a_large_tensor_or_a_histogram_serves_as_well_as_the_values():
    x = torch.randn(200_000, generator=generator)
    s = boundaries.sample(x)
    assert len(s.values) <= boundaries.BINS and s.weights.sum() == len(x)
    assert (s.values @ s.weights / len(x)).item() == pytest.approx(x.double().mean().item(), abs=1e-9)
    noise = sum(boundaries.quantization_noise(s, [-1.5], [2.0], 6)).item()
    assert noise == pytest.approx(total(x, -1.5, 2.0, 6), rel=0.02)
    counts, edges = np.histogram(X.numpy(), 4000)
    assert total(X, *least((edges, counts), 4), 4) <= total(X, *least(X, 4), 4) * 1.02


@pytest.mark.parametrize("zero_point", ["integer", "real"])
def test_no_other_boundaries_are_better_than_the_best(zero_point):
    s, rng, low, high = boundaries.sample(X), np.random.default_rng(0), X.min().item(), X.max().item()
    tried = np.sort(rng.uniform(low, high, (2000, 2)), axis=1)
    tried = np.concatenate([tried, [(low, high)], np.outer(np.linspace(0.05, 1, 200), (low, high))])
    for bits in (2, 4, 6):
        others = sum(boundaries.quantization_noise(s, *tried.T, bits, zero_point))
        assert total(X, *least(X, bits, zero_point), bits, zero_point) <= others.min().item() * 1.01
    assert least(torch.linspace(-1, 3, 4001), 6, "real") == pytest.approx((-1, 3), abs=0.05)


def test_the_figure_marks_the_best_pair_and_says_the_errors():
    fig, best = boundaries.boundary_figure(X, -0.3, 4.0, 4), least(X, 4)
    star = next(line for line in fig.axes[1].lines if line.get_label() == "best pair")
    assert star.get_xdata()[0] == best[1] and star.get_ydata()[0] == pytest.approx(decibels(X, *best, 4), abs=1e-6)
    assert f"noise {decibels(X, -0.3, 4.0, 4):.1f} dB" in fig.get_suptitle().replace("\n", " ")
    dotted = [x.get_xdata()[0] for x in fig.axes[0].lines if x.get_linestyle() == ":" and len(x.get_xdata())]
    assert sorted(dotted) == pytest.approx(sorted(best))
    for wrong in ((2.0, 1.0), (1.0, 1.0)):
        with pytest.raises(ValueError, match="must be below"):
            boundaries.boundary_figure(X, *wrong)


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def q(calibrated):
    return calibrated("W4A4", "let")


@pytest.fixture(scope="module")
def stats(q, pairs):
    with observing(q) as stats, mode(q, "float"):
        q(pairs[0].lr)
    return stats


def test_the_boundaries_shown_are_those_the_layer_uses(q, stats):
    name = next(n for n, m in q.layers.items() if isinstance(m, QuantLayer) and m.conv)
    bits, [pair] = layers.boundaries(q, name)
    layer = q.layers[name]
    own = tuple(b.item() for b in layer.act_quantizers[0].bounds(*layer.input_ranges()[0]))
    assert (bits, pair) == (q.recipe.bits(name)[1], own)
    lines = layers.layer_figure(stats, name, q).axes[1].lines
    assert [line.get_xdata()[0] for line in lines if len(line.get_xdata())][:2] == pytest.approx(own)
    attention = next(n for n, m in q.layers.items() if not isinstance(m, QuantLayer))
    for key in "qkv":
        _, [(lower, upper)] = layers.boundaries(q, f"{attention}.{key}")
        after = stats.channels(f"{attention}.{key}", after=True)
        assert lower <= after.low.min() + 1e-6 and upper >= after.high.max() - 1e-6  # a calibration picture
        layers.layer_figure(stats, f"{attention}.{key}", q).draw_without_rendering()


def test_every_layer_has_a_picture(q, stats):
    for name in stats.layers(after=True).layer.astype(str)[::20]:
        layers.layer_figure(stats, name, q)
        layers.layer_figure(stats, name, bits=4)
    with pytest.raises(ValueError, match="is not a quantized layer"):
        layers.boundaries(q, "unet")


def test_a_layers_input_is_what_reaches_it(pipe, pairs):
    x, seen = layer_input(pipe, "vae.decoder.conv_in", pairs[0].lr), []
    with pipe.vae.decoder.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        pipe(pairs[0].lr)
    assert torch.equal(x, seen[0]) and not pipe.vae.decoder.conv_in._forward_pre_hooks
    with pytest.raises(ValueError, match="no Linear or Conv2d named"):
        layer_input(pipe, "vae", pairs[0].lr)


# -- LET --------------------------------------------------------------------------------------------------------------


def test_let_errors_are_those_of_the_layer():
    errors, y, own = let.let_errors(CONV, X, 0.5, 4), CONV(X), let.transformed(CONV, X, 0.5, 4)
    expected = 10 * torch.log10(y.square().mean() / (own(X) - y).square().mean()).item()
    assert errors["both_db"] == pytest.approx(expected, abs=1e-3)
    assert errors["both_db"] < min(errors["activation_db"], errors["weight_db"])
    assert let.let_errors(CONV, X, 0.5, 8)["both_db"] > errors["both_db"] + 15


def test_alpha_moves_the_range_from_activation_to_weight():
    flat, steep = (let.let_figure(CONV, X, alpha, 4).axes for alpha in (1.0, 0.0))

    def fill(ax):
        return float(ax.get_title("left").split("fills ")[1].split(" ")[0])

    assert fill(flat[0]) > fill(steep[0]) and fill(flat[1]) < fill(steep[1])


# -- widgets ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explorers(q, stats):
    """By the plain function behind each; every test sets values that no other test sets."""
    return {
        "layer_figure": (layers, layers.layer_explorer(stats, q)),
        "boundary_figure": (boundaries, boundaries.boundary_explorer(X)),
        "let_figure": (let, let.let_explorer(CONV, X)),
    }


@pytest.fixture
def calls(explorers, monkeypatch):
    """Every call of a plain function, with its keywords."""
    made = []
    for function, (room, _) in explorers.items():
        plain = getattr(room, function)
        monkeypatch.setattr(room, function, lambda *a, plain=plain, **k: made.append(k) or plain(*a, **k))
    return made


CHANGES = [
    ("layer_figure", "layer", "unet.conv_in"),
    ("boundary_figure", "upper", 3.0),
    ("boundary_figure", "bits", 3),
    ("boundary_figure", "zero_point", "real"),
    ("let_figure", "alpha", 0.25),
    ("let_figure", "bits", 6),
]


@pytest.mark.parametrize(("function", "control", "value"), CHANGES)
def test_a_change_calls_the_plain_function_once(explorers, calls, function, control, value):
    widget = explorers[function][1]
    before = widget.picture.value
    for _ in range(2):  # the second time nothing changes, and nothing is drawn
        widget.controls[control].value = value
        assert len(calls) == 1 and calls[0][control] == value
        assert widget.picture.value != before and bytes(widget.picture.value[:4]) == b"\x89PNG"


def test_a_button_moves_two_sliders_and_draws_once(explorers, calls):
    widget = explorers["boundary_figure"][1]
    widget.buttons["Best"].click()
    best = least(X, widget.values["bits"], widget.values["zero_point"])
    assert len(calls) == 1
    assert (widget.controls["lower"].value, widget.controls["upper"].value) == pytest.approx(best, abs=0.2)
    widget.buttons["MaxMin"].click()
    assert len(calls) == 2 and calls[1]["upper"] == pytest.approx(X.max().item())


def test_a_wrong_value_is_said_and_the_picture_stays(explorers):
    widget = explorers["boundary_figure"][1]
    before = widget.picture.value
    widget.set(lower=5.0, upper=1.0)
    assert "must be below" in widget.note.value and widget.picture.value == before
    widget.set(lower=0.0, upper=5.0)
    assert widget.note.value == "" and widget.picture.value != before


def test_every_control_can_be_reached_and_understood_and_no_figure_stays_open(explorers):
    for _, widget in explorers.values():
        for control in (*widget.controls.values(), *widget.buttons.values()):
            assert control.description and control.tooltip and control.tabbable
            assert not getattr(control, "continuous_update", False)
        assert widget.picture.layout.height.endswith("px") and widget.note.layout.height.endswith("px")
        assert len(repr(widget)) < 110 and "next cell" in repr(widget)
    widget = explorers["let_figure"][1]
    assert widget.picture.value == plots.png(let.let_figure(CONV, X, name="one layer", **widget.values))
    assert plt.get_fignums() == []


def test_the_layer_table_is_sorted_and_searched_without_a_new_picture(q, stats, calls):
    explorer = layers.layer_explorer(stats, q)
    control, rows, drawn = explorer.controls["layer"], explorer.rows, len(calls)
    listed = lambda: [name for _, name in control.options]
    assert listed() == [*rows.layer] and rows.number.is_monotonic_increasing
    first = control.value
    explorer.sort.value, explorer.falling.value = "high", True
    assert listed() == [*rows.sort_values("high", ascending=False, kind="stable").layer]
    assert control.value == first and len(calls) == drawn, "the chosen layer stays"
    explorer.search.value = "conv_in"
    assert len(listed()) == 3 and all("conv_in" in name for name in listed())
    explorer.search.value = "decoder.conv"
    assert listed() and all("decoder.conv" in name for name in listed()) and control.value == listed()[0]
    assert len(calls) == drawn + (first != control.value)
    explorer.search.value = "no such layer"
    assert "No row" in explorer.note.value and control.value in rows.layer.tolist()


def test_a_click_on_a_point_shows_its_layer_and_the_table_marks_the_point(q, stats, calls):
    explorer = layers.layer_explorer(stats, q)
    control, points, rows = explorer.controls["layer"], explorer.points, explorer.rows
    assert points.chosen == control.value and points.title == "outliers"
    explorer.sort.value, explorer.search.value = "let", "decoder.up"
    drawn = {row["name"]: row for row in points.rows}
    assert [row["value"] for row in points.rows] == rows.let.tolist() and points.title == "let"
    assert {name for name, row in drawn.items() if row["listed"]} == {n for n in rows.layer if "decoder.up" in n}
    count = len(calls)
    points.chosen = "unet.conv_in"  # what a click does; the search hid this layer
    assert control.value == "unet.conv_in" and explorer.search.value == "" and len(calls) == count + 1
    control.value = rows.layer[3]
    assert points.chosen == rows.layer[3] and len(calls) == count + 2


def test_the_layer_table_says_what_was_measured(q, stats):
    rows = layers.layer_rows(stats, q, noise=propagation(q, [torch.rand(3, 8, 8)])).set_index("layer")
    before, after = (stats.layers(after=a).set_index("layer") for a in (False, True))
    name = "unet.conv_in"
    span = lambda frame: frame.high[name] - frame.low[name]
    assert rows.let[name] == pytest.approx(span(after) / span(before))
    assert rows.act_bits[name] == q.layers[name].setting.act_bits and np.isfinite(rows.local_db[name])


# -- budget -----------------------------------------------------------------------------------------------------------


def test_the_budget_explorer_gives_the_recipe_that_it_shows(pipe, pairs):
    errors = width_errors(pipe, pairs[:1], (3, 8), "maxmin")
    explorer = budget_explorer(pipe, errors, percent=50)
    first = explorer.recipe
    assert first == within_budget(pipe, errors, 5.5) and eval(explorer.python.value, {"lab": lab}) == first
    explorer.explorer.set(of="bit_operations", percent=100)
    assert {bits for name in errors.layer for bits in explorer.recipe.bits(name)} == {8}
    assert lab.Recipe.from_dict(json.loads(explorer.json.value)) == explorer.recipe
    assert not explorer.explorer.note.value and bytes(explorer.explorer.picture.value).startswith(b"\x89PNG")
