"""The quantized layer: LET changes nothing in float, gradients, halves, slots, and the integers behind it all."""

import threading

import pytest
import torch
import torch.nn.functional as F
from filled import LAYERS, WHOLE, disturb, filled, relative
from made import refused
from torch import nn

from passionsr_lab.quantization.filling import LET, Slots
from passionsr_lab.quantization.layer import QuantLayer, mode
from passionsr_lab.quantization.quantizer import fake_quantize
from passionsr_lab.quantization.recipe import LayerRecipe
from passionsr_lab.quantization.slots import Slot, trainable
from passionsr_lab.quantization.transform import EquivalentTransform

LINEAR_AND_CONV = ("linear", "3x3 padded")

# -- LET --------------------------------------------------------------------------------------------------------------


def test_scale_and_shift_leave_every_kind_of_layer_as_it_is_and_16_bits_come_close(without_rounding):
    for seed, case in enumerate(LAYERS):
        layer, x = filled(case, seed=seed, weight_bits=16, act_bits=16)
        assert relative(without_rounding(layer)(x), layer.layer(x)) < 1e-5, case
        assert relative(layer(x), layer.layer(x)) < 3e-3, case
        for name in ("float", "observe"):
            with mode(layer, name):
                assert torch.equal(layer(x), layer.layer(x)), case


def test_the_zero_padded_border_is_exact(without_rounding):
    layer, x = filled("3x3 padded")
    ours, expected = without_rounding(layer)(x), layer.layer(x)
    border = torch.ones_like(expected, dtype=torch.bool)
    border[..., 1:-1, 1:-1] = False
    assert relative(ours[border], expected[border]) < 1e-5
    naive = F.conv2d(layer.transform(x, 1), layer.transformed_weight(), layer.bias(), padding=1)
    assert relative(naive, expected) > 1e-2, "padding after the shift would be wrong, so this test can see it"


@pytest.mark.parametrize("zero_point", ["integer", "real"])
def test_scale_shift_and_both_boundaries_have_the_gradient_of_the_smooth_part(zero_point, frozen, slopes):
    for case in ("linear", "3x3 padded", "down-sampling", "groups"):
        layer, x = filled(case, dtype=torch.float64, weight_bits=4, act_bits=4, zero_point=zero_point)
        for quantizer in (*layer.act_quantizers, *layer.weight_quantizers):
            quantizer.trim.data = 0.15 * torch.rand_like(quantizer.trim)
        smooth = frozen(layer)
        target = torch.randn_like(layer(x))
        torch.testing.assert_close(smooth(x), layer(x), rtol=1e-9, atol=1e-9)
        assert relative(layer(x), layer.layer(x)) > 1e-3, "nothing was rounded"
        (layer(x) - target).square().sum().backward()
        for ours, theirs in (
            (layer.transform.log_scale, smooth.transform.log_scale),
            (layer.transform.offset, smooth.transform.offset),
            (layer.act_quantizers[0].trim, smooth.act_quantizers[0].quantizer.trim),
            (layer.weight_quantizers[0].trim, smooth.weight_quantizers[0].quantizer.trim),
        ):
            indices, expected = slopes(lambda: (smooth(x) - target).square().sum(), theirs)  # noqa: B023
            assert expected.abs().max() > 1e-3
            torch.testing.assert_close(ours.grad.flatten()[indices], expected, rtol=1e-5, atol=1e-5)


def test_let_starts_as_smoothquant_does_up_to_a_common_factor_and_dead_channels_stay_finite():
    low, high = torch.tensor([-1.0, -4.0, 0.0]), torch.tensor([0.5, 2.0, 16.0])
    partner = torch.tensor([0.5, 2.0, 1.0])
    transform = EquivalentTransform(3)
    transform.start(low, high, partner, 0.5, 0.25, False)
    ratio = transform.scale / (torch.tensor([1.0, 4.0, 16.0]) ** 0.5 / partner**0.25)
    torch.testing.assert_close(ratio, ratio[:1].expand(3))
    assert transform.shift.tolist() == [0, 0, 0]
    transform.start(low, high, torch.ones(3), 0.5, 0.5, True)  # centred: every channel is symmetric
    torch.testing.assert_close(transform(low, 0), -transform(high, 0))
    transform.start(torch.zeros(3), torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 1.0]), 0.5, 0.5, True)
    assert torch.isfinite(transform.scale).all() and (transform.scale > 0).all()
    assert torch.isfinite(transform(torch.ones(3), 0)).all()


def test_lets_start_brings_channels_of_unlike_ranges_together():
    torch.manual_seed(0)
    layer, x = QuantLayer(nn.Linear(8, 6), "layer", LayerRecipe(8, 8)), torch.randn(50, 8) * torch.logspace(-2, 2, 8)
    slots, found = LET(), []
    slots.fill(layer)
    with mode(layer, "observe"):
        layer(x)
    for start in (lambda layer: None, slots.start):
        start(layer)
        amax = layer.transformed_input(x).abs().amax(0)
        found.append(((amax.max() / amax.min()).item(), relative(layer(x), layer.layer(x))))
    (before, error), (after, less) = found
    assert after < before / 10 and less < error


# -- ranges -----------------------------------------------------------------------------------------------------------


def test_ranges_are_per_channel_grow_with_every_call_and_cover_the_padding():
    layer = QuantLayer(nn.Conv2d(2, 3, 1), "unet.proj", LayerRecipe(8, 8))
    Slots().fill(layer)
    first = torch.randn(2, 2, 4, 5) * torch.tensor([5.0, 1.0]).view(1, 2, 1, 1)  # each call has its widest channel
    second = torch.randn(1, 2, 6, 3) * torch.tensor([1.0, 5.0]).view(1, 2, 1, 1)
    with pytest.raises(RuntimeError, match=r"unet\.proj has no activation range yet: calibrate"):
        layer(first)
    with mode(layer, "observe"):
        layer(first)
        layer(second)
    both = torch.cat([t.transpose(0, 1).flatten(1) for t in (first, second)], 1)
    assert torch.equal(layer.range.low, both.amin(1)) and torch.equal(layer.range.high, both.amax(1))
    layer, x = filled("3x3 padded")
    seen, ((low, high),) = layer.transformed_input(x), layer.input_ranges()
    torch.testing.assert_close((low, high), (seen.min(), seen.max()))


# -- halves -----------------------------------------------------------------------------------------------------------


def test_a_split_gives_each_half_of_the_channels_its_own_quantizers():
    for case in ("linear", "linear of a matrix", "linear of maps", "1x1", "3x3 padded", "dilated"):
        layer, x = filled(case, split=True, weight_bits=4, act_bits=4)
        disturb(layer.transform, spread=0.0)
        channels = x.shape[layer.dim]
        half = channels - channels // 2
        big = x.clone()
        big.narrow(layer.dim, half, channels - half).mul_(100)
        layer.range.clear()
        with mode(layer, "observe"):
            layer(big)
        padded = layer.pad(big)
        for start, length in ((0, half), (half, channels - half)):
            part, weight = padded.narrow(layer.dim, start, length), layer.layer.weight.narrow(1, start, length)
            expected = fake_quantize(part, part.min(), part.max(), 4)
            assert torch.equal(layer.quantized_input(big).narrow(layer.dim, start, length), expected), case
            dims = tuple(range(1, weight.ndim))
            expected = fake_quantize(weight, weight.amin(dims, True), weight.amax(dims, True), 4)
            assert torch.equal(layer.quantized_weight().narrow(1, start, length), expected), case
        whole, _ = filled(case, Slots(), weight_bits=4, act_bits=4)
        whole.range.set(layer.range.low, layer.range.high)
        errors = [(q.quantized_input(big) - padded).narrow(q.dim, 0, half).abs().mean() for q in (layer, whole)]
        assert errors[0] < errors[1] / 4, "the large half does not blur the small one"
    for case in WHOLE:
        layer, x = filled(case, split=True)
        assert len(layer.act_quantizers) == len(layer.weight_quantizers) == 1 and torch.isfinite(layer(x)).all()


# -- slots ------------------------------------------------------------------------------------------------------------


class Low(Slot):
    """A low-rank branch beside a layer, or with `plain` any tensor: the parameters are what `tag` trains."""

    tag = "low"

    def __init__(self, layer):
        super().__init__()
        weight = layer.layer.weight
        self.layer, self.shape = [layer], weight.shape
        self.down = nn.Parameter(0.1 * torch.randn(weight[0].numel(), 2))
        self.up = nn.Parameter(0.1 * torch.randn(2, len(weight)))

    def weight(self):
        return (self.down @ self.up).T.reshape(self.shape)

    def forward(self, x):
        return self.layer[0].operate(x, self.weight(), None)


class Constant(Slot):
    """A module without arguments -> a learned tensor."""

    tag = "constant"

    def __init__(self, *shape):
        super().__init__()
        self.value = nn.Parameter(0.1 * torch.randn(shape))

    def forward(self):
        return self.value


class Down(Slot):
    """Rounds towards the grid's lowest point, never to the nearest."""

    def forward(self, weight, step, base, bits):
        return ((weight - base) / step).floor().clamp(0, 2**bits - 1) * step + base


def operation(layer, x, weight, bias):
    """The layer's own operation on a padded input, written out."""
    return F.conv2d(x, weight, bias, layer.layer.stride) if layer.conv else x @ weight.T + (0 if bias is None else bias)


def minmax(x, bits, dims=None):
    dims = tuple(range(x.ndim)) if dims is None else dims
    return fake_quantize(x, x.amin(dims, True), x.amax(dims, True), bits)


@pytest.mark.parametrize("case", LINEAR_AND_CONV)
def test_an_empty_slot_costs_nothing_and_min_max_is_plain_fake_quantization(case):
    layer, x = filled(case, Slots(), weight_bits=4, act_bits=5)
    seen, dims = F.pad(x, (1, 1, 1, 1)) if layer.conv else x, tuple(range(1, layer.layer.weight.ndim))
    expected = operation(layer, minmax(seen, 5), minmax(layer.layer.weight, 4, dims), layer.layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)
    own = {name.rpartition(".")[0] for name in layer.state_dict()}
    assert own == {"layer", "range", "act_quantizers.0", "weight_quantizers.0"}
    assert trainable(layer, "transform") == {} and layer.frozen().scale is None


@pytest.mark.parametrize("case", LINEAR_AND_CONV)
def test_every_slot_does_what_the_formula_says(case):
    """y = op(Qa(T x), Qw(T W - branch + delta)) + branch(T x) + bias + alignment."""
    layer, x = filled(case, weight_bits=3, act_bits=4)
    weight, transform = layer.layer.weight, layer.transform
    plain = layer(x)
    layer.branch, layer.delta = Low(layer), Constant(*weight.shape)
    layer.alignment, layer.rounding = Constant(len(weight)), nn.ModuleList([Down()])
    shape = (1, -1, 1, 1) if layer.conv else (-1,)
    seen = F.pad(x, (1, 1, 1, 1)) if layer.conv else x
    seen = (seen - transform.shift.view(shape)) / transform.scale.view(shape)
    residual = weight * transform.scale.view(shape) - layer.branch.weight() + layer.delta.value
    dims = tuple(range(1, weight.ndim))
    low, high = residual.amin(dims, True).clamp_max(0), residual.amax(dims, True).clamp_min(0)
    step = (high - low) / 7
    zero = (low / step).round()
    rounded = step * ((residual / step - zero).floor().clamp(0, 7) + zero)
    left = weight.sum((2, 3)) @ transform.shift if layer.conv else weight @ transform.shift
    bias = layer.layer.bias + left + layer.alignment.value
    expected = operation(layer, minmax(seen, 4), rounded, bias) + operation(layer, seen, layer.branch.weight(), None)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert relative(layer(x), plain) > 1e-2
    assert trainable(layer, "low") == {1.0: [layer.branch.down, layer.branch.up]}
    assert trainable(layer, "constant") == {1.0: [layer.delta.value, layer.alignment.value]}
    layer.empty()
    assert not any(isinstance(m, Slot) for m in layer.modules()) and not layer.range.known


@pytest.mark.parametrize("split", [False, True])
def test_integers_give_the_layers_output_back(split):
    for case in LAYERS:
        layer, x = filled(case, split=split, weight_bits=4, act_bits=6)
        if case in LINEAR_AND_CONV:
            layer.branch, layer.delta = Low(layer), Constant(*layer.layer.weight.shape)
            layer.alignment = Constant(len(layer.layer.weight))
            layer.rounding = nn.ModuleList(Down() for _ in layer.sizes)
        frozen = layer.frozen()
        shape = (1, -1, 1, 1) if layer.conv else (-1,)
        seen = (layer.pad(x) - frozen.shift.view(shape)) / frozen.scale.view(shape)
        y = 0 if frozen.branch is None else frozen.branch(seen)
        for half, part in zip(frozen.halves, seen.split(frozen.sizes, layer.dim)):
            codes = (part / half.act_step - half.act_zero).round().clamp(0, 63)
            assert (
                half.weight_codes.dtype == torch.int32 and 0 <= half.weight_codes.min() <= half.weight_codes.max() < 16
            )
            assert half.act_zero == half.act_zero.round() and torch.equal(half.weight_zero, half.weight_zero.round())
            whole = layer.operate(codes + half.act_zero, half.weight_codes + half.weight_zero, None)
            column = half.weight_step.flatten().view(-1, 1, 1) if layer.conv else half.weight_step.flatten()
            y = y + whole * half.act_step * column
        y = y if frozen.bias is None else y + (frozen.bias.view(-1, 1, 1) if layer.conv else frozen.bias)
        assert len(frozen.halves) == 1 + (split and case not in WHOLE), case
        assert relative(y, layer(x)) < 1e-5, case


def test_integers_need_a_whole_zero_point():
    layer, _ = filled("linear", zero_point="real")
    with refused("unet.layer", "zero_point='integer'"):
        layer.frozen()


# -- modes ------------------------------------------------------------------------------------------------------------


def test_a_mode_holds_in_its_block_and_thread_only_and_ends_with_an_error():
    (first, x), (second, _) = filled("linear", weight_bits=2), filled("3x3")
    both, inside, seen = nn.ModuleList([first, second]), threading.Barrier(2, timeout=20), {}
    with mode(first, "float"):
        with pytest.raises(ZeroDivisionError), mode(both, "observe"):
            assert (first.mode, second.mode) == ("observe", "observe")
            raise ZeroDivisionError
        assert (first.mode, second.mode) == ("float", "quantized")
    assert first.mode == "quantized"

    def work(name):
        with mode(both, name):
            inside.wait()  # both threads are in their blocks
            seen[name] = first(x).detach()
            inside.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("float", "quantized")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(seen["float"], first.layer(x)) and torch.equal(seen["quantized"], first(x))
    assert relative(seen["quantized"], seen["float"]) > 1e-2
    with refused("'low'"):
        mode(both, "low").__enter__()
