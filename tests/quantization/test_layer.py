"""LET and the quantized layers: nothing changes in floating point, gradients, splits."""

import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from passionsr_lab.quantization.attention import QuantAttention
from passionsr_lab.quantization.filling import LET, Slots
from passionsr_lab.quantization.layer import QuantLayer, mode
from passionsr_lab.quantization.quantizer import fake_quantize
from passionsr_lab.quantization.recipe import LayerRecipe
from passionsr_lab.quantization.transform import EquivalentTransform
from passionsr_lab.util.compat import torchvision_importable

W8A8, W4A4 = LayerRecipe(8, 8), LayerRecipe(4, 4)
SPLIT = replace(W4A4, split=True)
# Layer and input shape: strides, paddings, dilations, groups, kernels, padding modes, odd sizes.
LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (2, 9, 7)),
    "linear without bias": (lambda: nn.Linear(7, 5, bias=False), (2, 9, 7)),
    "linear of a matrix": (lambda: nn.Linear(6, 4), (3, 6)),
    "linear of a vector": (lambda: nn.Linear(6, 4), (6,)),
    "linear of maps": (lambda: nn.Linear(6, 4), (2, 3, 5, 6)),
    "1x1": (lambda: nn.Conv2d(6, 5, 1), (2, 6, 9, 7)),
    "1x1 padded": (lambda: nn.Conv2d(6, 5, 1, padding=1), (2, 6, 9, 7)),
    "3x3": (lambda: nn.Conv2d(6, 5, 3), (2, 6, 9, 7)),
    "3x3 padded": (lambda: nn.Conv2d(6, 5, 3, padding=1), (2, 6, 9, 7)),
    "3x3 without bias": (lambda: nn.Conv2d(6, 5, 3, padding=1, bias=False), (2, 6, 9, 7)),
    "3x3 of one pixel": (lambda: nn.Conv2d(6, 5, 3, padding=1), (1, 6, 1, 1)),
    "down-sampling": (lambda: nn.Conv2d(6, 5, 3, stride=2, padding=1), (2, 6, 9, 7)),
    "down-sampling, padded outside": (lambda: nn.Conv2d(6, 5, 3, stride=2), (2, 6, 9, 7)),
    "wide padding": (lambda: nn.Conv2d(6, 5, 3, padding=4), (1, 6, 5, 4)),
    "uneven": (lambda: nn.Conv2d(6, 5, (3, 5), stride=(2, 1), padding=(0, 2)), (2, 6, 9, 7)),
    "dilated": (lambda: nn.Conv2d(6, 5, 3, padding=2, dilation=2), (2, 6, 9, 7)),
    "same": (lambda: nn.Conv2d(6, 5, (3, 5), padding="same"), (2, 6, 9, 7)),
    "valid": (lambda: nn.Conv2d(6, 5, 3, padding="valid"), (2, 6, 9, 7)),
    "groups": (lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2), (2, 6, 9, 7)),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=6), (2, 6, 9, 7)),
    "one channel": (lambda: nn.Conv2d(1, 3, 3, padding=1), (2, 1, 9, 7)),
    "reflect": (lambda: nn.Conv2d(6, 5, 3, padding=1, padding_mode="reflect"), (2, 6, 9, 7)),
    "replicate": (lambda: nn.Conv2d(6, 5, 3, padding=2, padding_mode="replicate"), (2, 6, 9, 7)),
    "circular": (lambda: nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular"), (2, 6, 9, 7)),
}


def filled(layer, setting, name="layer"):
    """A quantized layer with LET's slots."""
    own = QuantLayer(layer, name, setting)
    LET().fill(own)
    return own


def disturb(transform, seed=0, spread=1.0):
    """Any scale and, where it is learned, any shift."""
    g = torch.Generator().manual_seed(seed)
    transform.log_scale.data = spread * torch.randn(transform.log_scale.shape, generator=g).to(transform.log_scale)
    transform.reach.copy_(torch.rand(transform.reach.shape, generator=g) + 0.5)
    if transform.offset.requires_grad:
        transform.offset.data = spread * torch.randn(transform.offset.shape, generator=g).to(transform.offset)


def prepared(case, recipe=W8A8, seed=0, dtype=torch.float32):
    """A quantized layer that has seen its input and has a random scale and shift, and the input."""
    torch.manual_seed(seed)
    make, shape = LAYERS[case]
    layer, x = filled(make(), recipe, "layer").to(dtype), torch.randn(shape, dtype=dtype) + 0.5
    with mode(layer, "observe"):
        layer(x)
    disturb(layer.transform, seed)
    return layer, x


def relative(ours, expected):
    assert ours.shape == expected.shape
    return ((ours - expected).abs().max() / expected.abs().max()).item()


# -- LET changes nothing in floating point ----------------------------------------------------------------------------


def test_scale_and_shift_leave_the_output_of_every_kind_of_layer_unchanged(without_rounding):
    for seed, case in enumerate(LAYERS):
        layer, x = prepared(case, seed=seed)
        assert relative(without_rounding(layer)(x), layer.layer(x)) < 1e-5, case


def test_the_zero_padded_border_is_exact(without_rounding):
    layer, x = prepared("3x3 padded")
    ours, expected = without_rounding(layer)(x), layer.layer(x)
    border = torch.ones_like(expected, dtype=torch.bool)
    border[..., 1:-1, 1:-1] = False
    assert relative(ours[border], expected[border]) < 1e-5
    naive = nn.functional.conv2d(layer.transform(x, 1), layer.transformed_weight(), layer.bias(), padding=1)
    assert relative(naive, expected) > 1e-2, "padding after the shift would be wrong, so this test can see it"


def test_the_layer_with_all_its_quantizers_approaches_the_float_layer_at_16_bits():
    for case in LAYERS:
        layer, x = prepared(case, LayerRecipe(16, 16))
        assert relative(layer(x), layer.layer(x)) < 3e-3, case
        for name in ("float", "observe"):
            with mode(layer, name):
                assert torch.equal(layer(x), layer.layer(x)), case


def attention(kind, **options):
    """An attention of diffusers, as UNets and VAEs build them, and its arguments (hidden states, context)."""
    torchvision_importable()
    from diffusers.models.attention_processor import Attention

    if kind == "self":
        return Attention(12, heads=3, dim_head=4, **options), torch.randn(2, 10, 12), None
    if kind == "cross":
        return Attention(12, 7, heads=2, dim_head=5, **options), torch.randn(2, 10, 12), torch.randn(2, 6, 7)
    options = {"residual_connection": True, "norm_num_groups": 4, "bias": True, "rescale_output_factor": 1.5} | options
    return Attention(8, heads=1, dim_head=8, **options), torch.randn(2, 8, 5, 3), None


def with_quantized(attn, recipe=W8A8, seed=0, calls=()):
    """Puts a quantized processor with random scales into an attention that has seen the calls' arguments."""
    processor = QuantAttention.of(attn, "attention", recipe)
    LET().fill(processor)
    attn.set_processor(processor)
    with mode(attn, "observe"):
        for x, context in calls:
            attn(x, context)
    disturb(processor.transform_qk, seed)
    disturb(processor.transform_v, seed + 1)
    return processor


@pytest.mark.parametrize("kind", ["self", "cross", "vae"])
@torch.no_grad()
def test_scales_of_q_k_and_v_leave_the_output_of_attention_unchanged(kind, without_rounding, seed=0):
    torch.manual_seed(seed)
    attn, x, context = attention(kind)
    expected = attn(x, context)
    with_quantized(attn, seed=seed, calls=[(x, context)])
    assert relative(without_rounding(attn)(x, context), expected) < 1e-5
    with mode(attn, "float"):
        assert torch.equal(attn(x, context), expected)


@pytest.mark.parametrize("tokens", [1, 2, 33])
@torch.no_grad()
def test_attention_calibrated_on_some_tokens_takes_any_number(tokens, without_rounding):
    torch.manual_seed(0)
    attn, x, _ = attention("self")
    longer = torch.randn(1, tokens, 12)
    expected = attn(longer)
    with_quantized(attn, replace(W8A8, act_bits=16), calls=[(x, None), (longer, None)])
    assert relative(without_rounding(attn)(longer), expected) < 1e-5
    assert relative(attn(longer), expected) < 3e-3, "with all its quantizers"


@torch.no_grad()
def test_attention_in_chunks_of_queries_is_attention(without_rounding):
    torch.manual_seed(0)
    attn, _, _ = attention("self")
    x = torch.randn(1, 2200, 12)
    expected = attn(x)
    processor = with_quantized(attn, calls=[(x, None)])
    assert 2200 * 2200 * attn.heads > 2**23, "one chunk only"
    assert relative(without_rounding(attn)(x), expected) < 1e-5
    assert 0 < processor.ranges["p"].high.item() <= 1


@pytest.mark.parametrize("rows", [1, 10])
@torch.no_grad()
def test_attention_masks_are_obeyed(rows, without_rounding):
    torch.manual_seed(0)
    attn, x, context = attention("cross")
    mask = torch.where(torch.rand(2, rows, 6) < 0.5, 0.0, -1e4)
    mask[..., 0] = 0
    expected = attn(x, context, attention_mask=mask)
    assert relative(attn(x, context), expected) > 1e-2
    with_quantized(attn, calls=[(x, context)])
    assert relative(without_rounding(attn)(x, context, attention_mask=mask), expected) < 1e-5


@torch.no_grad()
def test_let_leaves_the_whole_pipeline_unchanged(pipe, pairs, calibrated, without_rounding):
    q = without_rounding(calibrated("W6A6"))
    transforms = [m for m in q.modules() if isinstance(m, EquivalentTransform)]
    for seed, transform in enumerate(transforms):
        disturb(transform, seed, 0.5)
    x = pipe.prepare(pairs[0].lr[None])
    assert len(transforms) > 50
    for step in ("encode", "noise", "decode"):
        assert relative(getattr(q, step)(x), getattr(pipe, step)(x)) < 1e-5
        x = pipe.encode(x) if step == "encode" else x


# -- LET's start ------------------------------------------------------------------------------------------------------


def test_the_start_is_smoothquants_up_to_a_common_factor():
    low, high = torch.tensor([-1.0, -4.0, 0.0]), torch.tensor([0.5, 2.0, 16.0])
    partner = torch.tensor([0.5, 2.0, 1.0])
    transform = EquivalentTransform(3)
    transform.start(low, high, partner, 0.5, 0.25, False)
    expected = torch.tensor([1.0, 4.0, 16.0]) ** 0.5 / partner**0.25
    ratio = transform.scale / expected
    torch.testing.assert_close(ratio, ratio[:1].expand(3))
    assert transform.shift.tolist() == [0, 0, 0]


def test_a_centred_start_makes_every_channel_symmetric():
    low, high = torch.tensor([-1.0, 3.0]), torch.tensor([5.0, 4.0])
    transform = EquivalentTransform(2)
    transform.start(low, high, torch.ones(2), 0.5, 0.5, True)
    torch.testing.assert_close(transform(low, 0), -transform(high, 0))
    torch.testing.assert_close(transform.scale[0] / transform.scale[1], torch.tensor(6.0).sqrt())  # half ranges 3, 0.5


def test_the_start_brings_channels_of_unlike_ranges_together():
    torch.manual_seed(0)
    layer = filled(nn.Linear(8, 6), W8A8, "layer")
    x = torch.randn(50, 8) * torch.logspace(-2, 2, 8)
    with mode(layer, "observe"):
        layer(x)

    def spread():
        amax = layer.transformed_input(x).abs().amax(0)
        return (amax.max() / amax.min()).item()

    before, error = spread(), relative(layer(x), layer.layer(x))
    LET().start(layer)
    assert spread() < before / 10
    assert relative(layer(x), layer.layer(x)) < error


def test_a_dead_channel_starts_at_a_finite_scale():
    transform = EquivalentTransform(3)
    transform.start(torch.zeros(3), torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 1.0]), 0.5, 0.5, True)
    assert torch.isfinite(transform.scale).all() and (transform.scale > 0).all()
    assert torch.isfinite(transform(torch.ones(3), 0)).all()


# -- ranges -----------------------------------------------------------------------------------------------------------


def test_ranges_are_per_channel_and_grow_with_every_call():
    layer = filled(nn.Conv2d(2, 3, 1), W8A8, "layer")
    first = torch.randn(2, 2, 4, 5) * torch.tensor([5.0, 1.0]).view(1, 2, 1, 1)  # each call has its widest channel
    second = torch.randn(1, 2, 6, 3) * torch.tensor([1.0, 5.0]).view(1, 2, 1, 1)
    with mode(layer, "observe"):
        layer(first)
        layer(second)
    both = torch.cat([t.transpose(0, 1).flatten(1) for t in (first, second)], 1)
    assert torch.equal(layer.range.low, both.amin(1)) and torch.equal(layer.range.high, both.amax(1))


def test_a_layer_that_has_seen_nothing_says_so():
    layer = filled(nn.Linear(4, 4), W8A8, "unet.proj")
    with pytest.raises(RuntimeError, match=r"unet\.proj has no activation range yet: calibrate"):
        layer(torch.randn(2, 4))


def test_the_observed_range_covers_the_transformed_input_with_its_padding():
    layer, x = prepared("3x3 padded")
    x_ = layer.transformed_input(x)
    ((low, high),) = layer.input_ranges()
    torch.testing.assert_close(low, x_.min())
    torch.testing.assert_close(high, x_.max())


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_point", ["integer", "real"])
@pytest.mark.parametrize("case", ["linear", "3x3 padded", "down-sampling", "groups"])
def test_scale_shift_and_boundaries_have_the_gradient_of_the_smooth_part(case, zero_point, frozen, slopes):
    layer, x = prepared(case, replace(W4A4, zero_point=zero_point), dtype=torch.float64)
    for quantizer in (*layer.act_quantizers, *layer.weight_quantizers):
        quantizer.trim.data = 0.15 * torch.rand_like(quantizer.trim)
    smooth = frozen(layer)
    target = torch.randn_like(layer(x))
    torch.testing.assert_close(smooth(x), layer(x), rtol=1e-9, atol=1e-9)
    assert relative(layer(x), layer.layer(x)) > 1e-3, "nothing was rounded"
    (layer(x) - target).square().sum().backward()

    def loss():
        return (smooth(x) - target).square().sum()

    watched = [
        (layer.transform.log_scale, smooth.transform.log_scale),
        (layer.transform.offset, smooth.transform.offset),
        (layer.act_quantizers[0].trim, smooth.act_quantizers[0].quantizer.trim),
        (layer.weight_quantizers[0].trim, smooth.weight_quantizers[0].quantizer.trim),
    ]
    for ours, theirs in watched:
        indices, expected = slopes(loss, theirs)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(ours.grad.flatten()[indices], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_the_scales_of_attention_have_the_gradient_of_the_smooth_part(kind, frozen, slopes):
    torch.manual_seed(0)
    attn, x, context = attention(kind)
    attn, x = attn.double(), x.double()
    context = None if context is None else context.double()
    processor = with_quantized(attn, W4A4, calls=[(x, context)]).double()
    smooth = frozen(attn)
    smooth(x, context)
    target = torch.randn_like(x)
    (attn(x, context) - target).square().sum().backward()

    def loss():
        return (smooth(x, context) - target).square().sum()

    for name in ("transform_qk", "transform_v"):
        indices, expected = slopes(loss, getattr(smooth.processor, name).log_scale)
        assert expected.abs().max() > 1e-3
        gradient = getattr(processor, name).log_scale.grad.flatten()[indices]
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


# -- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["linear", "linear of a matrix", "linear of maps", "1x1", "3x3 padded", "dilated"])
def test_a_split_gives_each_half_of_the_channels_its_own_quantizers(case):
    layer, x = prepared(case, SPLIT)
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
        part = padded.narrow(layer.dim, start, length)
        expected = fake_quantize(part, part.min(), part.max(), 4)
        assert torch.equal(layer.quantized_input(big).narrow(layer.dim, start, length), expected)
        weight = layer.layer.weight.narrow(1, start, length)
        dims = tuple(range(1, weight.ndim))
        expected = fake_quantize(weight, weight.amin(dims, True), weight.amax(dims, True), 4)
        assert torch.equal(layer.quantized_weight().narrow(1, start, length), expected)


def test_a_split_saves_the_small_half_from_the_large_one():
    torch.manual_seed(0)
    x = torch.randn(40, 8) * torch.tensor([1.0] * 4 + [100.0] * 4)
    errors = {}
    for split in (False, True):
        layer = filled(nn.Linear(8, 5), replace(W4A4, split=split), "layer")
        with mode(layer, "observe"):
            layer(x)
        errors[split] = (layer.quantized_input(x) - x)[:, :4].abs().mean().item()
    assert errors[True] < errors[False] / 4


@pytest.mark.parametrize("case", ["groups", "depthwise", "one channel"])
def test_what_has_no_two_halves_is_not_split(case):
    layer, x = prepared(case, SPLIT)
    assert len(layer.act_quantizers) == len(layer.weight_quantizers) == 1
    assert torch.isfinite(layer(x)).all()


# -- slots and integers -----------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A slot that gives, or adds, one tensor."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, *args):
        return self.value

    def weight(self):
        return self.value


class Low(Plain):
    """A branch with a full weight, in float."""

    def __init__(self, layer, value):
        super().__init__(value)
        self.operate = layer.operate

    def forward(self, seen):
        return self.operate(seen, self.value, None)


class Down(nn.Module):
    """Rounds down."""

    def forward(self, weight, step, base, bits):
        return ((weight - base) / step).floor().clamp(0, 2**bits - 1) * step + base


def test_an_empty_slot_costs_nothing_and_a_filled_one_does_what_it_says():
    for case in ("linear", "3x3 padded"):
        torch.manual_seed(0)
        make, shape = LAYERS[case]
        layer, x = QuantLayer(make(), "layer", W4A4), torch.randn(shape)
        Slots().fill(layer)
        with mode(layer, "observe"):
            layer(x)
        names = {key.partition(".")[0] for key in layer.state_dict()}
        assert names == {"layer", "range", "act_quantizers", "weight_quantizers"}
        weight, bias, padded = layer.layer.weight, layer.layer.bias, layer.pad(x)
        dims, seen = tuple(range(1, weight.ndim)), fake_quantize(padded, padded.min(), padded.max(), 4)

        def on_grid(w, dims=dims):
            return fake_quantize(w, w.amin(dims, True), w.amax(dims, True), 4)

        assert torch.equal(layer(x), layer.operate(seen, on_grid(weight), bias))
        layer.delta = Plain(0.3 * torch.randn_like(weight))
        assert torch.equal(layer(x), layer.operate(seen, on_grid(weight + layer.delta.value), bias))
        layer.branch = Low(layer, 0.5 * weight.detach())
        rest = on_grid(weight - layer.branch.value + layer.delta.value)
        expected = layer.operate(seen, rest, bias) + layer.operate(padded, layer.branch.value, None)
        assert torch.equal(layer(x), expected)
        layer.alignment = Plain(torch.randn_like(bias))
        torch.testing.assert_close(layer(x), expected + layer.alignment.value.view(-1, *dims[1:] and (1, 1)))
        layer.rounding = nn.ModuleList([Down()])
        residual, (span,) = layer.residual_weight(), layer.weight_ranges()
        assert torch.equal(layer.quantized_weight(), Down()(residual, *layer.weight_quantizers[0].grid(*span), 4))
        layer.empty()
        assert {key.partition(".")[0] for key in layer.state_dict()} == {"layer", "range"} and not layer.range.known


def test_integers_and_what_stays_in_float_give_the_layers_output_again():
    for case in ("linear", "3x3 padded", "down-sampling", "1x1"):
        for setting in (W4A4, SPLIT):
            layer, x = prepared(case, setting)
            frozen, padded = layer.frozen(), layer.pad(x)
            shape = [1] * x.ndim
            shape[layer.dim] = -1
            seen = (padded - frozen.shift.view(shape)) / frozen.scale.view(shape)
            out = 0
            for half, part, i in zip(frozen.halves, seen.split(frozen.sizes, layer.dim), (0, 1)):
                codes = (part / half.act_step).round() - half.act_zero
                codes = codes.clamp(0, 2**setting.act_bits - 1) + half.act_zero
                weight = (half.weight_codes + half.weight_zero) * half.weight_step
                out = out + layer.operate(codes * half.act_step, weight, frozen.bias if i == 0 else None)
                assert half.weight_codes.min() >= 0 and half.weight_codes.max() < 2**setting.weight_bits
            assert relative(out, layer(x)) < 1e-4, case
    layer, x = prepared("linear", replace(W4A4, zero_point="real"))
    with pytest.raises(ValueError, match="integers need a recipe with zero_point='integer'"):
        layer.frozen()


def test_a_mode_is_seen_by_its_own_thread_only():
    layer, _ = prepared("linear", W4A4)
    seen = {}
    with mode(layer, "float"):
        thread = threading.Thread(target=lambda: seen.update(mode=layer.mode))
        thread.start()
        thread.join()
        with pytest.raises(ZeroDivisionError), mode(layer, "observe"):
            raise ZeroDivisionError
        assert (layer.mode, seen["mode"]) == ("float", "quantized")
    assert layer.mode == "quantized"
    with pytest.raises(ValueError, match="'low'"):
        mode(layer, "low").__enter__()
