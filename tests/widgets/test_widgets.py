"""The explorers: their arithmetic against direct computation, and one call of it per change."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from passionsr_lab.analysis.observe import layer_input, observing
from passionsr_lab.quantization.layer import QuantLayer, mode
from passionsr_lab.quantization.place import quantized_layers
from passionsr_lab.quantization.quantizer import fake_quantize
from passionsr_lab.widgets import explore

generator = torch.Generator().manual_seed(0)
X = torch.nn.functional.silu(3 * torch.randn(2, 6, 8, 8, generator=generator)) * torch.logspace(-1, 1, 6)[:, None, None]
PAIRS = [(-0.3, 4.0), (-2.0, 1.0), (-0.1, 40.0), (0.5, 3.0)]


def total(x, lower, upper, bits, zero_point):
    """The squared error, computed without any of the code under test but the quantizer."""
    bounds = (torch.tensor(float(b), dtype=torch.float64) for b in (lower, upper))
    return (fake_quantize(x.double(), *bounds, bits, zero_point) - x).square().mean().item()


# -- boundaries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_point", ["integer", "real"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_clipping_and_rounding_add_up_to_the_whole_error(bits, zero_point):
    parts = explore.quantization_noise(explore.sample(X), *zip(*PAIRS), bits, zero_point)
    expected = [total(X, *pair, bits, zero_point) for pair in PAIRS]
    assert sum(parts).tolist() == pytest.approx(expected, rel=1e-9)
    assert all((part >= 0).all() for part in parts)


def test_nothing_is_clipped_between_minimum_and_maximum():
    s = explore.sample(X)
    clipping, rounding = explore.quantization_noise(s, [X.min().item()], [X.max().item()], 4)
    assert clipping.item() == 0 and rounding.item() > 0
    clipping, rounding = explore.quantization_noise(explore.sample(torch.tensor([5.0, 6.0])), [0.0], [1.0], 4)
    assert rounding.item() == 0 and clipping.item() == pytest.approx((16 + 25) / 2)


def test_a_large_tensor_is_summed_up_in_bins_with_the_same_error():
    x = torch.randn(200_000, generator=generator)
    s = explore.sample(x)
    assert len(s.values) <= explore.BINS and s.weights.sum() == len(x)
    assert (s.values @ s.weights / len(x)).item() == pytest.approx(x.double().mean().item(), abs=1e-9)
    noise = sum(explore.quantization_noise(s, [-1.5], [2.0], 6)).item()
    assert noise == pytest.approx(total(x, -1.5, 2.0, 6, "integer"), rel=0.02)


@pytest.mark.parametrize("zero_point", ["integer", "real"])
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_no_other_boundaries_are_better_than_the_best(bits, zero_point):
    s = explore.sample(X)
    best = explore.best_boundaries(s, bits, zero_point)
    least = sum(explore.quantization_noise(s, [best[0]], [best[1]], bits, zero_point)).item()
    rng, low, high = np.random.default_rng(0), X.min().item(), X.max().item()
    tried = np.sort(rng.uniform(low, high, (2000, 2)), axis=1)
    tried = np.concatenate([tried, [(low, high)], np.outer(np.linspace(0.05, 1, 200), (low, high))])
    others = sum(explore.quantization_noise(s, *tried.T, bits, zero_point))
    assert least <= others.min().item() * 1.01


def test_the_best_boundaries_of_uniform_values_are_their_ends():
    lower, upper = explore.best_boundaries(explore.sample(torch.linspace(-1, 3, 4001)), 6, "real")
    assert (lower, upper) == pytest.approx((-1, 3), abs=0.05)


def test_the_figure_marks_the_best_pair_and_says_the_errors():
    s = explore.sample(X)
    fig = explore.boundary_figure(X, -0.3, 4.0, 4)
    best = explore.best_boundaries(s, 4)
    star = next(line for line in fig.axes[1].lines if line.get_label() == "best pair")
    signal = X.double().square().mean().item()
    assert star.get_xdata()[0] == best[1]
    assert star.get_ydata()[0] == pytest.approx(10 * np.log10(total(X, *best, 4, "integer") / signal), abs=1e-6)
    here = 10 * np.log10(total(X, -0.3, 4.0, 4, "integer") / signal)
    assert f"noise {here:.1f} dB" in fig.get_suptitle().replace("\n", " ")
    dotted = [
        line.get_xdata()[0] for line in fig.axes[0].lines if line.get_linestyle() == ":" and len(line.get_xdata())
    ]
    assert sorted(dotted) == pytest.approx(sorted(best))


def test_a_histogram_serves_as_well_as_the_values():
    counts, edges = np.histogram(X.numpy(), 4000)
    binned, whole = (explore.best_boundaries(explore.sample(x), 4) for x in ((edges, counts), X))
    assert total(X, *binned, 4, "integer") <= total(X, *whole, 4, "integer") * 1.02


@pytest.mark.parametrize(("lower", "upper"), [(2.0, 1.0), (1.0, 1.0)])
def test_boundaries_in_the_wrong_order_are_named(lower, upper):
    with pytest.raises(ValueError, match="must be below"):
        explore.boundary_figure(X, lower, upper)


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
    name = next(n for n, m in quantized_layers(q).items() if isinstance(m, QuantLayer) and m.conv)
    bits, [(lower, upper)] = explore.boundaries(q, name)
    layer = quantized_layers(q)[name]
    own = [b.item() for b in layer.act_quantizers[0].bounds(*layer.input_ranges()[0])]
    assert bits == q.recipe.bits(name)[1] and [lower, upper] == own
    drawn = [
        line.get_xdata()[0] for line in explore.layer_figure(stats, name, q).axes[1].lines if len(line.get_xdata())
    ]
    assert drawn[:2] == pytest.approx(own)


@pytest.mark.parametrize("key", "qkv")
def test_attentions_have_boundaries_too(q, stats, key):
    attention = next(n for n, m in quantized_layers(q).items() if not isinstance(m, QuantLayer))
    _, [(lower, upper)] = explore.boundaries(q, f"{attention}.{key}")
    after = stats.channels(f"{attention}.{key}", after=True)
    assert lower <= after.low.min() + 1e-6 and upper >= after.high.max() - 1e-6  # the pair was a calibration picture
    explore.layer_figure(stats, f"{attention}.{key}", q).draw_without_rendering()


def test_every_layer_has_a_picture(q, stats):
    for name in stats.layers(after=True).layer.astype(str)[::20]:
        explore.layer_figure(stats, name, q)
        explore.layer_figure(stats, name, bits=4)
    with pytest.raises(ValueError, match="is not a quantized layer"):
        explore.boundaries(q, "unet")


# -- LET --------------------------------------------------------------------------------------------------------------

CONV = torch.nn.Conv2d(6, 5, 3, padding=1).requires_grad_(False)


def test_let_errors_are_those_of_the_layer():
    errors = explore.let_errors(CONV, X, 0.5, 4)
    own = explore.transformed(CONV, X, 0.5, 4)
    y = CONV(X)
    expected = 10 * torch.log10(y.square().mean() / (own(X) - y).square().mean()).item()
    assert errors["both_db"] == pytest.approx(expected, abs=1e-3)
    assert errors["both_db"] < min(errors["activation_db"], errors["weight_db"])
    assert explore.let_errors(CONV, X, 0.5, 8)["both_db"] > errors["both_db"] + 15


def test_alpha_moves_the_range_from_activation_to_weight():
    flat = explore.let_figure(CONV, X, 1.0, 4).axes
    steep = explore.let_figure(CONV, X, 0.0, 4).axes

    def fill(ax):
        return float(ax.get_title("left").split("fills ")[1].split(" ")[0])

    assert fill(flat[0]) > fill(steep[0]) and fill(flat[1]) < fill(steep[1])


def test_a_layers_input_is_what_reaches_it(pipe, pairs):
    x = layer_input(pipe, "vae.decoder.conv_in", pairs[0].lr)
    seen = []
    with pipe.vae.decoder.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        pipe(pairs[0].lr)
    assert torch.equal(x, seen[0]) and not pipe.vae.decoder.conv_in._forward_pre_hooks
    with pytest.raises(ValueError, match="no Linear or Conv2d named"):
        layer_input(pipe, "vae", pairs[0].lr)


# -- widgets ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explorers(q, stats):
    """By the plain function behind each; every test sets values that no other test sets."""
    return {
        "layer_figure": explore.layer_explorer(stats, q),
        "boundary_figure": explore.boundary_explorer(X),
        "let_figure": explore.let_explorer(CONV, X),
    }


CHANGES = [
    ("layer_figure", "layer", "unet.conv_in"),
    ("boundary_figure", "upper", 3.0),
    ("boundary_figure", "bits", 3),
    ("boundary_figure", "zero_point", "real"),
    ("let_figure", "alpha", 0.25),
    ("let_figure", "bits", 6),
]


@pytest.mark.parametrize(("function", "control", "value"), CHANGES)
def test_a_change_calls_the_plain_function_once(explorers, monkeypatch, function, control, value):
    calls, plain, widget = [], getattr(explore, function), explorers[function]
    monkeypatch.setattr(explore, function, lambda *a, **k: calls.append(k) or plain(*a, **k))
    before = widget.picture.value
    widget.controls[control].value = value
    assert len(calls) == 1 and calls[0][control] == value
    assert widget.picture.value != before and bytes(widget.picture.value[:4]) == b"\x89PNG"
    widget.controls[control].value = value
    assert len(calls) == 1  # nothing changed, nothing drawn


def test_a_button_moves_two_sliders_and_draws_once(explorers, monkeypatch):
    calls, plain, widget = [], explore.boundary_figure, explorers["boundary_figure"]
    monkeypatch.setattr(explore, "boundary_figure", lambda *a, **k: calls.append(k) or plain(*a, **k))
    widget.buttons["Best"].click()
    best = explore.best_boundaries(explore.sample(X), widget.values["bits"], widget.values["zero_point"])
    assert len(calls) == 1
    assert (widget.controls["lower"].value, widget.controls["upper"].value) == pytest.approx(best, abs=0.2)
    widget.buttons["MaxMin"].click()
    assert len(calls) == 2 and calls[1]["upper"] == pytest.approx(X.max().item())


def test_a_wrong_value_is_said_and_the_picture_stays(explorers):
    widget = explorers["boundary_figure"]
    before = widget.picture.value
    widget.set(lower=5.0, upper=1.0)
    assert "must be below" in widget.note.value and widget.picture.value == before
    widget.set(lower=0.0, upper=5.0)
    assert widget.note.value == "" and widget.picture.value != before


def test_every_control_can_be_reached_and_understood(explorers):
    for widget in explorers.values():
        for control in (*widget.controls.values(), *widget.buttons.values()):
            assert control.description and control.tooltip and control.tabbable
            assert not getattr(control, "continuous_update", False)
        assert widget.picture.layout.height.endswith("px") and widget.note.layout.height.endswith("px")
        assert len(repr(widget)) < 110 and "next cell" in repr(widget)


def test_no_figure_is_left_open(explorers):
    explorers["layer_figure"].set(layer="unet.conv_out")
    explorers["boundary_figure"].set(bits=2)
    assert plt.get_fignums() == []


def test_the_same_values_give_the_same_picture(explorers):
    from passionsr_lab.widgets.picture import png

    widget = explorers["let_figure"]
    assert widget.picture.value == png(explore.let_figure(CONV, X, name="one layer", **widget.values))
