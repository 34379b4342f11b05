"""One model out of every layout and name, and what is not that model refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from synthetic import open_clip, single_file

from passionsr_lab.fullsize import names, tags, text, weights
from passionsr_lab.fullsize.load import load_full_size, load_model
from passionsr_lab.pipeline.onestep import OneStepSR
from passionsr_lab.util.hashing import sha256

OFFICIAL = Path(__file__).parents[3] / "shared" / "data" / "passionsr_official" / "empty_context_embedding.pt"
SINGLE = "v2-1_512-ema-pruned"
DIFFUSERS = "diffusion_pytorch_model"


def same(a, b):
    for name in ("unet", "vae"):
        ours, theirs = getattr(a, name).state_dict(), getattr(b, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    return True


def edited(file, edit):
    """Rewrites a safetensors file."""
    state = load_file(file)
    edit(state)
    save_file(state, file, {"format": "pt"})


# -- one model, every layout ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd21", f"{SINGLE}.safetensors", f"{SINGLE}.ckpt"])
def test_every_layout_is_the_same_model(base, shelf, here, name):
    by_path = load_model(shelf / name)
    here(name)
    by_name = load_model("sd21")
    assert same(by_path, base) and same(by_name, base)
    assert torch.equal(by_path.prompt_embedding, by_name.prompt_embedding)
    assert all(tensor.dtype == torch.float32 for tensor in by_name.parameters())
    assert (by_name.timestep, by_name.upscale, by_name.name, by_path.name) == (999, 4, "sd21", Path(name).name)


def test_a_folder_may_hold_half_precision_shards_and_the_names_of_old_diffusers(base, here):
    folder = here("sd21") / "sd21"
    expected = load_model("sd21").prompt_embedding
    for name, stem in (("unet", DIFFUSERS), ("text_encoder", "model")):
        file = folder / name / f"{stem}.safetensors"
        save_file({f"text_model.{k}" if name == "text_encoder" else k: v.half() for k, v in load_file(file).items()},
                  folder / name / f"{stem}.fp16.safetensors")  # fmt: skip
        file.unlink()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    file = folder / "vae" / f"{DIFFUSERS}.safetensors"
    state = load_file(file)
    for new, name in old.items():
        state = {key.replace(f".attentions.0.{new}.", f".attentions.0.{name}."): v for key, v in state.items()}
    assert sum(".query." in key for key in state) == 4
    for i in range(2):
        save_file(dict(sorted(state.items())[i::2]), folder / "vae" / f"{DIFFUSERS}-0000{i + 1}-of-00002.safetensors")
    file.unlink()
    pipe = load_model("sd21")
    assert same(pipe, base)
    torch.testing.assert_close(pipe.prompt_embedding, expected, rtol=1e-2, atol=1e-2)
    assert set(pipe.sources) == {
        f"unet/{DIFFUSERS}.fp16.safetensors", f"vae/{DIFFUSERS}-00001-of-00002.safetensors",
        f"vae/{DIFFUSERS}-00002-of-00002.safetensors", "text_encoder/model.fp16.safetensors",
    }  # fmt: skip


def test_at_the_real_widths_every_tensor_has_its_size(real):
    state = single_file(real.unet, real.vae)
    assert state["first_stage_model.encoder.mid.attn_1.q.weight"].ndim == 4
    for name, prefix in names.PREFIXES.items():
        own = {key: value.numel() for key, value in getattr(real, name).state_dict().items()}
        assert {names.diffusers_name(k): v.numel() for k, v in state.items() if k.startswith(prefix)} == own


def test_one_name_gives_the_adapted_model_and_one_folder_too(base, shelf, here, tmp_path):
    here("sd21", "osediff.pkl")
    expected = load_model("osediff")
    assert not torch.equal(expected.unet.conv_in.weight, base.unet.conv_in.weight)
    assert same(load_model(here("sd21", "osediff.pkl", into=tmp_path / "mine")), expected)
    shutil.copytree(shelf / "sd21", tmp_path / "flat")
    assert same(load_model(tmp_path / "flat"), base)
    shutil.copy(shelf / "osediff.pkl", tmp_path / "flat")
    assert same(load_model(tmp_path / "flat"), expected)
    assert same(load_model(tmp_path / "mine" / "osediff.pkl"), expected)
    assert expected(torch.rand(3, 9, 11)).shape == (3, 36, 44)
    again = load_model(expected.save(tmp_path / "own"))
    assert same(again, expected) and torch.equal(again.prompt_embedding, expected.prompt_embedding)


def test_full_size_goes_to_the_gpu_where_there_is_one(here, monkeypatch):
    here("sd21")
    devices = []
    monkeypatch.setattr(OneStepSR, "to", lambda self, device: devices.append(device) or self)
    load_model("sd21"), load_full_size("sd21", device="meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    load_model("sd21"), load_full_size("sd21", device="cpu")
    assert devices == ["cpu", "meta", "cuda", "cpu"]


def test_a_model_says_which_files_it_was_made_of(here):
    folder = here("sd21", "osediff.pkl")
    files = [*weights.files(folder / "sd21"), folder / "osediff.pkl"]
    assert len(files) == 4 and sorted(load_model("osediff").sources.values()) == sorted(map(sha256, files))


def test_other_names_mean_what_they_meant(tmp_path):
    for name in ("tiny", "owner/model", tmp_path, tmp_path / "absent", "osediff.pkl"):
        assert not weights.full_size(name)
    (tmp_path / "prompt_embedding.safetensors").touch()
    assert not weights.full_size(tmp_path), "a damaged folder of ours is explained as such"
    assert load_model("tiny").name == "tiny" and load_model("tiny", prompt=True).prompt is not None
    with pytest.raises(ValueError, match="not 8"):
        load_model(8)
    with pytest.raises(ValueError, match="tagger of its own"):
        load_model("tiny", prompt="wall")


# -- another model ----------------------------------------------------------------------------------------------------


def configured(name, **values):
    def edit(folder):
        file = folder / "sd21" / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return edit


def changed(name, edit):
    return lambda folder: edited(folder / "sd21" / name / f"{DIFFUSERS}.safetensors", edit)


WRONG = {
    "the 768-pixel model": (configured("scheduler", prediction_type="v_prediction"), "prediction_type is 'v_pred"),
    "flow matching": (configured("scheduler", _class_name="FlowMatchEulerDiscreteScheduler"), "FlowMatch"),
    "another schedule": (configured("scheduler", beta_schedule="linear"), 'beta_schedule is "linear", not "scaled'),
    "other heads": (configured("unet", attention_head_dim=8), "attention_head_dim is 8, not"),
    "a hostile depth": (configured("unet", transformer_layers_per_block=10**6), "transformer_layers_per_block"),
    "another norm": (configured("vae", norm_num_groups=16), "norm_num_groups is 16, not 32"),
    "another scaling": (configured("vae", scaling_factor=0.13025), "scaling_factor is 0.13025"),
    "CLIP's own activation": (configured("text_encoder", hidden_act="quick_gelu"), 'hidden_act is "quick_gelu"'),
    "a lost tensor": (changed("unet", lambda s: s.pop("conv_out.bias")), "unet of .* has no conv_out.bias; 1 of"),
    "a tensor too many": (changed("vae", lambda s: s.update(extra=torch.zeros(1))), "vae of .* has extra, which"),
    "no text encoder": (lambda f: shutil.rmtree(f / "sd21" / "text_encoder"), "text_encoder/config.json"),
    "no JSON": (lambda f: (f / "sd21/unet/config.json").write_text(""), "unet/config.json"),
}


@pytest.mark.parametrize("what", WRONG)
def test_another_or_an_incomplete_folder_is_told(here, what):
    edit, words = WRONG[what]
    edit(here("sd21"))
    with pytest.raises(ValueError, match=words) as error:
        load_model("sd21")
    assert "\n" not in str(error.value) and "sd21" in str(error.value)


KEY = "model.diffusion_model.middle_block.1.proj_in.weight"


@pytest.mark.parametrize(("edit", "words"), [
    (lambda s: s.pop(KEY), "unet of .* has no mid_block.attentions.0.proj_in.weight; 1 of its 686"),
    (lambda s: s.update({"first_stage_model.encoder.conv_in.gate": torch.zeros(1)}), "has encoder.conv_in.gate, which"),
    (lambda s: s.update({"first_stage_model.loss.weight": torch.zeros(1)}), "'loss.weight' is not an ldm name"),
    (lambda s: s.update({KEY: torch.zeros(3, 3)}), r"mid_block.attentions.0.proj_in.weight is \(3, 3\)"),
    (lambda s: s.pop("cond_stage_model.model.ln_final.bias"), "text_encoder of .* has no .*final_layer_norm.bias"),
    (lambda s: s.clear() or s.update(a=torch.zeros(1)), "686 of its 686"),
])  # fmt: skip
def test_another_or_an_incomplete_single_file_is_told(here, edit, words):
    edited(here(f"{SINGLE}.safetensors") / f"{SINGLE}.safetensors", edit)
    with pytest.raises(ValueError, match=words) as error:
        load_model("sd21")
    assert SINGLE in str(error.value)


# -- text -------------------------------------------------------------------------------------------------------------


def penultimate(state, ids, heads=4, layers=3):
    """OpenCLIP's text transformer by its definition, without its last block: (B, 77) -> (B, 77, D)."""
    get = lambda name: state[f"cond_stage_model.model.{name}"]
    x = get("token_embedding.weight")[ids] + get("positional_embedding")
    width, mask = x.shape[-1], torch.full((77, 77), -torch.inf).triu(1)
    norm = lambda x, name: F.layer_norm(x, (width,), get(f"{name}.weight"), get(f"{name}.bias"))
    for i in range(layers):
        block = f"transformer.resblocks.{i}"
        qkv = F.linear(norm(x, f"{block}.ln_1"), get(f"{block}.attn.in_proj_weight"), get(f"{block}.attn.in_proj_bias"))
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        mixed = ((q @ k.mT / q.shape[-1] ** 0.5 + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, get(f"{block}.attn.out_proj.weight"), get(f"{block}.attn.out_proj.bias"))
        inner = F.linear(norm(x, f"{block}.ln_2"), get(f"{block}.mlp.c_fc.weight"), get(f"{block}.mlp.c_fc.bias"))
        x = x + F.linear(F.gelu(inner), get(f"{block}.mlp.c_proj.weight"), get(f"{block}.mlp.c_proj.bias"))
    return norm(x, "ln_final")


def test_the_text_encoder_of_the_single_file_is_openclips_last_but_one(small):
    state = open_clip(seed=5)
    encoder, prompts = text.text_encoder(text.from_open_clip(state)), ["", "a red, textured wall, ,"]
    expected = penultimate(state, tags.tokenize(prompts))
    with torch.no_grad():
        found = encoder(tags.tokenize(prompts)).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert (found[0] - found[1]).abs().max() > 0.1
    torch.testing.assert_close(text.empty_embedding(encoder), expected[:1], rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not OFFICIAL.is_file(), reason="the released embedding is not there")
def test_the_released_embedding_is_read():
    embedding = text.read_embedding(OFFICIAL)
    assert embedding.shape == (1, 77, 1024) and embedding.dtype == torch.float32
    first = torch.tensor([-0.313442, -0.447572, -0.008218, -0.228018])
    torch.testing.assert_close(embedding.flatten()[:4], first, rtol=0, atol=1e-6)


def test_an_official_embedding_takes_the_place_of_the_text_encoder(here):
    folder = here("sd21", "osediff.pkl")
    computed = load_model("osediff").prompt_embedding
    torch.save(computed + 1, folder / "empty_context_embedding.pt")
    shutil.rmtree(folder / "sd21" / "text_encoder")
    pipe = load_model("osediff")
    assert torch.equal(pipe.prompt_embedding, computed + 1) and "empty_context_embedding.pt" in pipe.sources
    for content, words in (
        (torch.zeros(1, 77, 1024), "needs 32"),
        ({"a": 3}, "one tensor"),
        (computed * torch.nan, "not finite"),
    ):
        torch.save(content, folder / "empty_context_embedding.pt")
        with pytest.raises(ValueError, match=words):
            load_model("osediff")
