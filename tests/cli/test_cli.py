"""The command line, called in this process: exit codes, what is printed where, and what is written."""

import json
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from passionsr_lab.calibration.loop import Calibration
from passionsr_lab.imaging.pictures import read_image, to_image
from passionsr_lab.imaging.tiling import Tiling
from passionsr_lab.methods import METHODS
from passionsr_lab.store.folder import DESCRIPTION, TENSORS, load

PICTURES = {"a.png": (9, 7), "b.jpg": (16, 11), "c.bmp": (1, 1), "d.TIF": (5, 3), "e.webp": (12, 8)}


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def model(pipe, tmp_path_factory):
    return pipe.save(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for name, size in PICTURES.items():
        picture(*size).save(tmp_path / "in" / name)
    return tmp_path / "in"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        picture(40 + i, 36, i).resize((80, 72)).save(folder / f"photo{i}.png")
    return folder


def one_object(out):
    """The JSON object that is everything on standard output, in strict JSON."""
    assert out.count("\n") == 1 and out.endswith("\n")
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def one_sentence(err):
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err, err
    return err


# -- upscale ----------------------------------------------------------------------------------------------------------


def test_a_folder_comes_out_under_the_same_names_four_times_as_large(cli, folder, model, tmp_path):
    code, out, _ = cli("upscale", folder, tmp_path / "out", "--model", model, "--json")
    told = one_object(out)
    assert code == 0 and told["failed"] == [] and told["label"] == "float" and told["model"] == "small"
    assert {p.name for p in (tmp_path / "out").iterdir()} == set(PICTURES)
    for row, (name, (w, h)) in zip(told["images"], PICTURES.items()):
        assert row["output"].endswith(name) and (row["width"], row["height"]) == (4 * w, 4 * h)
        with Image.open(tmp_path / "out" / name) as image:
            assert image.size == (4 * w, 4 * h)


@pytest.mark.parametrize(("options", "tiling"), [
    (["--tile", 8, "--overlap", 2], Tiling(8, 2)), (["--tile", 8], Tiling(8)), (["--overlap", 3], Tiling(64, 3)),
    (["--tile", 0], None), ([], "auto"),
])  # fmt: skip
@pytest.mark.parametrize("colour", ["adain", "wavelet", "nofix"])
def test_tiles_and_colours_are_options(cli, folder, model, tmp_path, options, tiling, colour):
    code, _, err = cli("upscale", folder / "a.png", tmp_path / "x.png", "--model", model, *options, "--colour", colour)
    assert code == 0 and err == ""
    expected = load(model).picture(read_image(folder / "a.png"), tiling, colour)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), np.asarray(expected))


@pytest.mark.parametrize("wrong", [["--tile", -1], ["--tile", 8, "--overlap", 8], ["--colour", "sepia"]])
def test_tiles_and_colours_that_cannot_be_are_refused(cli, folder, model, tmp_path, wrong):
    code, out, err = cli("upscale", folder, tmp_path / "out", "--model", model, *wrong)
    assert code == 2 and out == "" and one_sentence(err)
    assert not (tmp_path / "out").exists()


def test_one_picture_is_what_the_library_makes_of_it(cli, folder, model, pipe, tmp_path):
    code, out, err = cli("upscale", folder / "a.png", tmp_path / "deep" / "x.png", "--model", model)
    assert code == 0 and "small" in out and err == ""
    expected = np.asarray(to_image(load(model)(read_image(folder / "a.png"))))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "deep" / "x.png")), expected)


def test_the_embedded_model_is_the_default(cli, folder, tmp_path):
    code, out, _ = cli("upscale", folder / "a.png", tmp_path / "x.png", "--json")
    assert code == 0 and one_object(out)["model"] == "tiny"
    assert Image.open(tmp_path / "x.png").size == (36, 28)


def test_a_damaged_picture_among_good_ones_costs_only_itself(cli, folder, model, tmp_path):
    whole = (folder / "b.jpg").read_bytes()
    (folder / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "a0.png").write_text("no picture")
    code, out, err = cli("upscale", folder, tmp_path / "out", "--model", model, "--json")
    told = one_object(out)
    assert code == 1 and err.count("error: ") == err.count("\n") == 2
    assert [row["input"].rpartition("/")[2] for row in told["failed"]] == ["a0.png", "b.jpg"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == PICTURES.keys() - {"b.jpg"}


def test_odd_kinds_of_pictures_go_through(cli, model, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    image = picture(6, 5)
    image.convert("L").save(source / "grey.png")
    image.convert("RGBA").save(source / "alpha.png")
    image.quantize(7).save(source / "palette.png")
    Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257).save(source / "deep.png")
    image.convert("CMYK").save(source / "print.jpg")
    code, out, _ = cli("upscale", source, tmp_path / "out", "--model", model, "--json")
    assert code == 0 and len(one_object(out)["images"]) == 5
    assert {Image.open(p).size for p in (tmp_path / "out").iterdir()} == {(24, 20)}


UPSCALE_ERRORS = {
    "no input": (lambda f: (f / "nothing.png", f.parent / "x.png"), "There is no image at"),
    "a damaged picture": (lambda f: (damaged(f), f.parent / "x.png"), "cannot be read as an image"),
    "an empty folder": (lambda f: (empty(f), f.parent / "out"), "holds no images"),
    "no model": (lambda f: (f, f.parent / "out", "--model", f / "no" / "model"), "There is no folder"),
    "a folder that is no model": (lambda f: (f, f.parent / "out", "--model", f), "passionsr.json"),
    "no quantized model": (lambda f: (f, f.parent / "out", "--quantized", f / "none"), "none"),
    "a folder that is not quantized": (lambda f: (f, f.parent / "out", "--quantized", f), "in"),
    "the input as output": (lambda f: (f, f), "would overwrite the input"),
    "no suffix": (lambda f: (f / "a.png", f.parent / "x"), "unknown file extension"),
}


def damaged(folder):
    (folder / "bad.png").write_bytes(b"no picture")
    return folder / "bad.png"


def empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize("what", UPSCALE_ERRORS)
def test_what_cannot_be_upscaled_is_told_in_one_sentence(cli, folder, model, what):
    make, message = UPSCALE_ERRORS[what]
    before = {p.name: p.read_bytes() for p in folder.glob("*.*")}
    arguments = list(make(folder))
    arguments += [] if "--model" in arguments else ["--model", model]
    code, out, err = cli("upscale", *arguments, "--json")
    assert code == 2 and out == "" and message in one_sentence(err)
    assert all((folder / name).read_bytes() == content for name, content in before.items())


# -- calibrate --------------------------------------------------------------------------------------------------------

SHORT = ("--pairs", 3, "--size", 16, "--epochs", 1, "--batch", 2)


@pytest.fixture
def calibrate(cli, model, photos):
    """A function (out folder, method, *more) that runs `calibrate` on three small pairs."""

    def run(out, method="passionsr", *more):
        return cli("calibrate", "--model", model, "--images", photos, "--out", out, "--method", method, *SHORT, *more)

    return run


@pytest.mark.parametrize("method", METHODS)
def test_every_method_calibrates_and_tells_one_object(cli, calibrate, model, folder, tmp_path, method):
    code, out, err = calibrate(tmp_path / "q", method, "--recipe", "W6A6", "--json")
    told = one_object(out)
    assert code == 0 and err == ""
    assert (told["model"], told["label"], told["recipe"], told["method"]) == ("small", "simulated", "W6A6", method)
    assert told["pairs"] == 3 and told["seconds"] > 0 and told["seed"] == 0
    stages = [(s.segment, "+".join(s.train)) for s in METHODS[method].stages] or [("all", "ranges")]
    assert [(row["module"], row["stage"]) for row in told["losses"]] == stages
    assert all(0 < row["last"] <= row["first"] for row in told["losses"])
    assert told["peak_bytes"] > 1e6 or not METHODS[method].stages
    assert {p.name for p in (tmp_path / "q").iterdir()} == {TENSORS, DESCRIPTION}
    code, out, _ = cli("upscale", folder, tmp_path / "up", "--model", model, "--quantized", tmp_path / "q", "--json")
    assert code == 0 and one_object(out)["label"] == "simulated"
    expected = to_image(load(tmp_path / "q", load(model))(read_image(folder / "a.png")))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "up" / "a.png")), np.asarray(expected))


def tensors(folder):
    return load_file(folder / TENSORS)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_same_command_gives_the_same_tensors_and_another_seed_others(calibrate, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        code, out, _ = calibrate(tmp_path / name, "lbq", "--recipe", "W4A4", "--seed", seed)
        assert code == 0 and "W4A4" in out and not out.startswith("{")
    assert equal(tensors(tmp_path / "one"), tensors(tmp_path / "two"))
    assert not equal(tensors(tmp_path / "one"), tensors(tmp_path / "three"))


@pytest.mark.parametrize(("method", "step", "total"), [("passionsr", 5, 16), ("lbq+let", 2, 4)])
def test_an_interruption_within_a_step_loses_nothing(calibrate, monkeypatch, tmp_path, method, step, total):
    code, out, _ = calibrate(tmp_path / "whole", method, "--json")
    whole, steps, original = one_object(out), [], torch.optim.Adam.step

    def interrupted(self, *args):
        steps.append(1)
        if len(steps) == step:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C, before the parameters of this step have moved
        return original(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    code, out, err = calibrate(tmp_path / "parts", method, "--json")
    assert code == 130 and out == "" and "run the same command again to go on" in err and err.count("\n") == 1
    assert signal.getsignal(signal.SIGINT) is handler
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["unfinished.pt"]
    code, out, _ = calibrate(tmp_path / "parts", method, "--json")
    again = one_object(out)
    assert code == 0 and equal(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))
    assert again["losses"] == whole["losses"], "those of the stages before the interruption too"
    assert not (tmp_path / "parts" / "unfinished.pt").exists()
    assert len(steps) == total, "no step is done twice"


def test_an_unfinished_run_of_other_settings_is_not_taken_up(calibrate, monkeypatch, tmp_path):
    original = Calibration.run

    def run(self, keep):
        for record in original(self, keep):
            signal.raise_signal(signal.SIGINT)
            yield record

    monkeypatch.setattr(Calibration, "run", run)
    assert calibrate(tmp_path / "q", "lbq")[0] == 130
    monkeypatch.undo()
    code, out, err = calibrate(tmp_path / "q", "lbq", "--seed", 7)
    assert code == 2 and out == "" and "other settings; delete it to start anew" in one_sentence(err)
    assert calibrate(tmp_path / "q", "lbq")[0] == 0


def test_ready_pairs_are_taken_from_lr_and_hr(cli, model, tmp_path):
    for part, size in (("lr", (8, 8)), ("hr", (32, 32))):
        (tmp_path / "pairs" / part).mkdir(parents=True)
        for i in range(2):
            picture(*size, seed=i).save(tmp_path / "pairs" / part / f"{i}.png")
    arguments = ("--model", model, "--images", tmp_path / "pairs", "--out", tmp_path / "q", "--method", "let")
    code, out, _ = cli("calibrate", *arguments, "--json")
    assert code == 0 and one_object(out)["pairs"] == 2
    (tmp_path / "pairs" / "hr" / "1.png").unlink()
    code, _, err = cli("calibrate", *arguments)
    assert code == 2 and "must hold the same names" in one_sentence(err)


CALIBRATE_ERRORS = {
    "a recipe that is none": (("--recipe", "W9"), "name is like W6A6"),
    "a width that is none": (("--recipe", "W1A4"), "whole bits from 2 to 16"),
    "no pairs": (("--pairs", 0), "is not in the range x>=1"),
    "no epochs": (("--epochs", 0), "is not in the range x>=1"),
    "an odd crop": (("--size", 30), "multiple of 4"),
    "a crop larger than the photographs": (("--size", 512), "too small for 512-pixel crops"),
    "no folder": (("--images", "no/such/folder"), "is not a folder"),
    "no model": (("--model", "./nowhere"), "There is no folder"),
}


@pytest.mark.parametrize("what", CALIBRATE_ERRORS)
def test_what_cannot_be_calibrated_is_told_in_one_sentence(calibrate, tmp_path, what):
    more, message = CALIBRATE_ERRORS[what]
    code, out, err = calibrate(tmp_path / "q", "maxmin", *more, "--json")
    assert code == 2 and out == "" and message in one_sentence(err)
    assert not (tmp_path / "q").exists()


def test_a_damaged_photograph_is_named(calibrate, photos, cli, model, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "photo1.png").write_bytes(b"no picture")
    code, _, err = calibrate(tmp_path / "q", "maxmin", "--images", tmp_path / "photos")
    assert code == 2 and "photo1.png cannot be read" in one_sentence(err)


def test_another_models_quantization_is_refused(cli, calibrate, make_pipe, folder, tmp_path):
    assert calibrate(tmp_path / "q", "maxmin")[0] == 0
    other = make_pipe(seed=1).save(tmp_path / "other")
    code, out, err = cli("upscale", folder, tmp_path / "out", "--model", other, "--quantized", tmp_path / "q", "--json")
    assert code == 2 and out == "" and "calibrated for another model" in one_sentence(err)


@pytest.mark.parametrize("arguments", [
    (), ("upscale",), ("calibrate",), ("calibrate", "--out", "x", "--method", "magic"), ("paint",),
    ("calibrate", "--out", "x", "--epochs", "many"),
])  # fmt: skip
def test_wrong_usage_has_exit_code_2_and_says_how(cli, arguments):
    code, out, err = cli(*arguments)
    assert code == 2 and out == "" and err.startswith("Usage: python -m passionsr_lab")


@pytest.mark.parametrize("command", [(), ("upscale",), ("calibrate",), ("compare",), ("train",), ("evaluate",)])
def test_every_command_explains_itself(cli, command):
    code, out, err = cli(*command, "--help")
    assert code == 0 and err == "" and out.startswith("Usage: python -m passionsr_lab")
    assert "--json" in out or not command


# -- evaluate, compare ------------------------------------------------------------------------------------------------


def test_evaluate_compares_with_bicubic(cli, model, photos):
    code, out, _ = cli("evaluate", "--model", model, "--images", photos, "--pairs", 2, "--size", 32, "--json")
    told = one_object(out)
    assert code == 0 and told["images"] == 2 and told["gain"] == told["psnr_y"] - told["bicubic"]
    assert told["gain"] < 0 and told["better_on"] == 0, "random weights are worse than bicubic"


def test_compare_prints_the_table_and_keeps_its_runs(cli, model, monkeypatch, tmp_path):
    small = {"pairs": 1, "size": 16, "test_pairs": 1, "test_size": 32}
    for name, value in small.items():
        monkeypatch.setitem(sys.modules["passionsr_lab.evaluation.sweep"].DEFAULTS, name, value)
    options = ("--model", model, "--recipes", "W4A4", "--methods", "maxmin,let", "--cache", tmp_path / "cache")
    code, out, _ = cli("compare", *options, "--csv", tmp_path / "table.csv")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["recipe", "W32A32", "W4A4", "W4A4"]
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 2
    code, out, _ = cli("compare", *options, "--json")
    assert code == 0 and [row["method"] for row in one_object(out)["runs"]] == ["maxmin", "let"]
