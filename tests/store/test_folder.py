"""Quantized pipelines as folders: to the last bit, or refused in one sentence."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import passionsr_lab as lab
from passionsr_lab.calibration.state import state
from passionsr_lab.methods import METHODS, calibrate
from passionsr_lab.pipeline.identity import fingerprint
from passionsr_lab.quantization.place import quantize
from passionsr_lab.quantization.recipe import W4A4, W6A6, W8A8
from passionsr_lab.store.folder import DESCRIPTION, TENSORS, load, save


@pytest.fixture(scope="module")
def trained(calibrated):
    return calibrated("W6A6", "passionsr", epochs=1, batch=6)


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    return save(trained, tmp_path_factory.mktemp("saved"))


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


CASES = {
    "split": (replace(W4A4, split=True), "let", {}), "real": (replace(W4A4, zero_point="real"), "lbq", {}),
    "U": (replace(W4A4, modules=("unet",)), "let", {}), "no attention": (replace(W4A4, attention=False), "maxmin", {}),
    "options": (W4A4, "let", {"alpha": 0.3, "shift": False}), "official": (W4A4.kept("unet.*"), "official", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_load_gives_what_was_saved_to_the_last_bit(pipe, pairs, tmp_path, case):
    recipe, method, options = CASES[case]
    q = quantize(pipe, recipe)
    calibrate(q, pairs[:2], METHODS[method].with_options(**options), epochs=1)
    back = load(save(q, tmp_path), pipe)
    assert back.recipe == q.recipe and back.history == json.loads(json.dumps(q.history))
    assert back.method.describe() == q.method.describe() and back.tile == q.tile
    assert torch.equal(back(pairs[0].lr), q(pairs[0].lr))
    before, after = state(q), state(back)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_a_folder_holds_what_quantization_added_and_finds_its_model(saved, trained, pipe, pairs, tmp_path):
    assert {p.name for p in saved.iterdir()} == {TENSORS, DESCRIPTION}
    description = json.loads((saved / DESCRIPTION).read_text())
    assert description["label"] == "simulated" and description["method"]["name"] == "passionsr"
    assert description["calibration"]["cost"]["seconds"] > 0
    model = load(pipe.save(tmp_path / "small"))
    assert torch.equal(load(saved, model)(pairs[0].lr), trained(pairs[0].lr))
    with pytest.raises(ValueError, match=r"'small'.*pipe=") as error:
        load(saved)
    assert one_sentence(error)
    q = quantize(lab.tiny(), W8A8)
    calibrate(q, pairs[:1], "maxmin")
    assert torch.equal(lab.load(lab.save(q, tmp_path / "q"))(pairs[0].lr), q(pairs[0].lr))


def test_a_model_with_anything_changed_that_decides_its_output_is_another_model(make_pipe, saved):
    def changed(change):
        other = make_pipe()
        change(other)
        return other

    same, first = make_pipe(), fingerprint(make_pipe())
    assert fingerprint(same) == first
    changes = [
        lambda p: p.unet.conv_in.weight.data[0, 0, 0, 0].add_(1e-6),
        lambda p: setattr(p, "timestep", 500),
        lambda p: setattr(p, "upscale", 2),
        lambda p: p.vae.register_to_config(scaling_factor=0.4),
        lambda p: p.prompt_embedding.add_(1e-6),
        lambda p: p.scheduler.alphas_cumprod.mul_(0.999),
        lambda p: p.unet.register_to_config(norm_eps=1e-3),
    ]
    for change in changes:
        other = changed(change)
        assert fingerprint(other) != first
        with pytest.raises(ValueError, match=r"another model \('small'\), not for 'small'; load that one\.$"):
            load(saved, other)
    with pytest.raises(ValueError, match=r"another model \('small'\), not for 'other'"):
        load(saved, make_pipe(name="other", unet=(16, 24)))


def one_sentence(error) -> bool:
    text = str(error.value)
    return "\n" not in text.strip() and 20 < len(text) < 600


def edit(change):
    return lambda path: path.write_text(json.dumps(change(json.loads(path.read_text()))))


def tensors(change):
    return lambda path: save_file({k: change(v) for k, v in load_file(path).items()}, path)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "truncated tensors": (TENSORS, lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2])),
    "empty tensors": (TENSORS, lambda p: p.write_bytes(b"")),
    "no tensors": (TENSORS, lambda p: p.unlink()),
    "tensors that are text": (TENSORS, lambda p: p.write_text("hello, these are no tensors at all")),
    "a flipped bit": (TENSORS, flip),
    "zeros": (TENSORS, tensors(torch.zeros_like)),
    "whole numbers": (TENSORS, tensors(lambda t: t.int())),
    "truncated description": (DESCRIPTION, lambda p: p.write_text(p.read_text()[:100])),
    "a list": (DESCRIPTION, lambda p: p.write_text("[1, 2]")),
    "no recipe": (DESCRIPTION, edit(lambda d: d | {"recipe": {}})),
    "an unknown setting": (DESCRIPTION, lambda p: p.write_text(p.read_text().replace('"split"', '"spilt"'))),
    "an unknown method": (DESCRIPTION, lambda p: p.write_text(p.read_text().replace('"passionsr"', '"nobody"'))),
    "an old format": (DESCRIPTION, edit(lambda d: {k: v for k, v in d.items() if k != "format"})),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_and_missing_files_are_refused_in_one_sentence(copied, pipe, what):
    file, damage = DAMAGE[what]
    damage(copied / file)
    with pytest.raises(ValueError, match="is not a complete quantized model") as error:
        load(copied, pipe)
    assert str(copied) in str(error.value) and one_sentence(error)


@pytest.mark.parametrize("change", [
    {"split": True}, {"attention": False}, {"modules": ["unet"]}, {"weight_bits": 4, "act_bits": 4, "name": "W4A4"},
], ids=str)  # fmt: skip
def test_the_tensors_of_another_recipe_or_calibration_are_refused(copied, pipe, pairs, calibrated, tmp_path, change):
    other = save(calibrated("W6A6", "let"), tmp_path / "other")
    shutil.copy(other / TENSORS, tmp_path / TENSORS)
    edit(lambda d: d | {"recipe": d["recipe"] | change})(copied / DESCRIPTION)
    with pytest.raises(ValueError) as error:
        load(copied, pipe)
    assert one_sentence(error)
    shutil.copy(tmp_path / TENSORS, copied / TENSORS)
    with pytest.raises(ValueError, match="is damaged, or one is another"):
        load(copied, pipe)


def test_what_cannot_be_saved_says_why(pipe, tmp_path):
    for wrong, told in ((pipe, "has save"), (quantize(pipe, W6A6), "not calibrated")):
        with pytest.raises(ValueError, match=told):
            save(wrong, tmp_path)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=str(folder)) as error:
            load(folder)
        assert one_sentence(error)
