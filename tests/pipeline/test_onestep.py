"""The one-step pipeline: Eq. 9, exactly x4 for every picture, folders, other architectures."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import passionsr_lab as lab
from passionsr_lab.calibration.loop import calibrate
from passionsr_lab.pipeline.folder import load
from passionsr_lab.pipeline.onestep import CONFIG, EMBEDDING, OneStepSR
from passionsr_lab.quantization.surgery import layer_table, quantize


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text.strip() and 20 < len(text) < 700


# -- the three steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("timestep", "amplified"), [(999, 14.6), (499, 1.61)])
def test_eq_9_recovers_the_latent_and_amplifies_errors(make_pipe, timestep, amplified):
    pipe = make_pipe(timestep=timestep)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    a = torch.cumprod(1 - betas, 0)[timestep].item()
    z, noise = torch.randn(2, 1, 4, 6, 6)
    noisy = a**0.5 * z + (1 - a) ** 0.5 * noise
    torch.testing.assert_close(pipe.clean(noisy, noise), z, rtol=1e-4, atol=1e-4)
    error = 1e-3 * torch.randn_like(noise)
    grown = (pipe.clean(noisy, noise + error) - pipe.clean(noisy, noise)).std() / error.std()
    assert grown.item() == pytest.approx((1 - a) ** 0.5 / a**0.5, rel=1e-3)
    assert grown.item() == pytest.approx(amplified, rel=0.05)


def test_the_path_is_encode_denoise_decode(pipe, pairs):
    x = pipe.prepare(pairs[0].lr[None])
    with torch.no_grad():
        z = pipe.encode(x)
        assert z.shape == (1, 4, 16, 16)
        assert torch.equal(z, pipe.vae.encode(x).latent_dist.mean * 0.5), "the posterior's mode, scaled"
        noise = pipe.unet(z, 999, pipe.prompt_embedding).sample
        assert torch.equal(pipe.denoise(z), pipe.clean(z, noise))
        image = pipe.decode(pipe.clean(z, noise))
        assert torch.equal(pipe.restore(x), image)
    torch.testing.assert_close(pipe(pairs[0].lr), (image[0] / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_the_prompt_conditions_the_unet(pipe, pairs):
    z = pipe.encode(pipe.prepare(pairs[0].lr[None]))
    other = torch.randn(1, 5, 12)
    assert not torch.equal(pipe.noise(z), pipe.noise(z, other))
    torch.testing.assert_close(pipe.noise(z.expand(3, -1, -1, -1))[2:], pipe.noise(z), rtol=1e-4, atol=1e-5)


def test_nothing_is_trained_and_dropout_is_off(pipe):
    assert not pipe.training and not any(p.requires_grad for p in pipe.parameters())


# -- pictures ---------------------------------------------------------------------------------------------------------

PICTURES = {
    "RGB": lambda: Image.fromarray(noise(9, 13)),
    "grey": lambda: Image.fromarray(noise(9, 13)).convert("L"),
    "RGBA": lambda: Image.fromarray(noise(9, 13)).convert("RGBA"),
    "palette": lambda: Image.fromarray(noise(9, 13)).quantize(5),
    "black and white": lambda: Image.fromarray(noise(9, 13)).convert("1"),
    "16 bits": lambda: Image.fromarray(noise(9, 13)[..., 0].astype(np.uint16) * 257),
    "one pixel": lambda: Image.fromarray(noise(1, 1)),
    "a row": lambda: Image.fromarray(noise(1, 30)),
    "a column": lambda: Image.fromarray(noise(23, 1)),
    "odd": lambda: Image.fromarray(noise(7, 5)),
    "wide": lambda: Image.fromarray(noise(3, 61)),
}


def noise(h, w):
    return np.random.default_rng(h * w).integers(0, 256, (h, w, 3)).astype(np.uint8)


@pytest.mark.parametrize("what", PICTURES)
@pytest.mark.parametrize("quantized", [False, True])
def test_every_picture_comes_out_exactly_four_times_as_large(pipe, calibrated, what, quantized):
    image = PICTURES[what]()
    out = (calibrated("W8A8") if quantized else pipe)(image)
    assert isinstance(out, Image.Image) and out.mode == "RGB"
    assert out.size == (4 * image.width, 4 * image.height)
    assert np.asarray(out).std() > 0 or image.size == (1, 1)


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 6, 11), (1, 3, 4, 4), (3, 3, 5, 2)])
def test_tensors_come_out_as_they_went_in(pipe, shape):
    x = torch.rand(shape)
    out = pipe(x)
    assert out.shape == (*shape[:-2], 4 * shape[-2], 4 * shape[-1])
    assert out.dtype == torch.float32 and out.min() >= 0 and out.max() <= 1
    if len(shape) == 4:
        torch.testing.assert_close(out[-1], pipe(x[-1]), rtol=1e-3, atol=1e-4)


def test_a_picture_and_its_tensor_give_the_same(pipe):
    image = Image.fromarray(noise(8, 6))
    tensor = torch.from_numpy(noise(8, 6)).permute(2, 0, 1) / 255
    difference = np.asarray(pipe(image)).transpose(2, 0, 1) / 255 - pipe(tensor).numpy()
    assert np.abs(difference).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("bad", [
    torch.full((3, 4, 4), torch.nan), torch.zeros(3, 4, 4, dtype=torch.uint8), torch.rand(1, 4, 4),
    torch.rand(4, 4, 4), torch.rand(3, 4, 4) + 3, torch.rand(4, 4), np.zeros((4, 4, 3)),
], ids=["nan", "integers", "grey", "rgba", "range", "2-d", "numpy"])  # fmt: skip
@pytest.mark.parametrize("quantized", [False, True])
def test_what_is_no_picture_is_refused_in_one_sentence(pipe, calibrated, bad, quantized):
    with pytest.raises(ValueError, match="image") as error:
        (calibrated("W8A8") if quantized else pipe)(bad)
    assert one_sentence(error)


def test_padding_reaches_no_farther_than_it_must(make_pipe):
    pipe = make_pipe(vae=(8, 16, 16), unet=(16, 32))
    assert (pipe.factor, pipe.multiple) == (4, 8)
    for h, w in ((1, 1), (2, 2), (3, 5), (4, 6)):
        x = torch.rand(1, 3, h, w)
        ready = pipe.prepare(x)
        assert ready.shape[2:] == (-(-4 * h // 8) * 8, -(-4 * w // 8) * 8)
        assert ready.min() >= -1 and ready.max() <= 1
        inside = ready[..., : 4 * h, : 4 * w]
        assert torch.equal(ready[..., : 4 * h, 4 * w :], inside[..., -1:].expand(-1, -1, -1, ready.shape[3] - 4 * w))


# -- folders and other architectures ----------------------------------------------------------------------------------

OTHERS = {
    "as SD2.1: factor 8, two UNet levels": {"vae": (4, 8, 8, 8), "unet": (8, 16), "latent": 4, "cross": True},
    "factor 4, t = 499": {"vae": (8, 12, 16), "unet": (16, 24), "timestep": 499},
    "16 latent channels, one UNet level": {"latent": 16, "unet": (16,), "width": 20},
    "three UNet levels, convolutions around attention": {"unet": (8, 16, 16), "linear": False, "cross": True},
    "no convolutions around the latent": {"latent": 3, "quant_conv": False},
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_architecture_works_everywhere(make_pipe, tmp_path, pairs, what):
    pipe = make_pipe(**OTHERS[what], name="another")
    lr = pairs[0].lr[:, :7, :5]
    expected = pipe(lr)
    assert expected.shape == (3, 28, 20)
    back = load(pipe.save(tmp_path / "another"))
    assert (back.timestep, back.upscale, back.name) == (pipe.timestep, 4, "another")
    assert torch.equal(back(lr), expected)
    q = quantize(back, "W6A6")
    table = layer_table(q)
    assert set(table.module) == {"encoder", "unet", "decoder"} and table.layer.is_unique
    records = calibrate(q, pairs[:1], "passionsr", epochs=1, batch=1)
    assert len(records) == 20
    out = q(lr)
    assert out.shape == expected.shape and not torch.equal(out, expected)
    assert (out - expected).abs().mean() < 0.2
    again = lab.load(lab.save(q, tmp_path / "quantized"), lab.load(tmp_path / "another"))
    assert torch.equal(again(lr), out)
    assert torch.equal(lab.unquantize(again)(lr), expected)


def test_the_factors_follow_the_architecture(make_pipe):
    assert make_pipe(vae=(4, 8, 8, 8), unet=(8, 16)).factor == 8
    assert make_pipe(vae=(4, 8, 8, 8), unet=(8, 16)).multiple == 16
    assert make_pipe(unet=(16,)).multiple == 2


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    return pipe.save(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def broken(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "small")


def test_a_saved_folder_has_the_layout_that_is_told(folder):
    assert json.loads((folder / CONFIG).read_text()) == {"timestep": 999, "upscale": 4}
    assert load_file(folder / EMBEDDING)["prompt_embedding"].shape == (1, 5, 12)
    for part in ("unet", "vae"):
        assert {p.name for p in (folder / part).iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


WEIGHTS = "diffusion_pytorch_model.safetensors"
BREAKS = {
    "no unet": lambda f: shutil.rmtree(f / "unet"),
    "no vae": lambda f: shutil.rmtree(f / "vae"),
    "no scheduler": lambda f: shutil.rmtree(f / "scheduler"),
    "no weights": lambda f: (f / "unet" / WEIGHTS).unlink(),
    "no architecture": lambda f: (f / "vae" / "config.json").unlink(),
    "truncated weights": lambda f: cut(f / "unet" / WEIGHTS),
    "empty weights": lambda f: (f / "vae" / WEIGHTS).write_bytes(b""),
    "truncated architecture": lambda f: cut(f / "unet" / "config.json"),
    "no settings": lambda f: (f / CONFIG).unlink(),
    "settings that are no JSON": lambda f: (f / CONFIG).write_text("timestep: 999"),
    "settings without a timestep": lambda f: (f / CONFIG).write_text('{"upscale": 4}'),
    "a timestep that is no number": lambda f: (f / CONFIG).write_text('{"timestep": "last", "upscale": 4}'),
    "a timestep beyond the schedule": lambda f: (f / CONFIG).write_text('{"timestep": 1000, "upscale": 4}'),
    "a negative timestep": lambda f: (f / CONFIG).write_text('{"timestep": -1, "upscale": 4}'),
    "an upscale of 0": lambda f: (f / CONFIG).write_text('{"timestep": 999, "upscale": 0}'),
    "a list of settings": lambda f: (f / CONFIG).write_text("[999, 4]"),
    "no embedding": lambda f: (f / EMBEDDING).unlink(),
    "a truncated embedding": lambda f: cut(f / EMBEDDING),
    "an embedding by another name": lambda f: save_file({"prompt": torch.zeros(1, 5, 12)}, f / EMBEDDING),
    "an embedding of another width": lambda f: save_file({"prompt_embedding": torch.zeros(1, 5, 8)}, f / EMBEDDING),
    "an embedding of one token": lambda f: save_file({"prompt_embedding": torch.zeros(5, 12)}, f / EMBEDDING),
    "weights of another architecture": lambda f: reshape(f / "unet" / "config.json"),
    "the weights of a part missing": lambda f: drop_one(f / "unet" / WEIGHTS),
}


def reshape(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [24, 32]}))


def drop_one(path):
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path)


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_folder_is_refused_in_one_sentence(broken, what):
    load(broken)
    BREAKS[what](broken)
    with pytest.raises(ValueError, match=str(broken)) as error:
        load(broken)
    assert one_sentence(error)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/at/all", "some/where/else", "no-body/no-thing"])
def test_what_is_neither_folder_nor_model_is_refused_in_one_sentence(name):
    with pytest.raises(ValueError, match=name) as error:
        load(name)
    assert one_sentence(error)


def test_the_prompt_branch_of_a_folder_without_one_is_refused_in_one_sentence(folder):
    with pytest.raises(ValueError, match="has no complete prompt branch") as error:
        load(folder, prompt=True)
    assert one_sentence(error)


# -- the embedded model -----------------------------------------------------------------------------------------------


def test_the_embedded_model_beats_nothing_to_download(pairs):
    pipe = lab.tiny()
    assert pipe.prompt is None and (pipe.timestep, pipe.upscale, pipe.name) == (999, 4, "tiny")
    out = pipe(pairs[0].lr)
    assert out.shape == pairs[0].hr.shape
    assert (out - pairs[0].hr).abs().mean() < 0.1


def test_pruning_cuts_the_branch_and_leaves_the_constant_embedding(pairs):
    full = lab.tiny(prompt=True)
    pruned = full.prune()
    assert full.prompt is not None and pruned.prompt is None and type(pruned) is OneStepSR
    assert torch.equal(pruned(pairs[0].lr), lab.tiny()(pairs[0].lr))
    assert not torch.equal(full(pairs[0].lr), pruned(pairs[0].lr)), "the branch says nothing about this picture"
    empty = full.prompt.embed([""])
    torch.testing.assert_close(empty, pruned.prompt_embedding, rtol=1e-2, atol=1e-2)  # kept in 16 bits


def test_a_model_with_its_branch_survives_a_folder(tmp_path, pairs):
    full = lab.tiny(prompt=True)
    back = load(full.save(tmp_path), prompt=True)
    assert torch.equal(back(pairs[0].lr), full(pairs[0].lr))
    assert load(tmp_path).prompt is None
