"""What the numbers of a released file mean: the released code's arithmetic from its description, and the paper's."""

import pytest
import torch
import torch.nn.functional as F
from released import small_sd21

from passionsr_lab.analysis.observe import observing
from passionsr_lab.fullsize.names import diffusers_name
from passionsr_lab.methods import calibrate
from passionsr_lab.official import released as official
from passionsr_lab.official.layers import fake_quantize
from passionsr_lab.quantization.layer import mode
from passionsr_lab.quantization.place import quantized_layers, unquantize
from passionsr_lab.widgets.layers import boundaries, layer_figure


@pytest.fixture(scope="module")
def contents(files):
    """The tensors of the UNet's and the VAE's file, without prefix."""
    read = lambda path: {k.removeprefix("model.model."): v for k, v in torch.load(path, weights_only=True).items()}
    return dict(zip(("unet", "vae"), map(read, files)))


def rounded(x):
    return torch.where(x < 0, -torch.floor(-x + 0.5), torch.floor(x + 0.5))


def on_grid(x, bounds, bits=8):
    """The released code's quantizer, from its description, in float64."""
    lower, upper = (b.double() for b in bounds)
    step = (upper - lower) / (2**bits - 1)
    zero = rounded(lower / step)
    return (torch.clamp(rounded(x.double() / step) - zero, 0, 2**bits - 1) + zero) * step


def bounds(file, key, kind):
    return file[f"{key}.{kind}.x_min"], file[f"{key}.{kind}.x_max"]


def same_but_ties(a, b):
    """Equal but where a value stood on the edge between two codes, which moves a channel or a patch a little."""
    apart = (a - b).abs().flatten().double()
    return apart.quantile(0.25) < 1e-5 * b.abs().max() and apart.square().mean() < 1e-3 * b.double().square().mean()


def test_halves_are_rounded_away_from_zero_and_the_zero_point_is_whole():
    lower, upper = torch.tensor(-1.0), torch.tensor(2.0)  # a step of 1, its codes -1 to 2
    x = torch.tensor([-9.0, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 9.0])
    assert fake_quantize(x, lower, upper, 2).tolist() == [-1, -1, -1, 0, 1, 2, 2, 2]
    assert fake_quantize(x, lower - 0.4, upper - 0.4, 2).tolist() == [-1, -1, -1, 0, 1, 2, 2, 2]
    assert fake_quantize(x, lower + 3.0, upper + 3.0, 2).tolist() == [2, 2, 2, 2, 2, 2, 3, 5], "without zero"


LAYERS = {  # ldm name: part, shape of an input
    "encoder.down.0.block.0.conv1": ("vae", (2, 8, 6, 5)),
    "encoder.down.0.downsample.conv": ("vae", (2, 8, 9, 7)),
    "decoder.mid.attn_1.k": ("vae", (2, 7, 24)),
    "input_blocks.0.0": ("unet", (2, 4, 6, 5)),
    "input_blocks.4.0.skip_connection": ("unet", (2, 8, 4, 4)),
    "input_blocks.4.0.emb_layers.1": ("unet", (2, 32)),
    "middle_block.1.transformer_blocks.0.attn2.to_k": ("unet", (2, 5, 12)),
    "output_blocks.3.1.transformer_blocks.0.ff.net.2": ("unet", (2, 9, 96)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_official_layer_computes_what_the_released_code_computes(released, contents, name):
    part, shape = LAYERS[name]
    layer, file = quantized_layers(released["official"])[f"{part}.{diffusers_name(name)}"].layer, contents[part]
    conv, linear = layer.weight.ndim == 4, part == "unet" and layer.weight.ndim == 2
    x, weight = torch.randn(shape), layer.weight.double()
    s, offset = (file[f"{name}.{k}"].double().flatten() for k in ("scale_factor", "offset"))
    along = (lambda t: t.view(1, -1, 1, 1)) if conv else (lambda t: t)
    moved = (x + (offset if linear else -along(offset))) / along(s)  # Linear layers of the UNet: the wrong sign

    def quantized(t, kind, shaped=lambda b: b):
        """By halves in the UNet: of channels; of tokens in a Linear layer's input that has some."""
        halves = t.tensor_split([t.shape[1] // 2], 1) if part == "unet" else [t]
        told = [[shaped(b) for b in bounds(file, name, f"{kind}_quantizer_{i}")] for i in range(len(halves))]
        return torch.cat([on_grid(*pair) for pair in zip(halves, told)], 1)

    xq = quantized(moved, "act")
    wq = quantized(weight * along(s), "weight", lambda b: b.view(-1, *[1] * (weight.ndim - 1)))
    bq = None if layer.bias is None else on_grid(layer.bias, bounds(file, name, "bias_quantizer"))
    if conv:
        how, plane = (layer.stride, layer.padding), along(offset).expand(1, -1, *x.shape[2:])
        expected = F.conv2d(xq, wq, bq, *how) + F.conv2d(plane, weight, None, *how)
    else:
        expected = F.linear(xq, wq, bq) + weight @ offset
    ours = quantized_layers(released["official"])[f"{part}.{diffusers_name(name)}"](x)
    assert same_but_ties(ours.double(), expected)


def test_the_official_attention_computes_what_the_released_code_computes(released, contents):
    name, file = "input_blocks.4.1.transformer_blocks.0.attn1", contents["unet"]
    layer = quantized_layers(released["official"])[f"unet.{diffusers_name(name)}"]
    q, k, v = torch.randn(3, 2, 16, 16).unbind()  # 16 tokens of a 4x4 latent, 2 heads of 8
    heads = lambda t: t.double().view(2, 16, 2, 8).transpose(1, 2)
    s_qk, s_vw = file[f"{name}.scale_factor_qk"].double(), file[f"{name}.scale_factor_vw"].double()
    quantized = lambda t, key: on_grid(t, bounds(file, name, f"act_quantizer_{key}"))
    scores = quantized(heads(q) * s_qk, "q") @ quantized(heads(k) / s_qk, "k").transpose(-1, -2) / 8**0.5
    p = quantized(scores.softmax(-1) * s_vw, "w")
    expected = (p @ quantized(heads(v) / s_vw[:, None], "v")).transpose(1, 2).reshape(2, 16, 16)
    assert same_but_ties(layer.product(q, k, v, 2, 8**-0.5).double(), expected)
    with pytest.raises(ValueError, match="calibrated for 16 key tokens and gets 9"):
        layer.product(q[:, :9], k[:, :9], v[:, :9], 2, 8**-0.5)


def test_both_numerics_run_and_only_the_papers_takes_other_sizes(released):
    square, wide = torch.rand(3, 16, 16), torch.rand(3, 16, 24)
    assert released["official"](square).shape == released["paper"](square).shape == (3, 64, 64)
    assert torch.isfinite(released["paper"](wide)).all()
    with pytest.raises(ValueError, match="ties the UNet to one latent size"):
        released["official"](wide)


@torch.no_grad()
@pytest.mark.parametrize("numerics", ["official", "paper"])
def test_bounds_and_scales_are_the_files_and_what_the_explorer_shows(released, contents, numerics):
    q, layers, seen = released[numerics], quantized_layers(released[numerics]), 0
    for part, file in contents.items():
        for key, scale in file.items():
            if not key.endswith(".scale_factor"):
                continue
            key, seen = key.removesuffix(".scale_factor"), seen + 1
            layer = layers[f"{part}.{diffusers_name(key)}"]
            torch.testing.assert_close(layer.transform.scale, scale.flatten(), rtol=1e-6, atol=0)
            if seen % 7:
                continue
            wanted = torch.tensor([bounds(file, key, f"act_quantizer_{i}") for i in range(1 + (part == "unet"))])
            if numerics == "paper" and part == "unet" and not layer.conv:  # halves of channels, not of tokens
                wanted = torch.stack([wanted.amin(0)[0], wanted.amax(0)[1]]).expand(2, 2)
            bits, found = boundaries(q, layer.name)
            assert bits == 8 and torch.allclose(torch.tensor(found), wanted, rtol=1e-5, atol=1e-6), key
    assert seen == 282 + 72


def test_activations_after_let_are_observed_in_both(released):
    for q in released.values():
        with observing(q) as stats:
            q(torch.rand(3, 16, 16))
        assert len(stats.layers(after=True)) == 282 + 72 + 3 * 32
        before, after = (torch.tensor(stats.channels("unet.conv_out", after=a).high.to_numpy()) for a in (False, True))
        let = quantized_layers(q)["unet.conv_out"].transform
        torch.testing.assert_close(after, ((before - let.shift) / let.scale).double(), rtol=1e-4, atol=1e-5)
        assert len(layer_figure(stats, "vae.encoder.mid_block.attentions.0.to_q", q).axes) >= 4


def test_the_papers_layers_are_equivalent_where_the_released_ones_are_not(released, without_rounding):
    """The float output survives LET here; the released Linear layers are off by twice their shift."""
    for name, shape in (
        ("input_blocks.4.0.in_layers.2", (2, 8, 6, 6)),
        ("output_blocks.3.1.transformer_blocks.0.ff.net.2", (2, 9, 96)),
    ):
        ours, theirs = (quantized_layers(released[n])[f"unet.{diffusers_name(name)}"] for n in ("paper", "official"))
        x = torch.randn(shape)
        torch.testing.assert_close(without_rounding(ours)(x), ours.layer(x), rtol=1e-4, atol=1e-5)
    shift = theirs.layer.weight @ theirs.transform.offset
    plain = F.linear(theirs.transform(x, -1), theirs.transformed_weight(), theirs.layer.bias) + shift
    torch.testing.assert_close(plain - ours.layer(x), (2 * shift).expand_as(plain), rtol=1e-3, atol=1e-5)
    assert shift.abs().max() > 1e-3


def test_without_shift_and_bias_a_convolution_is_the_same_in_both(small, files, tmp_path):
    content = torch.load(files[1], weights_only=True)
    content |= {k: torch.zeros_like(v) for k, v in content.items() if k.endswith(".offset")}
    torch.save(content, tmp_path / "vae_W8A8.pth")
    files = [tmp_path / "vae_W8A8.pth"]
    ours, theirs = (official.load_released(small, files, numerics=n) for n in ("paper", "official"))
    assert len(quantized_layers(theirs)) == 72
    for name, layer in quantized_layers(theirs).items():
        layer.bias_quantizer = torch.nn.Identity()
        x = torch.randn((1, len(layer.range.low), 6, 6) if layer.conv else (1, 9, len(layer.range.low)))
        assert same_but_ties(quantized_layers(ours)[name](x), layer(x)), name


def test_the_corrections_are_listed_where_they_apply_and_the_released_arithmetic_is_not_trained(released, pairs):
    assert released["paper"].history["corrections"] == official.CORRECTIONS and len(official.CORRECTIONS) >= 6
    assert "corrections" not in released["official"].history
    assert [q.method.name for q in released.values()] == ["released", "released-corrected"]
    with pytest.raises(ValueError, match="runs a released file; unquantize"):
        calibrate(released["official"], pairs)


def test_the_float_model_is_untouched_and_comes_back(small, released):
    x = torch.rand(3, 16, 16)
    expected = small_sd21()(x)
    for q in released.values():
        assert torch.equal(small(x), expected) and torch.equal(unquantize(q)(x), expected)
        with mode(q, "float"):
            assert torch.equal(q(x), expected)
