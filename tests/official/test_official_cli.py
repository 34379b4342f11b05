"""Released files and YAML files on the command line, and calibrations that a signal ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from released import release, small_sd21
from safetensors.torch import load_file

import passionsr_lab
from passionsr_lab.imaging.pictures import read_image
from passionsr_lab.imaging.tiling import Tiling
from passionsr_lab.official import released as official
from passionsr_lab.official.yaml import KEYS, read
from passionsr_lab.quantization.recipe import KEEP
from passionsr_lab.quantization.surgery import DESCRIPTION, TENSORS, load

BLOCK = """
    quantype: PTQ
    method: saw_sep
    only_weight: False
    weight_quant_bits: {bits}
    weight_sym: False
    weight_sign: False
    act_quant_bits: {bits}
    act_sign: False
    act_sym: False
    split: {split}
    layer_type: 2Dquant
    s_alpha: 0.3
"""
BASIC = """
device: "cuda:0"
basic_config:
  seed: 42
  precision: "autocast"
  upscale: 4
  process_size: {size}
  lora_weights_path: models/osediff.ckpt
  pretrained_model_name_or_path: models/sd21
  config: models/v2-inference-v-fp32.yaml
  ckpt: models/v2-1_512-ema-pruned.ckpt
  context_embedding_path: models/empty_context_embedding.pt
  align_method: "{align}"
  merge_lora: True
"""
STAGE = "    cali_learning_rate: 1e-5\n    cali_epochs: 2\n    loss_function: mse\n    save_interval: 5\n"
UV = (
    BASIC + "  scale: 9.0\ncali_img_path: {images}\nact: false\n"
    "quantize_config:\n  quantize: True\n  only_Unet: False\n"
    "  Unet:" + BLOCK.replace("{split}", "True") + "  Vae:" + BLOCK.replace("{split}", "False")
    + "  output_modelpath: {out}\n  cali_batch_size: 4\n"
    + f"  Unet_train:\n{STAGE}    scheduler:\n      milestones: [1]\n      gamma: 0.2\n"
    + f"  encoder_train:\n{STAGE}  decoder_train:\n{STAGE}"
)  # fmt: skip
U = (
    BASIC + "cali_img_path: {images}\nquantize_config:\n  quantize: True\n  only_Unet: True\n"
    "  Unet:" + BLOCK.replace("{split}", "True") + "  output_modelpath: {out}\n  cali_batch_size: 4\n"
    + STAGE.replace("    ", "  ") + "  scheduler:\n    milestones: [1]\n    gamma: 0.1\n"
)  # fmt: skip
INFERENCE = (
    BASIC + "out_dir: {out}\ndataset: RealSR\n"
    "tile_config:\n  vae_decoder_tiled_size: 224\n  vae_encoder_tiled_size: 1024\n"
    "  latent_tiled_size: 64\n  latent_tiled_overlap: 32\nquantize_config:\n  quantize: True\n  only_Unet: False\n"
    "  Unet:\n    quant_ckpt: {unet}" + BLOCK.replace("{split}", "True")
    + "  Vae:\n    quant_ckpt: {vae}" + BLOCK.replace("{split}", "False")
)  # fmt: skip
VALUES = {"bits": 6, "size": 512, "align": "adain", "images": "data/cali_dataset", "out": "results/W6A6"}


@pytest.fixture
def yaml(tmp_path):
    """A function that fills in a file's values, makes replacements, and writes it."""

    def write(text, *changes, name="config.yaml", **values):
        text = text.format_map(VALUES | {"unet": "u.pth", "vae": "v.pth"} | values)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a small model with SD2.1's names."""
    return small_sd21().save(tmp_path_factory.mktemp("models") / "small-sd21")


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """A released UNet file and a released VAE file for it."""
    folder, pipe = tmp_path_factory.mktemp("released"), load(model)
    for part, split in (("unet", True), ("vae", False)):
        torch.save(release(pipe, part, split), folder / f"{part}_ckpt_merge_saw_sep.pth")
    return folder / "unet_ckpt_merge_saw_sep.pth", folder / "vae_ckpt_merge_saw_sep.pth"


def pictures(folder, count=2, size=16):
    for part, width in (("lr", size), ("hr", 4 * size)):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (width, width, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / part / f"{i}.png")
    return folder


# -- YAML -------------------------------------------------------------------------------------------------------------


def test_a_uv_file_becomes_our_recipe_and_options(yaml):
    config = read(yaml(UV), "calibrate")
    o = config.options
    assert (o["images"], o["out"], o["epochs"], o["batch"], o["seed"], o["size"]) == (
        "data/cali_dataset", Path("results/W6A6"), 2, 1, 42, 512)  # fmt: skip
    recipe = o["recipe"]
    assert (recipe.name, recipe.weight_bits, recipe.act_bits, recipe.alpha, recipe.beta) == ("W6A6", 6, 6, 0.3, 0.3)
    assert recipe.splits("unet.conv_in") and not recipe.splits("vae.encoder.conv_in") and recipe.numerics == "paper"
    assert recipe.modules == ("encoder", "unet", "decoder") and recipe.keep == KEEP and recipe.zero_point == "integer"
    unused = config.unused
    for key in ("device", "act", "basic_config.ckpt", "basic_config.align_method", "quantize_config.cali_batch_size",
                "quantize_config.Unet_train.scheduler.gamma", "quantize_config.Vae.only_weight"):  # fmt: skip
        assert key in unused and any(key in line and unused[key] in line for line in config.warnings)
    for key in ("cali_img_path", "basic_config.seed", "quantize_config.Unet.split", "quantize_config.output_modelpath"):
        assert key not in unused
    assert all(key in KEYS["calibrate"] for key in unused) and len(config.warnings) < 10


def test_a_u_file_quantizes_the_unet_alone(yaml):
    config = read(yaml(U, bits=8), "calibrate")
    assert config.options["recipe"].modules == ("unet",) and config.options["recipe"].name == "W8A8"
    assert config.options["epochs"] == 2


def test_a_vae_with_other_bits_is_an_exception_to_the_unets(yaml):
    second = UV.index("  Vae:")
    text = UV[:second] + UV[second:].replace("{bits}", "8")
    recipe = read(yaml(text), "calibrate").options["recipe"]
    assert recipe.bits("unet.conv_in") == (6, 6) and recipe.bits("vae.encoder.conv_in") == (8, 8)
    assert recipe.bits("unet.conv_out") == (8, 8) and recipe.name == "W6A6 VAE W8A8"


def test_what_the_other_only_unet_has_is_told_to_be_unused(yaml):
    text = U.replace("  output_modelpath", "  Vae:" + BLOCK.replace("{split}", "True") + "  output_modelpath")
    text += f"  encoder_train:\n{STAGE}"
    config = read(yaml(text), "calibrate")
    assert config.unused["quantize_config.Vae.split"] == "quantize_config.only_Unet is True"
    assert "quantize_config.encoder_train.cali_epochs" in config.unused and config.options["epochs"] == 2


WRONG = {
    "an unknown key": (UV, ("device", "devise"), "keys that .* do not have: devise"),
    "an unknown key within": (UV, ("    split: True", "    splitt: True"), "do not have: quantize_config.Unet.splitt"),
    "a missing key": (UV, ("  output_modelpath: results/W6A6", ""), "quantize_config.output_modelpath is missing"),
    "bits that are none": (UV, ("weight_quant_bits: 6", "weight_quant_bits: six"), "Unet.weight_quant_bits is 'six'"),
    "too many bits": (UV, ("weight_quant_bits: 6", "weight_quant_bits: 32"), "whole bits from 2 to 16, not 32"),
    "symmetric weights": (UV, ("weight_sym: False", "weight_sym: True"), "Unet.weight_sym is True; .* only be False"),
    "signed activations": (UV, ("act_sign: False", "act_sign: True"), "Unet.act_sign is True"),
    "the other quantizer": (UV, ("2Dquant", "normal_quant"), "Unet.layer_type is 'normal_quant'"),
    "another method": (UV, ("saw_sep", "saw"), "Unet.method is 'saw'"),
    "another loss": (UV, ("loss_function: mse", "loss_function: l1"), "Unet_train.loss_function is 'l1'"),
    "another factor": (UV, ("upscale: 4", "upscale: 2"), "basic_config.upscale is 2"),
    "epochs that differ": (UV, ("cali_epochs: 2", "cali_epochs: 3"), "Unet_train.cali_epochs 3, encoder_train.cali_"),
    "exponents that differ": (UV, ("s_alpha: 0.3", "s_alpha: 0.5"), "Unet.s_alpha and .*Vae.s_alpha differ"),
    "no VAE": (U, ("only_Unet: True", "only_Unet: False"), "only_Unet is False, but there is no quantize_config.Vae"),
    "nothing to do": (UV, ("quantize: True", "quantize: False"), "quantize_config.quantize is False"),
    "truth as a number": (UV, ("cali_epochs: 2", "cali_epochs: True"), "cali_epochs is True; it must be a int"),
    "no YAML": (UV, ("device:", "device: ["), "is not a YAML file"),
    "an inference file": (INFERENCE, ("RealSR", "DRealSR"), "is a file for `upscale`, not for `calibrate`"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_refused_and_the_key_named(yaml, cli, tmp_path, what):
    text, change, message = WRONG[what]
    file = yaml(text, change)
    with pytest.raises(ValueError, match=message):
        read(file, "calibrate")
    code, out, err = cli("calibrate", "--config_file", file, "--json")
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_calibrate_takes_a_file_and_our_options_override_it(cli, yaml, tmp_path, pipe):
    small = pipe.save(tmp_path / "small")
    file = yaml(UV, images=pictures(tmp_path / "pairs", size=8), out=tmp_path / "theirs", size=16)
    common = ("calibrate", "--config_file", file, "--model", small, "--epochs", 1, "--json")
    code, out, err = cli(*common)
    told = json.loads(out)
    assert code == 0 and (told["recipe"], told["pairs"], told["seed"]) == ("W6A6", 2, 42)
    assert told["out"] == str(tmp_path / "theirs") and (tmp_path / "theirs" / TENSORS).is_file()
    assert all(line.startswith(f"warning: {file}: ") for line in err.splitlines()) and "basic_config.ckpt" in err
    saved = load(tmp_path / "theirs", load(small))
    assert saved.history["epochs"] == 1 and saved.history["batch"] == 1, "given, and from the file"
    assert saved.recipe.split == ("unet.*",) and saved.recipe.alpha == 0.3
    code, out, _ = cli(*common, "--recipe", "W4A4", "--out", tmp_path / "ours")
    assert code == 0 and json.loads(out)["recipe"] == "W4A4" and (tmp_path / "ours" / TENSORS).is_file()


def test_upscale_takes_an_inference_file(cli, yaml, model, files, tmp_path):
    file = yaml(INFERENCE, out=tmp_path / "out", unet=files[0], vae=files[1], bits=8)
    source = pictures(tmp_path / "pairs", 1) / "lr"
    code, out, err = cli("upscale", source, "--config_file", file, "--model", model, "--json")
    told = json.loads(out)
    assert code == 0 and told["label"] == "simulated", err
    image = np.asarray(Image.open(tmp_path / "out" / "RealSR" / "0.png"))
    q = official.load(load(model), files, "W8A8")
    expected = np.asarray(q.picture(read_image(source / "0.png"), Tiling(64, 32), "adain"))
    assert np.array_equal(image, expected), "as the library loads the same files, in its tiles and with its colours"
    assert "warning:" in err and "basic_config.lora_weights_path" in err


def test_an_inference_file_names_tiles_colours_and_files(yaml):
    config = read(yaml(INFERENCE, align="wavelet"), "upscale")
    o = config.options
    assert (o["tile"], o["overlap"], o["colour"], o["model"]) == (64, 32, "wavelet", "osediff")
    assert o["released"] == [Path("u.pth"), Path("v.pth")] and o["output"] == Path("results/W6A6/RealSR")
    assert o["recipe"].name == "W6A6" and "tile_config.vae_decoder_tiled_size" in config.unused
    plain = read(yaml(INFERENCE, ("quantize: True", "quantize: False")), "upscale").options
    assert plain["released"] == [] and plain["recipe"] is None
    with pytest.raises(ValueError, match="is a file for `calibrate`, not for `upscale`"):
        read(yaml(UV), "upscale")


def test_files_of_another_split_than_the_yaml_says_are_refused(cli, yaml, model, files, tmp_path):
    file = yaml(INFERENCE, ("split: True", "split: False"), out=tmp_path, unet=files[0], vae=files[1])
    code, out, err = cli("upscale", pictures(tmp_path / "in", 1) / "lr", "--config_file", file, "--model", model)
    assert code == 2 and out == "" and "two in unet_ckpt_merge_saw_sep.pth, but one in the recipe" in err


@pytest.mark.parametrize("arguments", [("upscale", "a.png"), ("calibrate", "--recipe", "W6A6")])
def test_what_neither_the_command_nor_a_file_gives_is_asked_for(cli, arguments):
    code, out, err = cli(*arguments)
    assert code == 2 and out == "" and err.startswith("usage: ") and "required: out" in err


# -- convert ----------------------------------------------------------------------------------------------------------


def test_convert_there_and_back_changes_nothing(cli, model, files, tmp_path):
    code, out, _ = cli("convert", "--from", "official", *files, "--model", model, "--recipe", "W8A8", "--out",
                       tmp_path / "q", "--json")  # fmt: skip
    told = json.loads(out)
    assert code == 0 and told["tensors"] == 3730 + 680 and told["unmatched"] == 0 and out.count("\n") == 1
    assert [row["norms"] for row in told["files"]] == [218, 104] and told["recipe"] == "W8A8 official"
    assert [row["norm_difference"] for row in told["files"]] == [0, 0]
    code, out, _ = cli(
        "convert", "--from", "lab", tmp_path / "q", "--model", model, "--out", tmp_path / "back", "--json"
    )
    assert code == 0 and json.loads(out)["lost"] == []
    for file in files:
        before, after = (torch.load(f, weights_only=True) for f in (file, tmp_path / "back" / file.name))
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_convert_without_weights_fits_the_model_with_the_files_norms_only(cli, model, files, tmp_path, monkeypatch):
    from passionsr_lab.official import convert as official_files

    bare = small_sd21().to("meta")
    monkeypatch.setattr(official_files, "sd21", lambda: bare)
    code, out, err = cli("convert", files[1], "--model", "sd21", "--recipe", "W6A6", "--out", tmp_path / "q", "--json")
    assert code == 0 and json.loads(out)["files"][0]["norm_difference"] is None, err
    assert json.loads((tmp_path / "q" / DESCRIPTION).read_text())["model"] == "osediff"
    pipe, x = load(model), torch.rand(3, 16, 16)
    assert torch.equal(load(tmp_path / "q", pipe)(x), official.load(pipe, files[1:], "W6A6")(x))
    with pytest.raises(ValueError, match="was calibrated for another model"):
        load(tmp_path / "q", small_sd21(seed=1))
    code, out, err = cli("convert", files[1], "--model", "sd21", "--recipe", "W6A6", "--numerics", "paper", "--out",
                         tmp_path / "p")  # fmt: skip
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


def test_the_commands_give_examples(cli):
    for command in ("upscale", "calibrate", "convert"):
        out = cli(command, "--help")[1]
        assert f"examples:\n  python -m passionsr_lab {command} " in out


# -- signals ----------------------------------------------------------------------------------------------------------


def start(out, images, model, seed=3):
    """`calibrate` in a process of its own."""
    command = [sys.executable, "-m", "passionsr_lab", "calibrate", "--model", model, "--images", images, "--out", out,
               "--seed", seed, "--epochs", 3, "--batch", 1, "--pairs", 4, "--size", 64]  # fmt: skip
    root = Path(passionsr_lab.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(c) for c in command], cwd=root, env=environment, **pipes)


def wait_for(file, changed_since=0, seconds=240):
    """Waits until the file is there and newer than that."""
    until = time.monotonic() + seconds
    while not (file.exists() and file.stat().st_mtime_ns > changed_since):
        assert time.monotonic() < until, f"{file.name} was not written"
        time.sleep(0.02)
    return file.stat().st_mtime_ns


@pytest.mark.slow
def test_a_calibration_that_signals_end_twice_gives_what_an_undisturbed_one_gives(pipe, tmp_path):
    """Ctrl-C, then kill -9 in the middle of the rest, then to the end: the same tensors."""
    model, images = pipe.save(tmp_path / "small"), pictures(tmp_path / "pairs", 4)
    state = tmp_path / "disturbed" / "unfinished.pt"
    process = start(state.parent, images, model)
    written = wait_for(state)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130 and out == "" and "run the same command again to go on" in err
    assert [p.name for p in state.parent.iterdir()] == ["unfinished.pt"]
    first = torch.load(state, weights_only=True)
    process = start(state.parent, images, model)
    wait_for(state, state.stat().st_mtime_ns)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and state.stat().st_mtime_ns > written
    second = torch.load(state, weights_only=True)
    assert (second["stage"], second["step"]) > (first["stage"], first["step"]), "it went on, not anew"
    process = start(state.parent, images, model)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0 and not state.exists(), err
    process = start(tmp_path / "whole", images, model)
    assert process.communicate(timeout=240) and process.returncode == 0
    ours, whole = (load_file(folder / TENSORS) for folder in (state.parent, tmp_path / "whole"))
    assert ours.keys() == whole.keys() and all(torch.equal(ours[k], whole[k]) for k in ours)
