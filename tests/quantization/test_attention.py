"""The two products of attention: LET is exact, any number of tokens, masks, gradients, 16 bits."""

import pytest
import torch
from filled import disturb, relative
from torch import nn

from passionsr_lab.quantization.attention import QuantAttention
from passionsr_lab.quantization.filling import LET, Slots
from passionsr_lab.quantization.layer import mode
from passionsr_lab.quantization.quantizer import BoundaryQuantizer, fake_quantize
from passionsr_lab.quantization.recipe import LayerRecipe
from passionsr_lab.quantization.slots import Slot
from passionsr_lab.util.compat import torchvision_importable

KINDS, SCALES = ("self", "cross", "vae"), ("transform_qk", "transform_v")


def attention(kind):
    """An attention of diffusers, as UNets and VAEs build them, and its arguments (hidden states, context)."""
    torchvision_importable()
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    if kind == "self":
        return Attention(12, heads=3, dim_head=4), torch.randn(2, 10, 12), None
    if kind == "cross":
        return Attention(12, 7, heads=2, dim_head=5), torch.randn(2, 10, 12), torch.randn(2, 6, 7)
    options = {"residual_connection": True, "norm_num_groups": 4, "bias": True, "rescale_output_factor": 1.5}
    return Attention(8, heads=1, dim_head=8, **options), torch.randn(2, 8, 5, 3), None


def quantized(attn, *calls, bits=8, slots=None):
    """Puts a processor with random scales into an attention that has seen the calls' arguments."""
    processor = QuantAttention.of(attn, "unet.attention", LayerRecipe(bits, bits))
    attn.set_processor(processor)
    (slots or LET()).fill(processor)
    with mode(attn, "observe"), torch.no_grad():
        for x, context in calls:
            attn(x, context)
    if processor.transform_qk is not None:
        disturb(processor.transform_qk, 0)
        disturb(processor.transform_v, 1)
    return processor.to(calls[0][0].dtype)


@torch.no_grad()
def test_scales_of_q_k_and_v_leave_attention_as_it_is_and_16_bits_come_close(without_rounding):
    for kind in KINDS:
        attn, x, context = attention(kind)
        expected = attn(x, context)
        quantized(attn, (x, context), bits=16)
        assert relative(without_rounding(attn)(x, context), expected) < 1e-5, kind
        assert relative(attn(x, context), expected) < 3e-3, kind
        with mode(attn, "float"):
            assert torch.equal(attn(x, context), expected), kind


@torch.no_grad()
def test_attention_calibrated_on_some_tokens_takes_any_number_in_chunks_of_queries(without_rounding):
    for tokens in (1, 2, 33, 2200):
        attn, x, _ = attention("self")
        longer = torch.randn(1, tokens, 12)
        expected = attn(longer)
        processor = quantized(attn, (x, None), (longer, None), bits=16)
        assert relative(without_rounding(attn)(longer), expected) < 1e-5
        assert relative(attn(longer), expected) < 3e-3
    assert 2200 * 2200 * attn.heads > 2**23, "one chunk only"
    assert 0 < processor.ranges["p"].high.item() <= 1


@torch.no_grad()
def test_masks_are_obeyed(without_rounding):
    for rows in (1, 10):
        attn, x, context = attention("cross")
        mask = torch.where(torch.rand(2, rows, 6) < 0.5, 0.0, -1e4)
        mask[..., 0] = 0
        expected = attn(x, context, attention_mask=mask)
        assert relative(attn(x, context), expected) > 1e-2
        quantized(attn, (x, context))
        assert relative(without_rounding(attn)(x, context, attention_mask=mask), expected) < 1e-5


@torch.no_grad()
def test_the_products_are_those_of_fake_quantized_factors_and_an_empty_slot_costs_nothing():
    attn, x, _ = attention("self")
    processor, (q, k, v) = quantized(attn, (x, None), bits=3, slots=Slots()), torch.randn(3, 2, 5, 12)
    processor.empty()
    Slots().fill(processor)
    with mode(processor, "observe"):
        processor.product(q, k, v, 1, 0.5)

    def rounded(x):
        return fake_quantize(x, x.min(), x.max(), 3)

    p = (rounded(q) @ rounded(k).transpose(-1, -2) * 0.5).softmax(-1)
    high = processor.ranges["p"].high[0]
    expected = fake_quantize(p, torch.zeros(()), high, 3) @ rounded(v)
    torch.testing.assert_close(processor.product(q, k, v, 1, 0.5), expected)
    own = {name.partition(".")[0] for name in processor.state_dict()}
    assert own == {"ranges", "quantizers"} and all(
        m.tag == "bounds" for m in processor.modules() if isinstance(m, Slot)
    )


def test_scales_and_boundaries_have_the_gradient_of_the_smooth_part(frozen, slopes):
    for kind in ("self", "cross"):
        attn, x, context = attention(kind)
        attn, x, context = attn.double(), x.double(), None if context is None else context.double()
        processor = quantized(attn, (x, context), bits=4).double()
        for quantizer in processor.quantizers.values():
            quantizer.trim.data = torch.tensor([-0.05, 0.1]).double()
        smooth = frozen(attn)
        smooth(x, context)
        target = torch.randn_like(x)
        (attn(x, context) - target).square().sum().backward()
        pairs = [(getattr(p, name).log_scale for p in (processor, smooth.processor)) for name in SCALES]
        pairs += [(processor.quantizers[key].trim, smooth.processor.quantizers[key].quantizer.trim) for key in "qkvp"]
        for ours, theirs in pairs:
            indices, expected = slopes(lambda: (smooth(x, context) - target).square().sum(), theirs)  # noqa: B023
            assert expected.abs().max() > 1e-3
            torch.testing.assert_close(ours.grad.flatten()[indices], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("slots", [Slots(), LET()], ids=["lbq", "let"])
def test_slots_are_filled_where_the_attention_is_now(slots):
    attn, x, _ = attention("self")
    processor = quantized(attn, (x, None), slots=slots).to("meta")
    processor.empty()
    slots.fill(processor)
    made = [m for m in processor.modules() if isinstance(m, (BoundaryQuantizer, nn.ModuleDict))]
    assert len(made) >= 5 and all(p.is_meta for p in processor.parameters())
