"""PassionSR's released files: everything in them has its place, means what it meant there, and comes out again."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from released import TOKENS, release, small_sd21

from passionsr_lab import plots
from passionsr_lab.analysis.observe import observing
from passionsr_lab.calibration.loop import calibrate
from passionsr_lab.fullsize.names import diffusers_name
from passionsr_lab.fullsize.sd21 import VAE, sd21
from passionsr_lab.imaging.pairs import bundled
from passionsr_lab.imaging.psnr import psnr_rgb
from passionsr_lab.official import released as official
from passionsr_lab.official.layers import fake_quantize
from passionsr_lab.quantization.layer import QuantLayer
from passionsr_lab.quantization.recipe import W6A6, W8A8
from passionsr_lab.quantization.surgery import (
    layer_table,
    load,
    mode,
    parts,
    quantize,
    quantized_layers,
    save,
    unquantize,
)
from passionsr_lab.widgets.explore import boundaries, layer_figure

REAL = Path(__file__).parents[3] / "shared" / "data" / "passionsr_official" / "vae_ckpt_merge_saw_sep_W8A8.pth"
real_file = pytest.mark.skipif(not REAL.is_file(), reason="the released VAE file is not there")


@pytest.fixture(scope="module")
def small():
    return small_sd21()


@pytest.fixture(scope="module")
def files(small, tmp_path_factory):
    """Paths of a UNet file with split quantizers and a VAE file without."""
    folder = tmp_path_factory.mktemp("released")
    paths = []
    for part, split in (("unet", True), ("vae", False)):
        paths.append(folder / f"{part}_ckpt_merge_saw_sep_W8A8.pth")
        torch.save(release(small, part, split), paths[-1])
    return paths


@pytest.fixture(scope="module")
def released(small, files):
    """Both files in both numerics; tests leave them as they are."""
    return {numerics: official.load(small, files, numerics=numerics) for numerics in ("official", "paper")}


@pytest.fixture
def write(tmp_path):
    """A function that writes a dict of tensors and returns its path."""

    def to_file(content, name="vae_W8A8.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return to_file


# -- names and sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "split", "count"), [("unet", True, 3730), ("vae", False, 680)])
def test_every_tensor_of_a_full_size_file_is_consumed(write, part, split, count):
    model = sd21()
    content = release(model, part, split, latent=64, tokens=77)
    assert len(content) == count, "the number that the released code's own layers make"
    q = official.load(model, [write(content, f"{part}_W6A6.pth")])
    (row,) = q.history["released"]
    assert row["tensors"] == count and row["part"] == part and row["unmatched"] == 0 and row["prefix"] == "model.model."
    assert row["layers"] == {"unet": 282 + 32, "vae": 72}[part] and row["norm_difference"] is None
    assert q.recipe.weight_bits == 6 and q.recipe.bits(f"{part}.conv_in") == (6, 6)
    assert q.recipe.modules == (("unet",) if part == "unet" else ("encoder", "decoder"))


@real_file
def test_the_synthetic_file_has_the_names_and_shapes_of_the_released_one():
    real = torch.load(REAL, map_location="cpu", weights_only=True)
    ours = release(sd21(), "vae", prefix="model.")
    assert {k: v.shape for k, v in real.items()} == {k: v.shape for k, v in ours.items()}


@pytest.mark.parametrize("prefix", ["", "model.", "model.model."])
def test_none_to_two_prefixes_are_the_same_file(small, files, released, write, prefix):
    content = torch.load(files[1], weights_only=True)
    short = {prefix + key.removeprefix("model.model."): value for key, value in content.items()}
    q = official.load(small, [write(short)])
    assert q.history["released"][0]["prefix"] == prefix
    ours, theirs = q.vae.state_dict(), released["official"].vae.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def _without(content, key):
    return {k: v for k, v in content.items() if k != key}


SOME = "model.model.decoder.mid.attn_1.q.act_quantizer_0.x_max"
WRONG = {
    "a missing bound": (lambda c: _without(c, SOME), "1 missing .*attentions.0.to_q.act_quantizers.0.upper"),
    "a missing norm": (lambda c: _without(c, "model.model.encoder.norm_out.bias"), "1 missing .*conv_norm_out.bias"),
    "a layer too many": (lambda c: c | {"model.model.decoder.up.3.block.0.nin_shortcut.offset": torch.zeros(1)}, None),
    "a second quantizer": (lambda c: c | {SOME.replace("_0", "_1"): torch.ones(())}, "287 missing"),
    "another class of quantizer": (lambda c: c | {SOME.replace("x_max", "delta"): torch.ones(())}, "quantizer_0.delta"),
    "a stray name": (lambda c: c | {"model.model.step": torch.ones(())}, "1 names that no .* 'model.model.step'"),
    "another prefix": (lambda c: {f"net.{k}": v for k, v in c.items()}, "680 names that no"),
    "a prefix for some": (lambda c: {k[6 * (i % 2) :]: v for i, (k, v) in enumerate(c.items())}, "names that no"),
    "another shape": (lambda c: c | {SOME: torch.ones(3)}, r"is \(3,\) in the file and \(\) in the model"),
    "something but tensors": (lambda c: c | {"epoch": 3}, "must be a dict of tensors"),
    "nothing": (lambda c: {}, "must be a dict of tensors"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_does_not_fit_is_refused_and_the_first_name_told(small, files, write, what):
    change, message = WRONG[what]
    file = write(change(dict(torch.load(files[1], weights_only=True))))
    with pytest.raises(ValueError, match=message or "1 without a place"):
        official.load(small, [file])


def test_a_file_for_another_model_is_refused_by_its_norms(files):
    other = small_sd21(seed=1)
    with pytest.raises(ValueError, match=r"104 of 104 norm tensors differ .* not the model that the file was made for"):
        official.load(other, files[1:])
    taken = official.load(other, files[1:], on_norms="take")
    norm = taken.vae.encoder.conv_norm_out.weight
    assert torch.equal(norm, torch.load(files[1], weights_only=True)["model.model.encoder.norm_out.weight"])
    assert not torch.equal(norm, other.vae.encoder.conv_norm_out.weight), "the given pipeline keeps its own"


def test_norms_that_went_through_half_precision_still_fit(small, files, write):
    content = torch.load(files[1], weights_only=True)
    halved = {k: v.half().float() if k.endswith((".weight", ".bias")) else v for k, v in content.items()}
    row = official.load(small, [write(halved)]).history["released"][0]
    assert 0 < row["norm_difference"] < 2e-3 and row["norms_differ"] == 0 and row["norms"] == 104


def test_bits_come_from_the_name_the_caller_or_not_at_all(small, files, write):
    content = torch.load(files[1], weights_only=True)
    with pytest.raises(ValueError, match="do not say for how many bits"):
        official.load(small, [write(content, "vae.pth")])
    assert official.load(small, [write(content, "vae.pth")], "W4A6").recipe.bits("vae.encoder.conv_in") == (4, 6)
    for kept in ("vae.quant_conv", "vae.decoder.conv_out"):
        assert official.load(small, [write(content, "vae.pth")], "W4A6").recipe.bits(kept) == (8, 8)
    with pytest.raises(ValueError, match=r"one in .*, but two in the recipe .split."):
        official.load(small, files[1:], replace(W8A8, split=True))
    with pytest.raises(ValueError, match="one UNet file, one VAE file, or one of each"):
        official.load(small, files[1:] * 2)


# -- a file that is not what it says ----------------------------------------------------------------------------------


class Hostile:
    """Unpickled the plain way, this makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("how", ["torch", "pickle", "hidden among tensors"])
def test_code_in_a_file_is_refused_and_does_not_run(small, files, tmp_path, how):
    mark, file = tmp_path / "it_ran", tmp_path / "vae_W8A8.pth"
    content = Hostile(mark)
    if how == "hidden among tensors":
        content = dict(torch.load(files[1], weights_only=True)) | {"model.model.encoder.conv_in.offset": content}
    if how == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match="nothing in it was run"):
        official.load(small, [file])
    assert not mark.exists()
    if how != "pickle":
        torch.load(file, weights_only=False)
        assert mark.exists(), "the file was dangerous indeed"


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04 half a zip"])
def test_a_damaged_or_missing_file_is_told_in_one_sentence(tmp_path, content):
    (tmp_path / "vae.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"vae.pth (is damaged or no checkpoint|was refused)"):
        official.read(tmp_path / "vae.pth")
    with pytest.raises(ValueError, match="There is no file"):
        official.read(tmp_path / "none.pth")


# -- what the numbers mean --------------------------------------------------------------------------------------------


def rounded(x):
    return torch.where(x < 0, -torch.floor(-x + 0.5), torch.floor(x + 0.5))


def on_grid(x, lower, upper, bits):
    """The released code's quantizer, from its description, in float64."""
    step = (upper.double() - lower.double()) / (2**bits - 1)
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


LAYERS = {  # ldm name: part, diffusers name, shape of an input
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
def test_the_official_layer_computes_what_the_released_code_computes(released, files, name):
    part, shape = LAYERS[name]
    layer = quantized_layers(released["official"])[f"{part}.{diffusers_name(name)}"]
    file = {k.removeprefix("model.model."): v for k, v in torch.load(files[part == "vae"], weights_only=True).items()}
    x, weight, bias = torch.randn(shape), layer.layer.weight.double(), layer.layer.bias
    s, offset = (file[f"{name}.{k}"].double().flatten() for k in ("scale_factor", "offset"))
    linear = part == "unet" and not layer.conv
    view = (1, -1, 1, 1) if layer.conv else (-1,)
    moved = (x + offset.view(view)) / s.view(view) if linear else (x - offset.view(view)) / s.view(view)
    scaled = weight * (s.view(1, -1, 1, 1) if layer.conv else s)
    halves = 2 if part == "unet" else 1  # of channels; of tokens in a Linear layer that has some
    cut = lambda t, dim: t.tensor_split([t.shape[dim] // 2], dim) if halves == 2 else [t]
    xq = torch.cat([on_grid(p, *bounds(file, name, f"act_quantizer_{i}"), 8) for i, p in enumerate(cut(moved, 1))], 1)
    column = lambda t: t.view(-1, *[1] * (weight.ndim - 1))
    wq = [
        on_grid(p, *map(column, bounds(file, name, f"weight_quantizer_{i}")), 8) for i, p in enumerate(cut(scaled, 1))
    ]
    wq = torch.cat(wq, 1)
    bq = None if bias is None else on_grid(bias, *bounds(file, name, "bias_quantizer"), 8)
    if layer.conv:
        how = layer.layer.stride, layer.layer.padding
        plane = offset.view(view).expand(1, -1, *x.shape[2:])
        expected = F.conv2d(xq, wq, bq, *how) + F.conv2d(plane, weight, None, *how)
    else:
        expected = F.linear(xq, wq, bq) + weight @ offset
    assert same_but_ties(layer(x).double(), expected)


def test_the_official_attention_computes_what_the_released_code_computes(released, files):
    name = "input_blocks.4.1.transformer_blocks.0.attn1"
    layer = quantized_layers(released["official"])[f"unet.{diffusers_name(name)}"]
    file = {k.removeprefix("model.model."): v for k, v in torch.load(files[0], weights_only=True).items()}
    q, k, v = torch.randn(3, 2, 16, 16).unbind()  # 16 tokens of a 4x4 latent, 2 heads of 8
    heads = lambda t: t.double().view(2, 16, 2, 8).transpose(1, 2)
    s_qk, s_vw = file[f"{name}.scale_factor_qk"].double(), file[f"{name}.scale_factor_vw"].double()
    quantized = lambda t, key: on_grid(t, *bounds(file, name, f"act_quantizer_{key}"), 8)
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
def test_bounds_and_scales_are_the_files(released, files, numerics):
    q, seen = released[numerics], 0
    for path in files:
        file, layers = torch.load(path, weights_only=True), quantized_layers(q)
        for key, scale in file.items():
            if not key.endswith(".scale_factor"):
                continue
            name = key.removeprefix("model.model.").removesuffix(".scale_factor")
            layer = layers[f"{path.name.partition('_')[0]}.{diffusers_name(name)}"]
            torch.testing.assert_close(layer.transform.scale, scale.flatten(), rtol=1e-6, atol=0)
            wanted = [
                bounds(file, key.removesuffix(".scale_factor"), f"act_quantizer_{i}") for i in range(len(layer.sizes))
            ]
            if numerics == "paper" and len(wanted) == 2 and not layer.conv:
                wanted = [tuple(f(t) for f, t in zip((min, max), zip(*wanted)))] * 2
            found = [a.bounds(*r) for a, r in zip(layer.act_quantizers, layer.input_ranges())]
            assert torch.allclose(torch.tensor(found), torch.tensor(wanted), rtol=1e-5, atol=1e-6)
            seen += 1
            if seen % 50 == 0:
                assert boundaries(q, layer.name) == (8, [(lower.item(), upper.item()) for lower, upper in found])
    assert seen == 282 + 72


def test_the_explorer_and_figure_7_show_both(released):
    for q in released.values():
        with observing(q) as stats:
            q(torch.rand(3, 16, 16))
        seen = stats.layers(after=True)
        assert len(seen) == 282 + 72 + 3 * 32
        block = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
        for layer in (f"{block}.attn1.v", "vae.encoder.mid_block.attentions.0.to_q"):
            assert len(layer_figure(stats, layer, q).axes) >= 4
        after = stats.channels("unet.conv_out", after=True)
        before, scale = stats.channels("unet.conv_out"), quantized_layers(q)["unet.conv_out"].transform
        expected = (torch.tensor(before.high.to_numpy()) - scale.shift) / scale.scale
        torch.testing.assert_close(torch.tensor(after.high.to_numpy()), expected.double(), rtol=1e-4, atol=1e-5)
        assert plots.activations(before, after).axes


def test_the_papers_layers_are_equivalent_where_the_released_ones_are_not(released, without_rounding):
    """The float output survives LET here; the released Linear layers are off by twice their shift."""
    for name in ("input_blocks.4.0.in_layers.2", "output_blocks.3.1.transformer_blocks.0.ff.net.2"):
        full = f"unet.{diffusers_name(name)}"
        ours, theirs = (quantized_layers(released[n])[full] for n in ("paper", "official"))
        x = torch.randn((2, 8, 6, 6) if ours.conv else (2, 9, 96))
        torch.testing.assert_close(without_rounding(ours)(x), ours.layer(x), rtol=1e-4, atol=1e-5)
        if not ours.conv:
            plain = F.linear(theirs.transform(x, -1), theirs.transformed_weight(), theirs.layer.bias)
            plain = plain + theirs.layer.weight @ theirs.transform.offset
            off = 2 * theirs.layer.weight @ theirs.transform.offset
            torch.testing.assert_close(plain - ours.layer(x), off.expand_as(plain), rtol=1e-3, atol=1e-5)
            assert off.abs().max() > 1e-3


def test_without_shift_and_bias_a_convolution_is_the_same_in_both(small, files, write):
    content = dict(torch.load(files[1], weights_only=True))
    content |= {k: torch.zeros_like(v) for k, v in content.items() if k.endswith(".offset")}
    file = write(content)
    ours, theirs = (official.load(small, [file], numerics=n) for n in ("paper", "official"))
    compared = 0
    for name, layer in quantized_layers(theirs).items():
        other = quantized_layers(ours)[name]
        layer.bias_quantizer = torch.nn.Identity()
        x = torch.randn((1, len(layer.range.low), 6, 6) if layer.conv else (1, 9, len(layer.range.low)))
        assert same_but_ties(other(x), layer(x)), name
        compared += 1
    assert compared == 72


def test_the_corrections_are_listed_where_they_apply(released):
    assert released["paper"].history["corrections"] == official.CORRECTIONS and len(official.CORRECTIONS) >= 6
    assert "corrections" not in released["official"].history
    assert released["official"].recipe.numerics == "official" and released["paper"].recipe.numerics == "paper"


def test_the_released_arithmetic_is_not_trained(released, pairs):
    with pytest.raises(ValueError, match='calibrate one with numerics="paper"'):
        calibrate(released["official"], pairs)


# -- in and out -------------------------------------------------------------------------------------------------------


def test_what_was_read_is_written_to_the_last_bit(released, files, tmp_path):
    told = official.save(released["official"], tmp_path)
    assert told["lost"] == [] and sorted(told["files"]) == ["unet_ckpt_merge_saw_sep.pth", "vae_ckpt_merge_saw_sep.pth"]
    for path in files:
        before = torch.load(path, weights_only=True)
        after = torch.load(tmp_path / path.name.replace("_W8A8", ""), weights_only=True)
        assert before.keys() == after.keys() and told["files"][path.name.replace("_W8A8", "")] == len(before)
        for key, value in before.items():
            assert value.shape == after[key].shape and value.dtype == after[key].dtype, key
            assert torch.equal(value, after[key]), key


@pytest.mark.parametrize("numerics", ["official", "paper"])
def test_a_converted_model_is_saved_and_loaded_as_any_other(small, released, tmp_path, numerics):
    lr = torch.rand(3, 16, 16)
    again = load(save(released[numerics], tmp_path), small)
    assert torch.equal(again(lr), released[numerics](lr)) and again.recipe == released[numerics].recipe


def test_the_float_model_is_untouched_and_comes_back(small, released):
    x = torch.rand(3, 16, 16)
    for q in released.values():
        assert torch.equal(unquantize(q)(x), small(x))
        with mode(q, "float"):
            assert torch.equal(q(x), small(x))


@pytest.fixture(scope="module")
def calibrated_small(small):
    recipe = replace(W8A8, split=("unet.*",))
    q = quantize(small, recipe)
    calibrate(q, bundled("calibration", count=2, size=64), "let")
    return q


def test_our_calibration_is_exported_and_what_is_lost_is_told(small, calibrated_small, tmp_path):
    told = official.save(calibrated_small, tmp_path, latent=8)
    assert told["files"] == {"unet_ckpt_merge_saw_sep.pth": 3730, "vae_ckpt_merge_saw_sep.pth": 680}
    for word in ("Biases", "attention products", "halved by tokens", "one for all heads", "v is per token"):
        assert any(word in sentence for sentence in told["lost"]), word
    assert not any("Shifts" in sentence for sentence in told["lost"]), "LET's start has none"
    theirs = official.load(small, sorted(tmp_path.iterdir()), "W8A8")
    lr = bundled("calibration", count=2, size=64)[0].lr
    assert psnr_rgb(theirs(lr), small(lr)) > 20 and psnr_rgb(calibrated_small(lr), small(lr)) > 20
    for name, layer in quantized_layers(theirs.vae).items():
        own = quantized_layers(calibrated_small)[name]
        assert torch.equal(layer.transform.scale, own.transform.scale)
        found = [b for pair in boundaries(calibrated_small, name)[1] for b in pair]
        lower, upper = layer.act_quantizers[0].bounds()
        assert lower <= max(found[0], 0) + 1e-6 and upper >= min(found[1], 0) - 1e-6


def test_a_shift_in_a_linear_layer_is_left_out_and_its_range_kept_whole(small, calibrated_small, tmp_path):
    name = "unet.mid_block.attentions.0.proj_in"
    q = load(save(calibrated_small, tmp_path / "own"), small)
    layer = quantized_layers(q)[name]
    with torch.no_grad():
        layer.transform.offset.fill_(0.5)
    told = official.save(q, tmp_path / "out", latent=8)
    assert any(sentence.startswith("Shifts") for sentence in told["lost"])
    theirs = quantized_layers(official.load(small, sorted((tmp_path / "out").iterdir()), "W8A8"))[name]
    low, high = (t / layer.transform.scale for t in (layer.range.low, layer.range.high))
    assert not theirs.transform.offset.any()
    assert theirs.act_quantizers[0].lower <= low.min() + 1e-5 and theirs.act_quantizers[1].upper >= high.max() - 1e-5


def test_what_makes_no_whole_file_is_refused(small, tmp_path):
    with pytest.raises(ValueError, match="holds the whole UNet or the whole VAE"):
        official.save(quantize(small, replace(W6A6, modules=("encoder",))), tmp_path)
    with pytest.raises(RuntimeError, match="no activation range yet"):
        official.save(quantize(small, W6A6), tmp_path)
    unread = official.released_recipe([official.read(_dump(release(small, "vae"), tmp_path / "vae.pth"))], "W6A6")
    with pytest.raises(RuntimeError, match="no activation range yet"):
        quantize(small, unread)(torch.rand(3, 16, 16))
    assert not list(tmp_path.glob("*merge*"))


def _dump(content, path):
    torch.save(content, path)
    return path


# -- the real file ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_vae(small):
    """SD2.1's VAE at full size with the released file's norms and random weights, beside the small UNet."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    pipe = small_sd21()
    pipe.vae = AutoencoderKL(**VAE).eval().requires_grad_(False)
    return pipe


@real_file
@pytest.mark.slow
def test_the_released_file_runs_and_shows_in_the_explorer_and_figure_7(full_vae):
    q = official.load(full_vae, [REAL], on_norms="take")
    (row,) = q.history["released"]
    assert (
        row["tensors"] == 680 and row["layers"] == 72 and row["prefix"] == "model." and q.recipe.name == "W8A8 official"
    )
    real = {k.removeprefix("model."): v for k, v in torch.load(REAL, map_location="cpu", weights_only=True).items()}
    name = "decoder.up.0.block.0.nin_shortcut"
    layer = f"vae.{diffusers_name(name)}"
    bits, [(lower, upper)] = boundaries(q, layer)
    assert (bits, lower, upper) == (8, *(b.item() for b in bounds(real, name, "act_quantizer_0")))
    assert (round(lower), round(upper)) == (-228, 179), "the widest input that the method sheet names"
    rows = [
        pd.DataFrame({"module": module, "layer": n, "scale": m.transform.scale})
        for module in ("encoder", "decoder")
        for piece in parts(q)[module].values()
        for n, m in quantized_layers(piece).items()
    ]
    scales = pd.concat(rows)
    assert scales.layer.nunique() == 72 and (round(scales.scale.min(), 3), round(scales.scale.max(), 1)) == (
        0.491,
        23.9,
    )
    assert (
        abs((scales.scale > 1).mean() - 0.9898) < 1e-4 and plots.scales(scales).axes[0].get_ylabel() == "scale factor"
    )
    table = layer_table(q)
    assert len(table) == 72 and table.set_index("layer").low[layer] < -1000, "where a channel clips, scale undone"
    assert plots.layer_ranges(table).axes[0].get_title("left").startswith(f"widest: {layer}")
    assert torch.isfinite(q(torch.rand(3, 16, 16))).all()


@real_file
def test_the_released_file_comes_out_to_the_last_bit_without_any_weights(tmp_path):
    q = official.load(sd21(), [REAL])
    assert official.save(q, tmp_path, prefix="model.")["files"] == {"vae_ckpt_merge_saw_sep.pth": 680}
    before = torch.load(REAL, map_location="cpu", weights_only=True)
    after = torch.load(tmp_path / "vae_ckpt_merge_saw_sep.pth", weights_only=True)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert isinstance(quantized_layers(q)["vae.quant_conv"], QuantLayer) and TOKENS == 5
