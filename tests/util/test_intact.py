"""Files with checksums are believed only as they were written: a flipped bit is refused, wherever it is."""

import random

import pytest
import torch
from made import picture, refused
from safetensors.torch import load_file, save_file

from passionsr_lab.imaging.pictures import read_image
from passionsr_lab.util.checkpoint import read_checkpoint, require_intact
from passionsr_lab.util.files import write_checkpoint, write_tensors

TENSORS = {
    "a": torch.arange(600.0).view(20, 30), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(2),
    "d": torch.rand(4, 5).T, "e": torch.empty(0),
    "f": torch.tensor([3.0]).as_strided((1, 1), (0, 0)),
}  # fmt: skip


def safetensors(path):
    write_tensors(path.with_suffix(".safetensors"), TENSORS)
    return path.with_suffix(".safetensors"), read_checkpoint


def zipped(path):
    write_checkpoint(path.with_suffix(".pt"), TENSORS)
    return path.with_suffix(".pt"), read_checkpoint


def png(path):
    picture(20, 30).save(path.with_suffix(".png"))
    return path.with_suffix(".png"), lambda p: {"": read_image(p)}


def same(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("kind", [safetensors, zipped, png])
def test_damage_anywhere_is_refused_or_changes_nothing(tmp_path, kind):
    path, load = kind(tmp_path / "file")
    good, wanted, rng, refusals = path.read_bytes(), load(path), random.Random(0), 0
    for i in range(120):
        bad, at = bytearray(good), rng.randrange(len(good))
        if i % 3 == 0:
            del bad[at:]
        elif i % 3 == 1:
            bad[at : at + 9] = bytes(len(bad[at : at + 9]))
        else:
            bad[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:
            assert same(load(path), wanted), f"{i}: believed"
        except ValueError as error:
            assert path.name in str(error) and "\n" not in str(error)
            refusals += 1
    assert refusals > 60


def test_files_of_others_that_have_no_digest_are_believed(tmp_path):
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_tensors(ours, TENSORS)
    assert same(load_file(ours), TENSORS), "and others read ours"
    save_file({k: v.contiguous() for k, v in TENSORS.items()}, theirs, {"format": "pt"})
    for path in (ours, theirs):
        require_intact(path)
        assert same(read_checkpoint(path), TENSORS)


def test_a_model_whose_weights_were_damaged_is_refused_and_one_that_was_written_anew_is_not(pipe, tmp_path):
    import passionsr_lab as lab

    folder = pipe.save(tmp_path / "model")
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "prompt_embedding"):
        file = folder / f"{name}.safetensors"
        good = file.read_bytes()
        file.write_bytes(good[:-7] + bytes([good[-7] ^ 1]) + good[-6:])
        with refused(file.name, "is damaged"):
            lab.load(folder)
        tensors = load_file(file)
        save_file(tensors, file, {"format": "pt"})
        assert lab.load(folder).name == "model"
