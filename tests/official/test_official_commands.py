"""Released files and YAML files on the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from released import small_sd21
from safetensors.torch import save_file
from test_yaml import INFERENCE, UV, B, Q, write  # noqa: F401

from passionsr_lab.imaging.pictures import read_image
from passionsr_lab.imaging.tiling import Tiling
from passionsr_lab.official import released as official
from passionsr_lab.store import convert
from passionsr_lab.store.folder import DESCRIPTION, NORMS, TENSORS, load


def pictures(folder, count=2, size=16):
    for part, width in (("lr", size), ("hr", 4 * size)):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (width, width, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / part / f"{i}.png")
    return folder


@pytest.fixture
def inference(write, files, tmp_path):  # noqa: F811
    """A function (changes) -> an inference file for the released files that writes to tmp_path/out."""
    paths = {f"{Q}{block}.quant_ckpt": str(file) for block, file in zip(("Unet", "Vae"), files)}
    bits = {f"{Q}{block}.{key}_quant_bits": 8 for block in ("Unet", "Vae") for key in ("weight", "act")}
    return lambda **changes: write(INFERENCE, {"out_dir": str(tmp_path / "out")} | paths | bits | changes)


def test_calibrate_takes_a_file_and_our_options_override_it(cli, write, tmp_path, pipe):  # noqa: F811
    small, images = pipe.save(tmp_path / "small"), pictures(tmp_path / "pairs", size=8)
    changes = {"cali_img_path": str(images), f"{Q}output_modelpath": str(tmp_path / "theirs"), f"{B}process_size": 16}
    file = write(UV, changes)
    common = ("calibrate", "--config_file", file, "--model", small, "--epochs", 1, "--json")
    code, out, err = cli(*common)
    assert code == 0, err
    told = json.loads(out)
    assert (told["recipe"], told["pairs"], told["seed"]) == ("W6A6", 2, 42)
    assert told["out"] == str(tmp_path / "theirs") and (tmp_path / "theirs" / TENSORS).is_file()
    assert all(line.startswith(f"warning: {file}: ") for line in err.splitlines()) and "basic_config.ckpt" in err
    saved = load(tmp_path / "theirs", load(small))
    assert saved.history["epochs"] == 1 and saved.history["batch"] == 1, "given, and from the file"
    assert saved.recipe.split == ("unet.*",) and saved.method.slots.alpha == 0.3
    code, out, err = cli(*common, "--recipe", "W4A4", "--out", tmp_path / "ours")
    assert code == 0, err
    assert json.loads(out)["recipe"] == "W4A4" and (tmp_path / "ours" / TENSORS).is_file()


def test_upscale_takes_an_inference_file(cli, inference, model, files, tmp_path):
    source = pictures(tmp_path / "pairs", 1) / "lr"
    code, out, err = cli("upscale", source, "--config_file", inference(), "--model", model, "--json")
    assert code == 0 and json.loads(out)["label"] == "simulated", err
    image = np.asarray(Image.open(tmp_path / "out" / "RealSR" / "0.png"))
    q = official.load_released(load(model), files, "W8A8")
    expected = np.asarray(q.picture(read_image(source / "0.png"), Tiling(64, 32), "adain"))
    assert np.array_equal(image, expected), "as the library loads the same files, in its tiles and with its colours"
    assert "warning:" in err and "basic_config.lora_weights_path" in err


def test_what_does_not_fit_is_told_in_one_line(cli, inference, model, tmp_path):
    source = ("upscale", pictures(tmp_path / "in", 1) / "lr", "--model", model, "--config_file")
    for changes, message in (
        ({f"{Q}Unet.split": False}, "two in unet_ckpt_merge_saw_sep.pth, but one in the recipe"),
        ({"devise": "cpu"}, "do not have: devise"),
    ):
        code, out, err = cli(*source, inference(**changes))
        lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
        assert code == 2 and out == "" and len(lines) == 1 and message in lines[0], err
    for arguments in (("upscale", "a.png"), ("calibrate", "--recipe", "W6A6")):
        code, out, err = cli(*arguments)
        assert code == 2 and out == "" and err.startswith("Usage: ") and "Missing" in err


def test_convert_there_and_back_changes_nothing(cli, model, files, tmp_path):
    code, out, _ = cli("convert", "--from", "official", *files, "--model", model, "--recipe", "W8A8", "--out",
                       tmp_path / "q", "--json")  # fmt: skip
    told = json.loads(out)
    assert code == 0 and told["tensors"] == 3730 + 680 and told["unmatched"] == 0 and told["recipe"] == "W8A8 official"
    assert [(row["norms"], row["norm_difference"]) for row in told["files"]] == [(218, 0), (104, 0)]
    code, out, _ = cli(
        "convert", "--from", "lab", tmp_path / "q", "--model", model, "--out", tmp_path / "back", "--json"
    )
    assert code == 0 and json.loads(out)["lost"] == []
    for file in files:
        before, after = (torch.load(f, weights_only=True) for f in (file, tmp_path / "back" / file.name))
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_convert_without_weights_fits_the_model_with_the_files_norms_only(cli, model, files, tmp_path, monkeypatch):
    bare = small_sd21().to("meta")
    monkeypatch.setattr(convert, "sd21", lambda: bare)
    command = ("convert", files[1], "--model", "sd21", "--recipe", "W6A6", "--out")
    code, out, err = cli(*command, tmp_path / "q", "--json")
    assert code == 0 and json.loads(out)["files"][0]["norm_difference"] is None, err
    assert json.loads((tmp_path / "q" / DESCRIPTION).read_text())["model"] == "osediff"
    pipe, x = load(model), torch.rand(3, 16, 16)
    assert torch.equal(load(tmp_path / "q", pipe)(x), official.load_released(pipe, files[1:], "W6A6")(x))
    with pytest.raises(ValueError, match="was calibrated for another model"):
        load(tmp_path / "q", small_sd21(seed=1))
    norms = tmp_path / "q" / NORMS
    whole = norms.read_bytes()
    for damaged in (whole[:-4] + b"\0\0\0\x40", whole[:100], b""):
        norms.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"norms\.safetensors is damaged"):
            load(tmp_path / "q", pipe)
    save_file({"vae.other": torch.ones(1)}, norms)
    with pytest.raises(ValueError, match="not what was written beside"):
        load(tmp_path / "q", pipe)
    norms.unlink()
    with pytest.raises(ValueError, match=r"There is no file .*norms\.safetensors"):
        load(tmp_path / "q", pipe)
    code, out, err = cli(*command, tmp_path / "p", "--numerics", "paper")
    assert code == 2 and "needs the model's weights" in err and not (tmp_path / "p").exists()


def test_convert_lists_the_corrections_and_what_cannot_be_converted(cli, model, files, tmp_path):
    code, out, _ = cli("convert", files[1], "--model", model, "--recipe", "W8A8", "--numerics", "paper", "--out",
                       tmp_path / "q", "--json")  # fmt: skip
    assert code == 0 and json.loads(out)["corrections"] == official.CORRECTIONS
    for arguments, message in (
        ((files[1], "--model", model), "do not say for how many bits"),
        ((tmp_path / "none.pth", "--model", model), "There is no file"),
        (("--from", "lab", files[1], "--model", model), "Give the one folder"),
        (("--from", "lab", model, "--model", model), "is a full-precision model"),
        (("--from", "lab", tmp_path / "q", "--model", "sd21"), "with its weights"),
    ):
        code, out, err = cli("convert", *arguments, "--out", tmp_path / "x")
        assert code == 2 and out == "" and message in err and not (tmp_path / "x").exists()
