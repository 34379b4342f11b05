"""`deploy`, `upscale --deployed` and `bench deploy`."""

import json

import pytest
from PIL import Image

import passionsr_lab as lab
from passionsr_lab.bench import deploy as bench
from passionsr_lab.bench.deploy import Deploying

for name in ("onnx", "openvino", "onnxruntime"):
    pytest.importorskip(name, reason="needs the extra [deploy]")


@pytest.fixture(scope="module")
def quantized(calibrated, tmp_path_factory):
    return lab.save(calibrated("W6A6", "let"), tmp_path_factory.mktemp("quantized"))


def test_a_model_goes_from_calibrated_to_deployed_to_pictures(told, cli, model, quantized, picture, tmp_path):
    out = tmp_path / "integers"
    arguments = ("deploy", "--model", model, "--quantized", quantized, "--out", out, "--backend", "onnxruntime")
    code, result, _ = told(*arguments, "--onnx")
    assert code == 0 and result["label"] == "deployed" and (out / "onnx" / "unet.onnx").is_file()
    assert result["runs"].keys() == {"integers", "constant"} and set(result["bits"]) == {"6", "8"}
    assert result["bytes"] < result["float32_bytes"] and len(result["rows"]) == sum(result["runs"].values())
    code, text, _ = cli(*arguments)
    assert code == 0 and "of 6 bits" in text and "computed in 8-bit containers" in text and "unet: " in text
    picture(9, 7).save(tmp_path / "lr.png")
    code, result, _ = told("upscale", tmp_path / "lr.png", tmp_path / "x4.png", "--deployed", out)
    assert code == 0 and result["label"] == "deployed" and Image.open(tmp_path / "x4.png").size == (36, 28)


def test_what_does_not_fit_is_one_sentence(cli, model, quantized, picture, tmp_path):
    picture(9, 7).save(tmp_path / "lr.png")
    pictures = (tmp_path / "lr.png", tmp_path / "x4.png")
    for arguments, words in (
        (("deploy", "--model", model, "--quantized", model, "--out", tmp_path / "out"), "full-precision"),
        (("upscale", *pictures, "--deployed", quantized), "no deployed model"),
        (("upscale", *pictures, "--deployed", quantized, "--quantized", quantized), "leave out --quantized"),
    ):
        code, out, err = cli(*arguments)
        assert code == 2 and not out and words in err and err.count("\n") == 1, err
    assert not (tmp_path / "out").exists() and not (tmp_path / "x4.png").exists()


def test_the_benchmark_compares_with_the_fastest_float32_route(cli, model, monkeypatch, tmp_path):
    original = bench.deploying
    quick = Deploying(str(model), "W6A6", "maxmin", 32, 1, compiled=False)
    monkeypatch.setattr(bench, "deploying", lambda options: original(quick))
    code, out, _ = cli("bench", "deploy", "--json", "--report", tmp_path / "report.json")
    told = json.loads(out)
    assert code == 0 and told == json.loads((tmp_path / "report.json").read_text())
    machine, deployed, pictures, memory, *networks = told["records"]
    other = "simulated to itself in channels-last"
    assert all(pictures[key] > 25 for key in ("deployed to simulated", "simulated to itself", other))
    assert abs(pictures["deployed to HR"] - pictures["simulated to HR"]) < 0.1
    assert memory.keys() == {"step", "float32_bytes", "deployed_bytes"}
    assert machine["precision"] == "f32" and machine["openvino"] and deployed["bytes"] < deployed["float32_bytes"]
    assert [row["network"] for row in networks] == ["encoder", "unet", "decoder"]
    routes = {"torch", "torch channels-last", "openvino", "onnxruntime"}
    for row in networks:
        assert routes <= row["seconds"].keys() and row["base"] in routes
        assert row["seconds"][row["base"]] == min(row["seconds"][route] for route in routes)
        assert row["no_room_for"] == [] and all(integers > floats for integers, floats in row["slower"].values())
        assert set(row["seconds"]) - routes - {bench.DEPLOYED, bench.HALF} == (
            {bench.MIXED} if row["slower"] else set()
        )
        name = bench.NAMES[row["network"]]
        assert told["ratios"][name] == pytest.approx(row["seconds"][row["base"]] / row["seconds"]["deployed"])
        near, itself = row["decibels"].values()
        assert near > 25 and itself > 25
        assert all(row["decibels_to_torch"][route] > 80 for route in routes - {"torch"})
    totals = {r: sum(row["seconds"][r] for row in networks) for r in (*routes, "deployed")}
    least = min(totals[route] for route in routes)
    assert told["ratios"]["pipeline"] == pytest.approx(least / totals["deployed"])
