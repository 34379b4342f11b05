"""A deployed model from end to end: what is in its folder, what comes out, and what is refused."""

import json
import re
import subprocess
import sys

import pytest
import torch
from made import picture, refused

import passionsr_lab as lab
from passionsr_lab.deployment.folder import DESCRIPTION, NETWORKS, read
from passionsr_lab.deployment.packing import unpack
from passionsr_lab.deployment.pipeline import ends
from passionsr_lab.imaging.psnr import psnr_y
from passionsr_lab.imaging.tiling import PASSIONSR, Tiling
from passionsr_lab.quantization.layer import QuantLayer
from passionsr_lab.util.extras import required


@pytest.fixture(scope="module")
def pictures():
    return list(lab.bundled("test")[:3])


def decibels(a, b):
    return (10 * torch.log10(1 / (a - b).square().mean().clamp_min(1e-30))).item()


CASES = (("W6A6", "let", "openvino"), ("W8A8", "let", "onnxruntime"), ("W4A4", "maxmin", "onnxruntime"))


@pytest.mark.parametrize("case", CASES)
def test_it_gives_what_the_simulation_gives(case, calibrated, deployed, pictures):
    """A value at half a step rounds either way, and that spreads: the simulation is told from itself the same way, when
    the picture differs in its last bits."""
    *case, backend = case
    q, pipe = calibrated(*case), lab.load_deployed(deployed(*case)[0], backend)
    assert pipe.label == "deployed" and (pipe.factor, pipe.multiple, pipe.tile) == (q.factor, q.multiple, q.tile)
    ours, itself, scores = [], [], []
    for pair in pictures:
        simulated, found = q(pair.lr), pipe(pair.lr)
        ours.append(decibels(found, simulated))
        itself += [decibels(q(pair.lr * (1 + part)), simulated) for part in (1e-6, -1e-6, 3e-6)]
        scores.append(psnr_y(found, pair.hr) - psnr_y(simulated, pair.hr))
    assert min(ours) > min(itself) - 3, (ours, itself)
    assert abs(sum(scores) / len(scores)) < 0.05, scores


def test_any_size_tiles_and_a_pil_image_as_in_float(calibrated, deployed):
    q, pipe = calibrated("W6A6", "let"), lab.load_deployed(deployed()[0], "onnxruntime")
    assert pipe(picture(9, 13)).size == (52, 36)
    lr = torch.rand(3, 40, 23, generator=torch.Generator().manual_seed(0))
    tiles = Tiling(16, 4)
    assert decibels(pipe(lr, tiles), q(lr, tiles)) > 30
    assert pipe(torch.stack([lr, lr.flip(-1)])).shape == (2, 3, 160, 92)
    with refused("share their norms", "shared=False"):
        pipe(lr, PASSIONSR)


def test_every_layer_has_a_row_and_what_is_constant_is_gone(calibrated, deployed):
    q, (_folder, report) = calibrated("W6A6", "let"), deployed()
    rows = {row["layer"]: row for row in report["rows"]}
    names = {name for name, layer in q.layers.items() if isinstance(layer, QuantLayer)}
    assert len(rows) == len(report["rows"]) and names <= rows.keys()
    constant = {name for name, row in rows.items() if row["runs"] == "constant"}
    expected = {n for n in names if re.search(r"time_emb|attn2\.to_[kv]$", n)}
    assert constant == expected and constant
    packed = {k.removesuffix(".weight") for part in report["networks"].values() for k in part["codes"]}
    assert packed == names - constant
    assert rows["unet.mid_block.attentions.0.proj_in"]["let"] == "folded"
    assert rows["vae.decoder.mid_block.resnets.0.conv1"]["let"] == "fused"


def test_the_files_take_their_bits_and_codes_come_back_bit_by_bit(calibrated, deployed, pipe):
    for case in (("W6A6", "let"), ("W8A8", "let"), ("W4A4", "maxmin")):
        q, (folder, report) = calibrated(*case), deployed(*case)
        _, parts = read(folder)
        bits = 0
        for part in parts.values():
            for name, (data, width, shape, _) in part.codes.items():
                layer = q.layers[name.removesuffix(".weight")]
                expected = layer.frozen().halves[0].weight_codes[: shape[0]]
                assert torch.equal(unpack(data, width, shape).int(), expected) and width == layer.setting.weight_bits
                bits += expected.numel() * width
        found = sum(part["bytes"]["codes"] for part in report["networks"].values())
        assert bits <= 8 * found < bits + 8 * 100
        sizes = report["sizes"]
        assert sizes == {file: (folder / file).stat().st_size for file in sizes} and len(sizes) == 7
        weights = (*pipe.unet.parameters(), *pipe.vae.parameters())
        assert report["float32_bytes"] == 4 * sum(p.numel() for p in weights)


def test_the_same_model_gives_the_same_bytes(calibrated, deployed, tmp_path):
    _folder, report = deployed()
    again = lab.deploy(calibrated("W6A6", "let"), tmp_path, "onnxruntime")
    assert again["files"] == report["files"]


def test_the_open_graphs_run_elsewhere(deployed, pictures):
    """The QDQ files alone, by ONNX Runtime and checked by onnx, give what the deployed networks give."""
    onnx, runtime = required("onnx"), required("onnxruntime")
    folder, _report = deployed()
    pipe = lab.load_deployed(folder, "onnxruntime")
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name in NETWORKS:
        file = str(folder / "onnx" / f"{name}.onnx")
        onnx.checker.check_model(file)
        kinds = {node.op_type for node in onnx.load(file, load_external_data=False).graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
        given = x if ends(pipe, name)[1] == 3 else torch.randn(1, ends(pipe, name)[1], 16, 16)
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        found = runtime.InferenceSession(file, options).run(None, {ends(pipe, name)[0]: given.numpy()})[0]
        expected = pipe.engines[name](given)
        error = (torch.from_numpy(found) - expected).square().mean() / expected.square().mean()
        assert error < 1e-3, name


@pytest.mark.parametrize(
    "method", ["passionsr", "let+bias", "lbq", "lsq", "lsq+", "percentile", "q-diffusion", "efficientdm", "svdquant"]
)
def test_every_method_that_ends_in_integers_is_deployed(method, make_pipe, pictures, tmp_path):
    toy = make_pipe(vae=(4,), unet=(8,), width=4, name="toy")
    q = lab.quantize(toy, "W6A6")
    lab.calibrate(q, lab.bundled("calibration", 2, 16), method, quiet=True, epochs=1, batch=2)
    report = lab.deploy(q, tmp_path, "onnxruntime")
    branches = [row for row in report["rows"] if "branch" in row["why"]]
    assert bool(branches) is (method == "svdquant")
    pipe, lr = lab.load_deployed(tmp_path), pictures[0].lr[:, :8, :8]
    assert decibels(pipe(lr), q(lr)) > 25


def test_a_recipe_of_the_unet_alone_leaves_the_vae_in_float(calibrated, pipe, pairs, tmp_path):
    q = lab.quantize(pipe, lab.recipe("W4A8", modules=("unet",)).kept("unet.conv_in", bits=3))
    lab.calibrate(q, pairs[:2], "maxmin", quiet=True)
    report = lab.deploy(q, tmp_path, "onnxruntime")
    runs = {(row["module"], row["runs"]) for row in report["rows"]}
    assert runs == {("encoder", "float"), ("decoder", "float"), ("unet", "integers"), ("unet", "constant")}
    assert report["networks"]["unet"]["codes"]["unet.conv_in.weight"]["bits"] == 3
    lr = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert decibels(lab.load_deployed(tmp_path)(lr), q(lr)) > 30


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_as_it_was_written_is_refused(calibrated, tmp_path):
    lab.deploy(calibrated("W6A6", "let"), tmp_path, "onnxruntime")
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == sorted([DESCRIPTION, *(f"{n}.{end}" for n in NETWORKS for end in ("onnx", "safetensors"))])
    for name in names:
        file = tmp_path / name
        content = file.read_bytes()
        altered = bytearray(content)
        altered[len(content) // 2] ^= 1
        for wrong in (content[:-7], bytes(altered), content[: len(content) // 2]):
            file.write_bytes(wrong)
            with refused(str(tmp_path)):
                lab.load_deployed(tmp_path)
        file.unlink()
        with refused(str(tmp_path), name):
            lab.load_deployed(tmp_path)
        file.write_bytes(content)
    assert lab.load_deployed(tmp_path).label == "deployed"
    described = json.loads((tmp_path / DESCRIPTION).read_text())
    (tmp_path / DESCRIPTION).write_text(json.dumps(described | {"format": 0}))
    with refused("format 0", "deploy the model again"):
        lab.load_deployed(tmp_path)


def test_what_cannot_be_deployed_is_refused_before_anything_is_written(calibrated, pipe, pairs, tmp_path, monkeypatch):
    place = tmp_path / "out"
    for wrong in (pipe, lab.quantize(pipe, "W6A6")):
        with refused("quantized and calibrated"):
            lab.deploy(wrong, place)
    with refused("backend is one of openvino, onnxruntime, tensorrt", "'cuda'"):
        lab.deploy(calibrated("W6A6", "let"), place, "cuda")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with refused("needs an NVIDIA GPU"):
        lab.deploy(calibrated("W6A6", "let"), place, "tensorrt")
    q = lab.quantize(pipe, lab.recipe("W6A6", zero_point="real"))
    lab.calibrate(q, pairs[:2], "maxmin", quiet=True)
    with refused("real zero point", "zero_point='integer'"):
        lab.deploy(q, place)
    from passionsr_lab.util import extras

    monkeypatch.setattr(extras, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with refused("openvino", "passionsr_lab[deploy]"):
        lab.deploy(calibrated("W6A6", "let"), place)
    assert not place.exists()


def test_running_it_needs_none_of_diffusers(deployed):
    code = f"""
import sys, torch, passionsr_lab as lab
lab.load_deployed({str(deployed()[0])!r})(torch.rand(3, 16, 16))
assert not {{"diffusers", "transformers"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_interrupt_after_deployed_pipelines_are_gone_is_an_interrupt(deployed):
    """Each network had a core of its own once, and the last one to go left a signal stack that was freed."""
    code = f"""
import gc, signal, torch
import passionsr_lab as lab
signal.signal(signal.SIGINT, signal.default_int_handler)
pipe = lab.load_deployed({str(deployed()[0])!r}, "openvino")
pipe(torch.rand(3, 16, 16))
del pipe
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_a_deployed_pipeline_refuses_what_it_cannot_do(deployed):
    pipe = lab.load_deployed(deployed()[0], "onnxruntime")
    for work in (lambda: lab.quantize(pipe, "W6A6"), lambda: pipe.save("x")):
        with refused("deployed model"):
            work()
    with refused("multiples of"):
        pipe.encode(torch.zeros(1, 3, 31, 32))
    for name, value in (("timestep", 499), ("upscale", 2), ("unet", pipe.vae)):
        with refused(f"The {name} of a deployed model is folded into it"):
            setattr(pipe, name, value)
    with refused("one prompt embedding"):
        pipe.noise(torch.zeros(1, 4, 16, 16), torch.ones(1, 5, 12))
