"""Released files, in and out: every tensor has its place and comes out again; what does not fit is refused."""

import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from released import release, small_sd21

from passionsr_lab import plots
from passionsr_lab.analysis.layers import layer_table
from passionsr_lab.fullsize.names import diffusers_name
from passionsr_lab.fullsize.sd21 import VAE, sd21
from passionsr_lab.imaging.pairs import bundled
from passionsr_lab.imaging.psnr import psnr_rgb
from passionsr_lab.methods import calibrate
from passionsr_lab.official import released as official
from passionsr_lab.quantization.place import quantize, quantized_layers
from passionsr_lab.quantization.recipe import W6A6, W8A8
from passionsr_lab.store.folder import load, save
from passionsr_lab.widgets.layers import boundaries

REAL = Path(__file__).parents[3] / "shared" / "data" / "passionsr_official" / "vae_ckpt_merge_saw_sep_W8A8.pth"
real_file = pytest.mark.skipif(not REAL.is_file(), reason="the released VAE file is not there")


@pytest.fixture
def write(tmp_path):
    """A function that writes a dict of tensors and returns its path."""

    def to_file(content, name="vae_W8A8.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return to_file


@pytest.fixture
def content(files):
    """The tensors of the VAE's file."""
    return dict(torch.load(files[1], weights_only=True))


def assert_equal(before, after):
    """The same names, shapes and numbers."""
    before, after = (torch.load(path, map_location="cpu", weights_only=True) for path in (before, after))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype and torch.equal(value, after[key]), key


# -- in ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "split", "count"), [("unet", True, 3730), ("vae", False, 680)])
def test_every_tensor_of_a_full_size_file_is_consumed(write, part, split, count):
    model = sd21()
    content = release(model, part, split, latent=64, tokens=77)
    assert len(content) == count, "the number that the released code's own layers make"
    q = official.load_released(model, [write(content, f"{part}_W6A6.pth")])
    (row,) = q.history["released"]
    assert (row["tensors"], row["part"], row["unmatched"], row["prefix"]) == (count, part, 0, "model.model.")
    assert row["layers"] == {"unet": 282 + 32, "vae": 72}[part] and row["norm_difference"] is None
    assert q.recipe.bits(f"{part}.conv_in") == (6, 6)
    assert q.recipe.modules == (("unet",) if part == "unet" else ("encoder", "decoder"))


@real_file
def test_the_synthetic_file_has_the_names_and_shapes_of_the_released_one():
    real, ours = torch.load(REAL, map_location="cpu", weights_only=True), release(sd21(), "vae", prefix="model.")
    assert {k: v.shape for k, v in real.items()} == {k: v.shape for k, v in ours.items()}


def test_none_to_two_prefixes_are_the_same_file_and_a_file_may_change_once_it_is_read(small, content, write):
    made = []
    for prefix in ("", "model.", "model.model."):
        renamed = {prefix + k.removeprefix("model.model."): v for k, v in content.items()}
        q = official.load_released(small, [write(renamed)])
        assert q.history["released"][0]["prefix"] == prefix
        made.append(q.vae.state_dict())
    assert all(torch.equal(value, other[key]) for other in made[1:] for key, value in made[0].items())


SOME = "model.model.decoder.mid.attn_1.q.act_quantizer_0.x_max"
WRONG = {
    "1 missing .*attentions.0.to_q.act_quantizers.0.upper": lambda c: {k: v for k, v in c.items() if k != SOME},
    "1 missing .*conv_norm_out.bias": lambda c: {k: v for k, v in c.items() if not k.endswith("encoder.norm_out.bias")},
    "1 without a place": lambda c: c | {"model.model.decoder.up.3.block.0.nin_shortcut.offset": torch.zeros(1)},
    "287 missing": lambda c: c | {SOME.replace("_0", "_1"): torch.ones(())},
    "quantizer_0.delta": lambda c: c | {SOME.replace("x_max", "delta"): torch.ones(())},
    "1 names that no .* 'model.model.step'": lambda c: c | {"model.model.step": torch.ones(())},
    "680 names that no": lambda c: {f"net.{k}": v for k, v in c.items()},
    "names that no": lambda c: {k[6 * (i % 2) :]: v for i, (k, v) in enumerate(c.items())},
    r"is \(3,\) in the file and \(\) in the model": lambda c: c | {SOME: torch.ones(3)},
    "must be a dict of tensors": lambda c: c | {"epoch": 3},
    "calibration file: it must be a dict": lambda c: {},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_file_that_does_not_fit_is_refused_and_the_first_name_told(small, content, write, message):
    with pytest.raises(ValueError, match=message):
        official.load_released(small, [write(WRONG[message](content))])


def test_a_file_for_another_model_is_refused_by_its_norms(small, files, content, write):
    other = small_sd21(seed=1)
    with pytest.raises(ValueError, match=r"104 of 104 norm tensors differ .* not the model that the file was made for"):
        official.load_released(other, files[1:], "W8A8")
    norm = official.load_released(other, files[1:], "W8A8", on_norms="take").vae.encoder.conv_norm_out.weight
    assert torch.equal(norm, content["model.model.encoder.norm_out.weight"])
    assert not torch.equal(norm, other.vae.encoder.conv_norm_out.weight), "the given pipeline keeps its own"
    halved = {k: v.half().float() if k.endswith((".weight", ".bias")) else v for k, v in content.items()}
    row = official.load_released(small, [write(halved)]).history["released"][0]
    assert 0 < row["norm_difference"] < 2e-3 and (row["norms_differ"], row["norms"]) == (0, 104), "half precision fits"


def test_bits_come_from_the_name_the_caller_or_not_at_all(small, files):
    with pytest.raises(ValueError, match="do not say for how many bits"):
        official.load_released(small, files[1:])
    recipe = official.load_released(small, files[1:], "W4A6").recipe
    assert recipe.bits("vae.encoder.conv_in") == (4, 6)
    assert recipe.bits("vae.quant_conv") == recipe.bits("vae.decoder.conv_out") == (8, 8)
    with pytest.raises(ValueError, match=r"one in .*, but two in the recipe .split."):
        official.load_released(small, files[1:], replace(W8A8, split=True))
    with pytest.raises(ValueError, match="one UNet file, one VAE file, or one of each"):
        official.load_released(small, files[1:] * 2)


def test_code_damage_and_absence_are_told_in_one_sentence(content, write, tmp_path):
    with pytest.raises(ValueError, match="nothing in it was run"):
        official.read_released(write(content | {SOME: os.mkdir}))
    for damaged in (b"", b"no pickle", b"PK\x03\x04 half a zip"):
        (tmp_path / "vae.pth").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"vae.pth (is damaged or no checkpoint|was refused)"):
            official.read_released(tmp_path / "vae.pth")
    with pytest.raises(ValueError, match="There is no file"):
        official.read_released(tmp_path / "none.pth")


# -- out --------------------------------------------------------------------------------------------------------------


def test_what_was_read_is_written_to_the_last_bit_and_saved_as_any_other(small, files, released, tmp_path):
    told, x = official.save_released(released["official"], tmp_path), torch.rand(3, 16, 16)
    assert told == {"files": {"unet_ckpt_merge_saw_sep.pth": 3730, "vae_ckpt_merge_saw_sep.pth": 680}, "lost": []}
    for path in files:
        assert_equal(path, tmp_path / path.name)
    for numerics, model in released.items():
        again = load(save(model, tmp_path / numerics), small)
        assert torch.equal(again(x), model(x)) and again.recipe == model.recipe


@pytest.fixture(scope="module")
def calibrated_small(small):
    q = quantize(small, replace(W8A8, split=("unet.*",)))
    calibrate(q, bundled("calibration", count=2, size=64), "let")
    return q


def test_our_calibration_is_exported_and_what_is_lost_is_told(small, calibrated_small, tmp_path):
    told = official.save_released(calibrated_small, tmp_path, latent=8)
    assert told["files"] == {"unet_ckpt_merge_saw_sep.pth": 3730, "vae_ckpt_merge_saw_sep.pth": 680}
    for word in ("Biases", "attention products", "halved by tokens", "one for all heads", "v is per token"):
        assert any(word in sentence for sentence in told["lost"]), word
    assert not any("Shifts" in sentence for sentence in told["lost"]), "LET's start has none"
    theirs = official.load_released(small, sorted(tmp_path.iterdir()), "W8A8")
    lr = bundled("calibration", count=2, size=64)[0].lr
    assert psnr_rgb(theirs(lr), small(lr)) > 20 and psnr_rgb(calibrated_small(lr), small(lr)) > 20
    for name, layer in quantized_layers(theirs.vae).items():
        assert torch.equal(layer.transform.scale, quantized_layers(calibrated_small)[name].transform.scale)
        (lower, upper), own = boundaries(theirs, name)[1][0], boundaries(calibrated_small, name)[1][0]
        assert lower <= max(own[0], 0) + 1e-6 and upper >= min(own[1], 0) - 1e-6


def test_a_shift_in_a_linear_layer_is_left_out_and_its_range_kept_whole(small, calibrated_small, tmp_path):
    name = "unet.mid_block.attentions.0.proj_in"
    q = load(save(calibrated_small, tmp_path / "own"), small)
    layer = quantized_layers(q)[name]
    with torch.no_grad():
        layer.transform.offset.fill_(0.5)
    told = official.save_released(q, tmp_path / "out", latent=8)
    assert any(sentence.startswith("Shifts") for sentence in told["lost"])
    theirs = official.load_released(small, sorted((tmp_path / "out").iterdir()), "W8A8")
    low, high = (t / layer.transform.scale for t in (layer.range.low, layer.range.high))
    assert not quantized_layers(theirs)[name].transform.offset.any()
    (lower, _), (_, upper) = boundaries(theirs, name)[1]
    assert lower <= low.min() + 1e-5 and upper >= high.max() - 1e-5


def test_what_makes_no_whole_file_is_refused(small, files, tmp_path):
    with pytest.raises(ValueError, match="holds the whole UNet or the whole VAE"):
        official.save_released(quantize(small, replace(W6A6, modules=("encoder",))), tmp_path)
    with pytest.raises(RuntimeError, match="no activation range yet"):
        official.save_released(quantize(small, W6A6), tmp_path)
    with pytest.raises(RuntimeError, match="no activation range yet"):
        quantize(small, official.released_recipe([official.read_released(files[1])], "W6A6"))(torch.rand(3, 16, 16))
    assert not list(tmp_path.iterdir())


# -- the real file ----------------------------------------------------------------------------------------------------


@real_file
@pytest.mark.slow
def test_the_released_file_runs_and_has_the_numbers_of_the_method_sheet():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    pipe = small_sd21()
    pipe.vae = AutoencoderKL(**VAE).eval().requires_grad_(False)
    q = official.load_released(pipe, [REAL], on_norms="take")
    (row,) = q.history["released"]
    assert (row["tensors"], row["layers"], row["prefix"], q.recipe.name) == (680, 72, "model.", "W8A8 official")
    layer = f"vae.{diffusers_name('decoder.up.0.block.0.nin_shortcut')}"
    bits, [(lower, upper)] = boundaries(q, layer)
    assert (bits, round(lower), round(upper)) == (8, -228, 179), "the widest input"
    scales = pd.concat(
        pd.DataFrame({"module": "unet" if "unet" in n else n.split(".")[1], "layer": n, "scale": m.transform.scale})
        for n, m in quantized_layers(q).items()
    )
    told = scales.layer.nunique(), round(scales.scale.min(), 3), round(scales.scale.max(), 1)
    assert told == (72, 0.491, 23.9) and abs((scales.scale > 1).mean() - 0.9898) < 1e-4
    table = layer_table(q)
    assert len(table) == 72 and table.set_index("layer").low[layer] < -1000, "where a channel clips, scale undone"
    assert plots.layer_ranges(table).axes[0].get_title("left").startswith(f"widest: {layer}")
    assert torch.isfinite(q(torch.rand(3, 16, 16))).all()


@real_file
def test_the_released_file_comes_out_to_the_last_bit_without_any_weights(tmp_path):
    told = official.save_released(official.load_released(sd21(), [REAL]), tmp_path, prefix="model.")
    assert told["files"] == {"vae_ckpt_merge_saw_sep.pth": 680}
    assert_equal(REAL, tmp_path / "vae_ckpt_merge_saw_sep.pth")
