"""Model folders: what is written comes back, in any architecture and form of file; all else is refused."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from made import refused
from safetensors.torch import load_file, save_file
from torch import nn

import passionsr_lab as lab
from passionsr_lab.analysis.layers import layer_table
from passionsr_lab.pipeline.folder import load_pipeline
from passionsr_lab.pipeline.identity import fingerprint
from passionsr_lab.pipeline.onestep import CONFIG, EMBEDDING

WEIGHTS = "diffusion_pytorch_model.safetensors"
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
    back = load_pipeline(pipe.save(tmp_path / "another"))
    assert (back.timestep, back.upscale, back.name) == (pipe.timestep, 4, "another")
    assert (back.factor, back.multiple) == (2 ** (len(OTHERS[what].get("vae", "ab")) - 1), pipe.multiple)
    assert torch.equal(back(lr), expected)
    q = lab.quantize(back, "W6A6")
    table = layer_table(q)
    assert set(table.module) == {"encoder", "unet", "decoder"} and table.layer.is_unique
    lab.calibrate(q, pairs[:1], "passionsr", epochs=1, batch=1)
    out = q(lr)
    assert out.shape == expected.shape and not torch.equal(out, expected) and (out - expected).abs().mean() < 0.2
    again = lab.load(lab.save(q, tmp_path / "quantized"), lab.load(tmp_path / "another"))
    assert torch.equal(again(lr), out)
    assert torch.equal(lab.unquantize(again)(lr), expected)


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    return pipe.save(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "small")


def test_a_saved_folder_has_the_layout_that_is_told(folder):
    assert json.loads((folder / CONFIG).read_text()) == {"format": 1, "timestep": 999, "upscale": 4}
    assert load_file(folder / EMBEDDING)["prompt_embedding"].shape == (1, 5, 12)
    for name in ("unet", "vae"):
        assert {p.name for p in (folder / name).iterdir()} == {"config.json", WEIGHTS}


def test_a_compiled_pipeline_is_saved_as_the_plain_one(make_pipe, folder, tmp_path):
    pipe = make_pipe()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipe.vae = torch.compile(pipe.vae, backend="eager")
    pipe.save(tmp_path)
    for name in ("unet", "vae"):
        assert (tmp_path / name / WEIGHTS).read_bytes() == (folder / name / WEIGHTS).read_bytes()


def test_weights_are_read_as_plain_half_variant_or_sharded_files(pipe, copied, pairs):
    expected = load_pipeline(copied)(pairs[0].lr)
    pipe.unet.save_pretrained(copied / "unet", max_shard_size="20KB")
    assert len(list((copied / "unet").glob("*-of-*"))) > 1
    (copied / "unet" / WEIGHTS).unlink(missing_ok=True)
    assert torch.equal(load_pipeline(copied)(pairs[0].lr), expected)
    half = load_pipeline(copied).half()
    for name in ("unet", "vae"):
        shutil.rmtree(copied / name)
        options = {"max_shard_size": "20KB"} if name == "unet" else {}
        getattr(half, name).save_pretrained(copied / name, variant="fp16", **options)
        assert not (copied / name / WEIGHTS).exists()
    torch.testing.assert_close(load_pipeline(copied)(pairs[0].lr), expected, rtol=0, atol=0.02)
    shutil.copy(copied / "vae" / WEIGHTS.replace(".s", ".fp16.s"), copied / "vae" / WEIGHTS.replace(".s", ".ema.s"))
    with refused(copied / "vae", "ema and fp16"):
        load_pipeline(copied)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def said(path, **values):
    """JSON with other values; a value of None takes the field away."""
    content = {k: v for k, v in (json.loads(path.read_text()) | values).items() if v is not None}
    path.write_text(json.dumps(content))


def change(path, name, **positions):
    """Safetensors without the tensor, or with a value set in it."""
    tensors = load_file(path)
    tensor = tensors.pop(name)
    for value in positions.values():
        tensor.view(-1)[-1] = value
        tensors[name] = tensor
    save_file(tensors, path)


def flip(path):
    """One bit of the last tensor, which stays a number."""
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def words_beyond(path):
    """A vocabulary with a word beyond the text encoder's."""
    content = json.loads(path.read_text())
    content["model"]["vocab"]["flat"] = 10_000
    path.write_text(json.dumps(content))


SHARD = "diffusion_pytorch_model-00001-of-00001.safetensors"
UNET, VAE, SCHEDULE = "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"
BREAKS = {
    "no unet": ("unet", lambda f: shutil.rmtree(f / "unet")),
    "no weights": ("", lambda f: (f / "unet" / WEIGHTS).unlink()),
    "truncated weights": ("", lambda f: cut(f / "unet" / WEIGHTS)),
    "other weights": ("", lambda f: said(f / UNET, block_out_channels=[24, 32])),
    "a weight missing": ("conv_in.weight", lambda f: change(f / "unet" / WEIGHTS, "conv_in.weight")),
    "a NaN": (f"unet/{WEIGHTS} has values in conv_in.bias",
              lambda f: change(f / "unet" / WEIGHTS, "conv_in.bias", last=torch.nan)),
    "an infinity": (f"vae/{WEIGHTS} has values in decoder.conv_out.weight",
                    lambda f: change(f / "vae" / WEIGHTS, "decoder.conv_out.weight", last=-torch.inf)),
    "no architecture": (VAE, lambda f: (f / VAE).unlink()),
    "an empty architecture": (f"{UNET} cannot be read as JSON: it is empty", lambda f: (f / UNET).write_text("")),
    "a field twice": ("scaling_factor", lambda f: (f / VAE).write_text('{"scaling_factor": 1, "scaling_factor": 2}')),
    "a number that is none": (VAE, lambda f: said(f / VAE, scaling_factor=float("nan"))),
    "a number too large": (SCHEDULE, lambda f: (f / SCHEDULE).write_text('{"beta_start": 1e400}')),
    "another prediction": ("prediction_type", lambda f: said(f / SCHEDULE, prediction_type="v_prediction")),
    "flow matching": ("Flow", lambda f: said(f / SCHEDULE, _class_name="FlowMatchEulerDiscreteScheduler")),
    "zero SNR": ("rescale_betas_zero_snr", lambda f: said(f / SCHEDULE, rescale_betas_zero_snr=True)),
    "a shifted latent": ("shift_factor", lambda f: said(f / VAE, shift_factor=0.1)),
    **{f"{field} without end": (field, lambda f, field=field, value=value: said(f / UNET, **{field: value}))
       for field, value in (("layers_per_block", 10**6), ("transformer_layers_per_block", 10**6),
                            ("reverse_transformer_layers_per_block", [[10**6], 1]), ("attention_head_dim", [2] * 10**5),
                            ("down_block_types", ["DownBlock2D"] * 10**5))},
    "a pipe for an architecture": (VAE, lambda f: (f / VAE).unlink() or os.mkfifo(f / VAE)),
    "weights whole and in shards": ("whole and in shards",
                                    lambda f: shutil.copy(f / "unet" / WEIGHTS, f / "unet" / SHARD)),
    "a list of settings": (CONFIG, lambda f: (f / CONFIG).write_text("[999, 4]")),
    "no timestep": ("timestep", lambda f: said(f / CONFIG, timestep=None)),
    "an unknown setting": ("guidance", lambda f: said(f / CONFIG, guidance=7.5)),
    "another format": ("format 2", lambda f: said(f / CONFIG, format=2)),
    "a word": ("'last'", lambda f: said(f / CONFIG, timestep="last")),
    "a fraction": ("999.7", lambda f: said(f / CONFIG, timestep=999.7)),
    "a truth": ("True", lambda f: said(f / CONFIG, timestep=True)),
    "no number": ("1e400", lambda f: (f / CONFIG).write_text('{"timestep": 1e400, "upscale": 4}')),
    "beyond the schedule": ("1000", lambda f: said(f / CONFIG, timestep=1000)),
    "an absurd upscale": ("upscale", lambda f: said(f / CONFIG, upscale=1_000_000)),
    "a truncated embedding": (EMBEDDING, lambda f: cut(f / EMBEDDING)),
    "another name": (EMBEDDING, lambda f: save_file({"prompt": torch.zeros(1, 5, 12)}, f / EMBEDDING)),
    "another width": (EMBEDDING, lambda f: save_file({"prompt_embedding": torch.zeros(1, 5, 8)}, f / EMBEDDING)),
    "a NaN in it": ("prompt_embedding", lambda f: change(f / EMBEDDING, "prompt_embedding", last=torch.nan)),
}  # fmt: skip


@pytest.mark.parametrize("what", BREAKS)
def test_a_folder_that_is_broken_or_not_understood_is_refused_in_one_sentence(copied, what):
    words, damage = BREAKS[what]
    damage(copied)
    with refused(copied, words):
        load_pipeline(copied)


def test_what_is_neither_folder_nor_model_is_refused_in_one_sentence():
    for name in ("nowhere", "./nowhere", "/nowhere/at/all", "some/where/else", "no-body/no-thing"):
        with refused(name):
            load_pipeline(name)


# -- the prompt branch ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    return lab.tiny(prompt=True).save(tmp_path_factory.mktemp("models") / "prompted")


def test_a_model_with_its_branch_survives_a_folder(prompted, pairs):
    assert torch.equal(load_pipeline(prompted, prompt=True)(pairs[0].lr), lab.tiny(prompt=True)(pairs[0].lr))
    assert load_pipeline(prompted).prompt is None


def test_a_branch_that_is_missing_or_not_understood_is_refused_in_one_sentence(folder, prompted, tmp_path):
    with refused("has no complete prompt branch"):
        load_pipeline(folder, prompt=True)
    tagger, encoder = "tagger/model.safetensors", "text_encoder/model.safetensors"
    name = min(load_file(prompted / encoder))
    for i, (words, damage) in enumerate((
        ("other tags", lambda f: said(f / "tagger/config.json", tags=["flat", "dark"])),
        ("tagger", lambda f: (f / "tagger/config.json").write_text("")),
        ("0.weight", lambda f: change(f / tagger, "0.weight", last=torch.nan)),
        (name, lambda f: change(f / encoder, name)), (name, lambda f: change(f / encoder, name, last=torch.inf)),
        ("tokenizer", lambda f: (f / "tokenizer/tokenizer.json").unlink()),
        (f"{tagger} is damaged", lambda f: flip(f / tagger)), (f"{encoder} is damaged", lambda f: flip(f / encoder)),
        ("width is 1000000000", lambda f: said(f / "tagger/config.json", width=10**9)),
        ("num_hidden_layers", lambda f: said(f / "text_encoder/config.json", num_hidden_layers=10**6)),
        ("does not ask for", lambda f: said(f / "text_encoder/config.json", num_hidden_layers=1)),
        ("more words", lambda f: words_beyond(f / "tokenizer/tokenizer.json")),
    )):  # fmt: skip
        copy = shutil.copytree(prompted, tmp_path / f"{i}")
        damage(copy)
        with refused(copy, words):
            load_pipeline(copy, prompt=True)


def test_threads_that_load_at_once_leave_torch_as_it_was(pipe, tmp_path):
    """diffusers puts what is made while it loads on the meta device, by a change that all threads see."""
    folder, before = pipe.save(tmp_path / "small"), nn.Module.register_parameter
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lab.load, [folder] * 16))
    assert nn.Module.register_parameter is before and nn.Linear(1, 1).weight.device.type == "cpu"
    assert len({fingerprint(one) for one in found}) == 1
