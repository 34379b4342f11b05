"""What the commands do, called in this process: exit codes, JSON keys, files."""

import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import passionsr_lab as lab
from passionsr_lab.analysis.layers import layer_table
from passionsr_lab.calibration.loop import Calibration
from passionsr_lab.evaluation import iqa
from passionsr_lab.evaluation.sweep import DEFAULTS
from passionsr_lab.evaluation.tuning import SERIES
from passionsr_lab.imaging.pictures import read_image
from passionsr_lab.imaging.tiling import Tiling

TENSORS, SHORT = "quantized.safetensors", ("--pairs", 3, "--size", 16, "--epochs", 1, "--batch", 2)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- upscale ----------------------------------------------------------------------------------------------------------


def test_a_folder_comes_out_under_its_names_and_what_does_not_is_named(picture, told, cli, model, tmp_path):
    source, sizes = tmp_path / "in", {"a.png": (9, 7), "c.bmp": (1, 1), "d.TIF": (5, 3), "e.webp": (12, 8)}
    (source / "sub").mkdir(parents=True)
    for name, size in {**sizes, "b.jpg": (16, 11), ".hidden.png": (4, 4)}.items():
        picture(*size).save(source / name)
    (source / "b.jpg").write_bytes((source / "b.jpg").read_bytes()[:400])
    (source / "a0.png").write_text("no picture")
    (source / "notes.txt").write_text("no picture")
    code, result, err = told("upscale", source, tmp_path / "out", "--model", model)
    assert code == 1 and err.count("error: ") == 2 and err.count("\n") == 3
    assert err.startswith("left out") and "notes.txt, sub\n" in err and ".hidden" not in err
    assert (result["model"], result["label"]) == ("small", "float")
    assert [Path(row["input"]).name for row in result["failed"]] == ["a0.png", "b.jpg"]
    assert {Path(row["output"]).name: (row["width"] // 4, row["height"] // 4) for row in result["images"]} == sizes
    assert {p.name: tuple(s // 4 for s in Image.open(p).size) for p in (tmp_path / "out").iterdir()} == sizes
    assert cli("upscale", source, tmp_path / "out", "--model", model, "--quiet")[2].count("\n") == 2, "errors only"


def test_one_picture_is_what_the_library_makes_of_it_with_these_tiles_and_colours(picture, cli, model, tmp_path):
    picture(16, 11).save(tmp_path / "a.png")
    for options, tiling, colour in (
        ((), "auto", "nofix"),
        (("--tile", 0), None, "wavelet"),
        (("--tile", 8, "--overlap", 2), Tiling(8, 2), "adain"),
        (("--tile", 8), Tiling(8), "nofix"),
        (("--overlap", 3), Tiling(64, 3), "nofix"),
    ):
        target = tmp_path / "deep" / "x.png"
        code, out, err = cli("upscale", tmp_path / "a.png", target, "--model", model, "--colour", colour, *options)
        assert code == 0 and err == "" and "label: float" in out
        expected = lab.load(model).picture(read_image(tmp_path / "a.png"), tiling, colour)
        assert np.array_equal(np.asarray(Image.open(target)), np.asarray(expected)), options


def test_progress_is_on_a_terminal_only_and_not_with_quiet(picture, cli, model, tmp_path, monkeypatch):
    picture(4, 4).save(tmp_path / "a.png")
    command = ("upscale", tmp_path / "a.png", tmp_path / "b.png", "--model", model)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert "0/1" in cli(*command)[2] and cli(*command, "--quiet")[2] == ""


# -- calibrate --------------------------------------------------------------------------------------------------------


def test_a_stopped_calibration_goes_on_and_gives_the_same_bytes(told, cli, model, photos, tmp_path, monkeypatch):
    """By Ctrl-C and by SIGTERM, each within a step; then with other settings, which is refused."""
    command = ("calibrate", "--model", model, "--images", photos, *SHORT, "--recipe", "W6A6", "--out")
    code, whole, err = told(*command, tmp_path / "whole")
    assert code == 0 and err == "" and whole.keys() >= {
        "model", "label", "recipe", "method", "pairs", "seed", "losses", "seconds", "peak_bytes", "out",
    }  # fmt: skip
    assert (whole["model"], whole["label"], whole["recipe"]) == ("small", "simulated", "W6A6")
    assert (whole["method"], whole["pairs"], whole["seed"]) == ("passionsr", 3, 0)
    assert all(row.keys() == {"module", "stage", "first", "last"} for row in whole["losses"])
    stages = [f"{m} {s}" for m in ("encoder", "unet", "decoder") for s in ("transform+bounds", "bounds")]
    assert [f"{row['module']} {row['stage']}" for row in whole["losses"]] == stages
    steps, original = [], torch.optim.Adam.step
    signals, handlers = {3: signal.SIGINT, 7: signal.SIGTERM}, (signal.SIGINT, signal.SIGTERM)

    def interrupted(self, *args):
        steps.append(1)
        if len(steps) in signals:
            signal.raise_signal(signals[len(steps)])  # before the parameters of this step have moved
        return original(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    before = [signal.getsignal(number) for number in handlers]
    for _ in signals:
        code, out, err = cli(*command, tmp_path / "parts", "--json")
        assert (code, out, err) == (130, "", "interrupted; run the same command again to go on\n")
        assert files(tmp_path / "parts").keys() == {"unfinished.pt"}
    assert [signal.getsignal(number) for number in handlers] == before
    code, out, err = cli(*command, tmp_path / "parts", "--seed", 7)
    assert code == 2 and out == "" and "other settings; delete it to start anew" in err
    assert told(*command, tmp_path / "parts")[1]["losses"] == whole["losses"]
    parts, undisturbed = files(tmp_path / "parts"), files(tmp_path / "whole")
    assert parts.keys() == undisturbed.keys() and parts[TENSORS] == undisturbed[TENSORS]
    assert len(steps) == sum(stage.steps(1, 2) for stage in lab.METHODS["passionsr"].stages), "no step is done twice"


def test_calibrate_takes_modules_rates_device_and_lean(picture, told, model, photos, tmp_path):
    common = ("calibrate", "--model", model, "--images", photos, *SHORT, "--method", "lbq", "--modules", "unet")
    outs = [tmp_path / name for name in ("plain", "lean", "rates", "seed")]
    for out, more in zip(outs, ((), ("--lean", "--device", "cpu"), ("--rates", "bounds=0.1"), ("--seed", 1))):
        assert told(*common, *more, "--out", out)[0] == 0
    plain, lean, rates, seed = ((out / TENSORS).read_bytes() for out in outs)
    assert plain == lean != rates != seed != plain
    q = lab.load(outs[0], lab.load(model))
    assert q.recipe.modules == ("unet",) and set(layer_table(q).module) == {"unet"}
    picture(9, 7).save(tmp_path / "a.png")
    options = ("--model", model, "--quantized", outs[0])
    assert told("upscale", tmp_path / "a.png", tmp_path / "b.png", *options)[1]["label"] == "simulated"
    expected = q.picture(read_image(tmp_path / "a.png"), "auto", "nofix")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), np.asarray(expected))


def test_pairs_makes_what_calibrate_reads(told, model, photos, tmp_path):
    code, result, _ = told("pairs", "--images", photos, "--out", tmp_path / "set", "--count", 4, "--size", 16)
    expected = {"pairs": 4, "count": 4, "size": 16, "seed": 0, "degradation": "camera", "out": str(tmp_path / "set")}
    assert code == 0 and result == expected and len(files(tmp_path / "set" / "lr")) == 4
    command = ("calibrate", "--model", model, "--images", tmp_path / "set", "--method", "let", "--out", tmp_path / "q")
    assert told(*command)[1]["pairs"] == 4


# -- tables -----------------------------------------------------------------------------------------------------------


def test_compare_prints_the_table_and_takes_finished_runs_from_its_cache(told, cli, model, tmp_path, monkeypatch):
    for name, value in {"pairs": 1, "size": 16, "test_pairs": 1, "test_size": 32}.items():
        monkeypatch.setitem(DEFAULTS, name, value)
    command = ("compare", "--model", model, "--recipes", "W4A4", "--methods", "maxmin,let", "--cache", tmp_path / "c")
    code, out, _ = cli(*command, "--csv", tmp_path / "table.csv")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["recipe", "W32A32", "W4A4", "W4A4"]
    assert len(pd.read_csv(tmp_path / "table.csv")) == 3
    monkeypatch.setattr(Calibration, "run", lambda self: pytest.fail("this run is in the cache"))
    spaced = ("--methods", "maxmin", "let", "--recipes", "W4A4", "W4A4,", "W4A4", "--quiet")
    code, out, _ = cli("compare", "--model", model, "--cache", tmp_path / "c", *spaced)
    rows = [line.split() for line in out.splitlines()][1:]
    assert code == 0 and [(row[0], row[-2]) for row in rows[1:]] == [("W4A4", "1.000")] * 2, "twice is once"
    runs = told(*command)[1]["runs"]
    assert [row["method"] for row in runs] == ["maxmin", "let"]
    assert [row["psnr_y"] for row in runs] == pytest.approx(list(pd.read_csv(tmp_path / "table_runs.csv").psnr_y))


def test_compare_takes_several_models_and_thread_counts_and_makes_costs_equal(told, model, tmp_path, monkeypatch):
    for name, value in {"pairs": 1, "size": 16, "test_pairs": 1, "test_size": 32}.items():
        monkeypatch.setitem(DEFAULTS, name, value)
    other = lab.load(model).save(tmp_path / "other")
    command = ("compare", "--recipes", "W4A4", "--epochs", 1, "--pairs", 1, "--cache", tmp_path / "c", "--methods")
    runs = told(*command, "let", "--model", model, other, "--threads", 1, 2)[1]["runs"]
    assert [(row["model"], row["threads"]) for row in runs] == [(str(m), n) for m in (model, other) for n in (1, 2)]
    once = told(*command, "lbq", "--model", model)[1]["runs"][0]
    (again,) = told(*command, "lbq", "--model", model, "--cost", 9 * once["cpu_seconds"])[1]["runs"]
    assert again["pairs"] == 8 and once["pairs"] == 1, "whole batches"


def test_rates_are_chosen_on_tuning_pictures_and_compared_on_others(told, cli, model, tmp_path, monkeypatch):
    for name, value in {"size": 16, "test_pairs": 1, "test_size": 32}.items():
        monkeypatch.setitem(DEFAULTS, name, value)
    shared = ("--model", model, "--recipes", "W4A4", "--epochs", 1, "--pairs", 1, "--cache", tmp_path / "c")
    code, result, _ = told("tune", *shared, "--methods", "maxmin,lbq", "--csv", tmp_path / "tuning.csv")
    tried = [row["rates"] for row in result["runs"]]
    assert code == 0 and tried[:4] == [0.3, 1.0, 3.0, 10.0] and len(tried) == len({*tried})
    assert {(row["method"], row["tests"]) for row in result["runs"]} == {("lbq", "tuning")}
    best = max(result["runs"], key=lambda row: row["psnr_fp"])
    at = SERIES.index(best["rates"])
    assert {*SERIES[max(at - 1, 0) : at + 2]} <= {*tried}, "what lies beside the best was tried"
    compared = ("compare", *shared, "--tuned", tmp_path / "tuning.csv", "--methods")
    rows = told(*compared, "maxmin,lbq")[1]["runs"]
    assert [(row["rates"], row["tests"]) for row in rows] == [(1.0, "test"), (best["rates"], "test")] and best["chosen"]
    big = ("table2", "--model", model, "--out", tmp_path / "out", "--bits", "W4A4", "--metrics", "psnr", "--count", 1,
           "--crop", 32, "--pairs", 1, "--size", 16, "--epochs", 1, "--tuned", tmp_path / "tuning.csv", "--store",
           tmp_path / "c", "--methods")  # fmt: skip
    made = set((tmp_path / "c" / "models").iterdir())
    assert [row["method"] for row in told(*big, "maxmin,lbq")[1]["rows"]] == ["MaxMin", "LBQ"]
    assert set((tmp_path / "c" / "models").iterdir()) == made, "these are the models of compare, with its rates"
    for command in (compared, big):
        code, _, err = cli(*command, "passionsr")
        assert code == 2 and "run `tune` with it" in err and err.count("\n") == 1


def test_a_mixed_recipe_is_a_file_that_calibrate_cost_and_compare_take(told, cli, model, tmp_path, monkeypatch):
    for name, value in {"size": 16, "test_pairs": 1, "test_size": 32}.items():
        monkeypatch.setitem(DEFAULTS, name, value)
    file, few = tmp_path / "mixed.json", ("--pairs", 1, "--size", 16)
    budget = ("--budget", "weight_bits=5", "--widths", 4, 8)
    code, result, _ = told("mixed", "--model", model, *budget, *few, "--out", file)
    given = {bits for _, values in result["recipe"]["overrides"] for bits in dict(values).values()}
    assert code == 0 and given and given < {4, 8} and 4 < result["cost"]["weight_bits"] <= 5
    code, costs, _ = told("cost", "--model", model, "--recipe", file)
    assert code == 0 and costs["recipe"] == result["recipe"]["name"]
    code, made, _ = told(
        "calibrate", "--model", model, "--recipe", file, "--method", "maxmin", *few, "--out", tmp_path / "q"
    )
    assert code == 0 and lab.load(tmp_path / "q", pipe=lab.load(model)).recipe == lab.Recipe.from_dict(result["recipe"])
    command = ("compare", "--model", model, "--recipes", file, "W4A4", "--methods", "maxmin", "--pairs", 1)
    runs = told(*command, "--cache", tmp_path / "c")[1]["runs"]
    assert [row["recipe"] for row in runs] == [made["recipe"], "W4A4"]
    code, _, err = cli("mixed", "--model", model, *few, "--budget", "weight_bits=1", "--out", file)
    assert code == 2 and "The least that these widths allow is 4" in err and err.count("\n") == 1
    code, _, err = cli("mixed", "--model", "none", "--budget", "bits=4", "--out", file)
    assert code == 2 and "one of weight_bits, megabytes, bit_operations, not bits" in err


def test_table2_is_one_command_and_gives_the_same_bytes_when_it_goes_on(told, model, tmp_path):
    command = ("table2", "--model", model, "--out", tmp_path / "out", "--bits", "W4A4", "--metrics", "psnr",
               "--methods", "PassionSR-FP,maxmin", "--count", 1, "--crop", 32, "--pairs", 1, "--size", 16,
               "--resume")  # fmt: skip
    code, first, _ = told(*command)
    assert code == 0 and [row["method"] for row in first["rows"]] == ["PassionSR-FP", "MaxMin"]
    assert first["rows"][0]["PSNR"] > 0 and first["notes"] == [] and first["paths"]
    written = [Path(path).read_bytes() for path in first["paths"]]
    assert told(*command)[1] == first
    assert [Path(path).read_bytes() for path in first["paths"]] == written


def test_evaluate_and_cost(told, model, photos):
    code, result, _ = told("evaluate", "--model", model, "--images", photos, "--pairs", 2, "--size", 32)
    assert code == 0 and (result["model"], result["images"], result["better_on"]) == ("small", 2, 0)
    assert result["gain"] == result["psnr_y"] - result["bicubic"] < 0, "random weights are worse than bicubic"
    asked = ("--images", photos, "--pairs", 2, "--size", 32, "--protocol", "offline")
    code, scored, _ = told("evaluate", "--model", model, *asked)
    assert code == 0 and {k: scored[k] for k in result} == result
    assert scored["bicubic_scores"]["psnr_y"] == pytest.approx(result["bicubic"], abs=1e-3)  # 8 bits are scored
    assert (
        scored["model_scores"]["ms_ssim"] is None and scored["model_scores"]["gmsd"] > scored["bicubic_scores"]["gmsd"]
    )
    code, result, _ = told("cost", "--model", "sd21", "--recipe", "W6A6")
    assert code == 0 and (result["model"], result["recipe"], result["size"]) == ("sd21", "W6A6", 512)
    assert (round(result["paper"]["params_M"]), int(result["paper"]["ops_G"])) == (178, 795)
    assert result["seconds"] < 60 and told("cost", "--model", "tiny", "--size", 256)[1]["recipe"] == "W32A32"


def test_the_cost_of_a_quantized_folder_has_its_branches(cli, told, model, photos, tmp_path):
    folder = tmp_path / "branched"
    asked = ("--images", photos, "--pairs", 1, "--size", 32, "--epochs", 1, "--method", "svdquant", "--recipe", "W4A4")
    assert told("calibrate", "--model", model, *asked, "--out", folder)[0] == 0
    code, ours, _ = told("cost", "--quantized", folder, "--model", model, "--size", 64)
    plain = told("cost", "--model", model, "--recipe", "W4A4", "--size", 64)[1]
    assert code == 0 and (ours["recipe"], ours["paper"]) == ("W4A4", plain["paper"])
    branches = [layer.branch for layer in lab.load(folder, lab.load(model)).layers.values() if hasattr(layer, "branch")]
    numbers = sum(b.up.numel() + b.down.numel() for b in branches if b is not None)
    assert ours["exact"]["bytes"] - plain["exact"]["bytes"] == 2 * numbers > 0
    assert ours["exact"]["bit_operations"] > plain["exact"]["bit_operations"]
    code, _, err = cli("cost", "--quantized", folder, "--recipe", "W4A4")
    assert code == 2 and "--quantized has a recipe of its own" in err


def test_cost_and_measure_print_aligned_tables_of_the_numbers_that_json_has(cli, told, photos, tmp_path):
    result = told("cost", "--model", "tiny", "--recipe", "W6A6", "--size", 256)[1]
    code, out, _ = cli("cost", "--model", "tiny", "--recipe", "W6A6", "--size", 256)
    head, exact, paper = out.split("\n\n")
    assert code == 0 and f"parameters: {result['parameters']}\n" in head and head.startswith("model: tiny\n")
    for part, key, title in ((exact, "exact", "exactly"), (paper, "paper", "as the paper counts")):
        first, columns, *rows = part.rstrip("\n").split("\n")
        assert first == title and len({len(row) for row in rows}) == 1, "aligned"
        assert [row[:10].strip() for row in rows] == ["encoder", "unet", "decoder", "in 32 bits", "all"]
        whole = {k: v for k, v in result[key].items() if not isinstance(v, dict)}
        assert {*whole} <= {*columns.split()} and all(
            f"{v:.12g}" in rows[-1] for v in whole.values() if v == round(v, 3)
        )
    assert "in 32 bits" not in cli("cost", "--model", "tiny", "--size", 256)[1]
    command = ("measure", "-i", photos, "-r", photos, "--metrics", "psnr", "ssim")
    scores, (code, out, _) = told(*command)[1]["scores"], cli(*command)
    rows = out.split("\n\n")[0].splitlines()[2:]
    assert code == 0 and [row.split()[0] for row in rows] == [row["metric"] for row in scores] == ["psnr_y", "ssim_y"]
    assert f"{scores[0]['mean']:.6g}" in rows[0] and "\nimages: 3\n" in out


def test_measure_is_the_mean_and_a_metric_without_weights_says_why(picture, told, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "ours").mkdir()
    for i, file in enumerate(sorted(photos.iterdir())):
        picture(80, 72, seed=i).save(tmp_path / "ours" / file.name)
    command = ("measure", "-i", tmp_path / "ours", "-r", photos, "--metrics", "psnr,musiq", "--csv", tmp_path / "a.csv")
    iqa.network.cache_clear()
    code, result, _ = told(*command)
    iqa.network.cache_clear()
    psnr, musiq = result["scores"]
    frame = pd.read_csv(tmp_path / "a.csv")
    assert code == 0 and result["images"] == psnr["n"] == 3 and (psnr["metric"], psnr["note"]) == ("psnr_y", "")
    assert psnr["mean"] == pytest.approx(frame[frame.metric == "psnr_y"].value.mean())
    assert (musiq["n"], musiq["mean"]) == (0, None) and musiq["note"].startswith("musiq is not available: ")
    assert result["versions"]["weights"] == {"musiq_koniq_ckpt-e95806b9.pth": "absent"}


def test_prefetch_goes_on_after_a_file_that_cannot_be_had(told, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    there = tmp_path / "hub" / "pyiqa" / "niqe_modelparameters.mat"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"weights")
    code, result, _ = told("prefetch", "--protocol", "passionsr")
    rows = {row["file"]: row for row in result["files"]}
    assert rows.pop(there.name) == {"metrics": ["niqe"], "file": there.name, "note": "", "sha256": iqa.sha256(there)}
    assert code == 1 and result["missing"] == len(rows) and {"RN50.pt", "ckpt_koniq10k.pt"} <= rows.keys()
    assert all(row["sha256"] == "absent" and "HF_HUB_OFFLINE" in row["note"] for row in rows.values())
