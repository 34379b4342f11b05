"""Compiled passes against those of torch: layers of every kind, whole calibrations, and numba missing."""

import copy
import importlib.util
from dataclasses import replace

import pytest
import torch
from filled import LAYERS, WHOLE, filled, relative, same, told

import passionsr_lab as lab
from passionsr_lab.calibration.alignment import Alignment
from passionsr_lab.calibration.loop import Calibration
from passionsr_lab.calibration.method import RATES
from passionsr_lab.kernels import compiled as passes
from passionsr_lab.kernels.whole import QuantizedLayer
from passionsr_lab.methods import find
from passionsr_lab.quantization.attention import QuantAttention
from passionsr_lab.quantization.filling import LET, Slots
from passionsr_lab.quantization.layer import QuantLayer, mode
from passionsr_lab.quantization.quantizer import fake_quantize
from passionsr_lab.quantization.recipe import LayerRecipe
from passionsr_lab.util.memory import allocated_peak

pytest.importorskip("numba")
NOT_WHOLE = ("groups", "depthwise", "reflect", "replicate", "circular")  # what is left to the passes one by one


def trainable(case, slots, **setting):
    """A layer in float64 whose slots are trained, boundaries inside the ranges, one pair of them crossing."""
    layer, x = filled(case, slots, dtype=torch.float64, **setting)
    layer.layer.requires_grad_(False)
    for q in (*layer.act_quantizers, *layer.weight_quantizers):
        q.trim.data.uniform_(-0.05, 0.3)
    layer.weight_quantizers[0].trim.data[:, :1] = 0.6
    return layer, x.requires_grad_()


def gradients(layer, x, on):
    """The output and every gradient, x's first, by compiled passes or by torch's."""
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    with passes.compiled(on):
        y = layer(x)
        weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)
        return y, torch.autograd.grad((y * weights).sum(), wanted), type(y.grad_fn).__name__


@pytest.mark.parametrize("zero_point", ["integer", "real"])
@pytest.mark.parametrize("slots", [LET(), LET(shift=False), Slots()], ids=["let", "scale", "bounds"])
@pytest.mark.parametrize("case", LAYERS)
def test_every_gradient_of_every_kind_of_layer_is_that_of_torchs_passes(case, slots, zero_point):
    for split in (False, True) if case not in WHOLE else (False,):
        layer, x = trainable(case, slots, weight_bits=4, act_bits=3, zero_point=zero_point, split=split)
        y, ours, name = gradients(layer, x, True)
        expected, theirs, _ = gradients(layer, x, False)
        linear_halves = split and not layer.conv
        assert name.startswith(QuantizedLayer.__name__) == (case not in NOT_WHOLE and not linear_halves)
        assert relative(y, expected) < 1e-8
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).abs().max() <= 1e-8 * max(1, b.abs().max())


def test_gradients_reach_values_beyond_both_boundaries_and_boundaries_beyond_zero():
    layer, x = trainable("3x3 padded", LET(), weight_bits=3, act_bits=3)
    seen = layer.transformed_input(x)
    lower, upper = layer._input_grid()[2:]
    assert (seen < lower).any() and (seen > upper).any()
    layer.act_quantizers[0].trim.data[0] = 0.95  # the lower boundary would be above zero: it is held there
    (y, ours, _), (expected, theirs, _) = (gradients(layer, x, on) for on in (True, False))
    assert relative(y, expected) < 1e-8
    assert all((a - b).abs().max() <= 1e-8 * max(1, b.abs().max()) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("slots", [LET(), Slots()], ids=["let", "bounds"])
@pytest.mark.parametrize("split", [False, True])
def test_any_memory_format_gives_the_same(slots, split):
    layer, x = trainable("3x3 padded", slots, weight_bits=4, act_bits=4, split=split)
    expected, theirs, _ = gradients(layer, x, False)
    layer.layer.weight.data = layer.layer.weight.data.to(memory_format=torch.channels_last)
    x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    y, ours, _ = gradients(layer, x, True)
    assert not (x.is_contiguous() or layer.layer.weight.is_contiguous()) and relative(y, expected) < 1e-8
    assert all((a - b).abs().max() <= 1e-8 * max(1, b.abs().max()) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("case", ["3x3 padded", "linear of maps"])
def test_any_memory_format_gives_the_same_where_a_layer_is_not_whole(case):
    layer, x = trainable(case, LET(), weight_bits=4, act_bits=4, split=case != "linear of maps")
    layer.alignment = Alignment(len(layer.layer.weight)).double()
    expected, theirs, _ = gradients(layer, x, False)
    x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    y, ours, name = gradients(layer, x, True)
    assert not (x.is_contiguous() or name.startswith(QuantizedLayer.__name__)) and relative(y, expected) < 1e-8
    assert all((a - b).abs().max() <= 1e-8 * max(1, b.abs().max()) for a, b in zip(ours, theirs))


def swap(layer):
    layer.transform.log_scale.data = layer.transform.log_scale.data * 1.7


def move(layer):
    for tensor in (layer.layer.weight, layer.weight_quantizers[0].trim):
        tensor.data = tensor.data * 1.5


def write(layer):
    layer.layer.weight.data.mul_(1.5)


def observe(layer):
    layer.range.set(layer.range.low * 2, layer.range.high * 2)


def refill(layer):
    layer.act_quantizers[0] = type(layer.act_quantizers[0])(layer.setting.act_bits).double()


def watch(layer):
    layer.act_quantizers[0].register_forward_hook(lambda q, args, out: out * 2)


def set_bits(layer):
    layer.setting = replace(layer.setting, act_bits=2)
    layer.act_quantizers[0].bits = 2


def train_less(layer):
    layer.weight_quantizers.requires_grad_(False)
    layer.transform.requires_grad_(False)


def train_again(layer):
    layer.weight_quantizers.requires_grad_(True)
    layer.transform.requires_grad_(True)


@pytest.mark.parametrize("change", [swap, move, write, observe, refill, watch, set_bits, train_less, train_again])
def test_what_is_kept_from_step_to_step_follows_every_change(change):
    layer, x = trainable("3x3 padded", LET(), weight_bits=4, act_bits=4)
    if change is train_again:
        train_less(layer)
    before, *_ = gradients(layer, x, True)
    change(layer)
    (y, ours, _), (expected, theirs, _) = (gradients(layer, x, on) for on in (True, False))
    assert relative(y, expected) < 1e-8 and (change in (train_less, train_again) or relative(y, before) > 1e-3)
    assert all((a - b).abs().max() <= 1e-8 * max(1, b.abs().max()) for a, b in zip(ours, theirs, strict=True))
    twin = copy.deepcopy(layer)
    twin.act_quantizers[0].trim.data += 0.05
    assert torch.equal(gradients(layer, x, True)[0], y) and relative(gradients(twin, x, True)[0], y) > 1e-3


@pytest.mark.parametrize("zero_point", ["integer", "real"])
@pytest.mark.parametrize("slots", [LET(), Slots()], ids=["let", "bounds"])
def test_the_products_of_attention_have_the_gradients_of_torchs_passes(slots, zero_point):
    setting = LayerRecipe(weight_bits=4, act_bits=4, zero_point=zero_point)
    attention = QuantAttention(None, {"q": 8, "k": 8, "v": 8}, "attention", setting)
    slots.fill(attention)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 8, generator=draw, dtype=torch.float64).requires_grad_() for n in (6, 5, 5))
    attention.double()
    with torch.no_grad(), mode(attention, "observe"):
        attention.product(q, k, v, 2, 0.5)
    slots.start(attention)
    for quantizer in attention.quantizers.values():
        quantizer.trim.data.uniform_(-0.05, 0.3)

    def found(on):
        with passes.compiled(on):
            y = attention.product(q, k, v, 2, 0.5)
            weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)
            return y, torch.autograd.grad((y * weights).sum(), [q, k, v, *attention.parameters()]), y.grad_fn

    for _ in range(2):  # with other parameters the second time
        (y, ours, function), (expected, theirs, other) = found(True), found(False)
        assert any("QuantizedProduct" in str(f) for f in (function, *(f for f, _ in function.next_functions)))
        assert "QuantizedProduct" not in str(other) and relative(y, expected) < 1e-8
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).abs().max() <= 1e-8 * max(1, b.abs().max())
        for p in attention.parameters():
            p.data.add_(0.01)


def test_a_boundarys_gradient_is_the_slope_of_the_loss_where_no_code_changes():
    """By finite differences: values beyond the boundary move with it."""
    x = torch.tensor([-3.0, -2.0, 5.0, 7.0], dtype=torch.float64)
    lower, upper = (torch.tensor(b, dtype=torch.float64, requires_grad=True) for b in (-1.0, 2.0))

    def loss(a, b):
        return (fake_quantize(x, a, b, 4, "real") * torch.arange(1.0, 5.0, dtype=torch.float64)).sum()

    with passes.compiled():
        found = torch.autograd.grad(loss(lower, upper), (lower, upper))
        for i, h in enumerate(torch.eye(2, dtype=torch.float64) * 1e-6):
            slope = (loss(lower + h[0], upper + h[1]) - loss(lower - h[0], upper - h[1])) / 2e-6
            assert found[i].item() == pytest.approx(slope.item(), rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("case", LAYERS)
def test_without_gradients_values_are_equal_to_the_last_bit(case):
    layer, x = filled(case, weight_bits=4, act_bits=4)
    with passes.compiled():
        ours = layer(x)
    assert torch.equal(ours, layer(x))


def test_a_calibration_ends_where_torchs_does_and_twice_at_the_same_bits():
    pipe, pairs = lab.tiny(), lab.bundled("calibration", 2, 32)
    method = replace(find("lbq+let"), rates=RATES, average=0.0)

    def run(compiled):
        q = lab.quantize(pipe, "W6A6")
        work = Calibration(q, pairs, method, epochs=5, batch=1, compiled=compiled)
        list(work.run())
        return q, work

    (q, ours), (again, same_run), (_, theirs) = run(True), run(True), run(False)
    assert same(q, again) and told(ours.records) == told(same_run.records)
    assert q.history["compiled"] and not passes.on()
    assert ours.records[1]["loss"] == pytest.approx(theirs.records[1]["loss"], rel=1e-3)
    assert all(work.ends[-1]["loss"] < 0.5 * work.ends[-1]["first"] for work in (ours, theirs))


def test_quantized_weights_and_their_gradients_are_there_for_one_layer_at_a_time():
    """A float step holds the gradients of all four."""
    wide = QuantLayer(torch.nn.Linear(512, 512), "wide", LayerRecipe(6, 6))
    model, x = torch.nn.Sequential(*(copy.deepcopy(wide) for _ in range(4))), torch.randn(16, 512)
    with torch.no_grad(), mode(model, "observe"):
        model(x)
    floats = torch.nn.Sequential(*(copy.deepcopy(layer.layer) for layer in model))
    for layer in model:
        LET().fill(layer)
        layer.layer.requires_grad_(False)

    def peak(model):
        step = lambda: model(x).square().mean().backward()
        step()
        model.zero_grad()
        model.double().float()  # what is kept from step to step is made within the next one
        return allocated_peak(step)

    with passes.compiled():
        assert peak(model) < 0.5 * peak(floats)
        for layer in model:
            train_less(layer)
        assert peak(model) < 4 * 512**2  # nor are those kept that nothing trains


def test_without_numba_one_sentence_and_torchs_passes(monkeypatch):
    monkeypatch.setattr(passes, "find_spec", lambda name: None)
    monkeypatch.delenv("PASSIONSR_COMPILED", raising=False)
    with pytest.warns(UserWarning, match="need numba"):
        assert not passes.wanted(True)
    assert not passes.wanted(False) and not passes.wanted()


def test_passes_are_compiled_where_numba_is_unless_somebody_says_no(monkeypatch):
    monkeypatch.delenv("PASSIONSR_COMPILED", raising=False)
    assert importlib.util.find_spec("numba") and passes.wanted() and not passes.wanted(False)
    monkeypatch.setenv("PASSIONSR_COMPILED", "0")
    assert not passes.wanted() and passes.wanted(True)
