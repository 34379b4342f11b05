"""What the doctor says of this machine, and that its exit code is about the chosen work."""

import json
import shutil

import pandas as pd
import pytest
import torch
from synthetic import osediff_file, shrink

from passionsr_lab.cli.main import main
from passionsr_lab.evaluation import iqa
from passionsr_lab.evaluation.protocols import PROTOCOLS
from passionsr_lab.fullsize import sd21, weights
from passionsr_lab.tools import doctor
from passionsr_lab.util import compat, machine
from passionsr_lab.util.hashing import sha256


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """SD2.1 (small) in diffusers' layout with osediff.pkl, but without its text encoder."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        pipe = sd21.sd21("cpu")
        for name in ("unet", "vae"):
            getattr(pipe, name).save_pretrained(folder / "sd21" / name)
        torch.save(osediff_file(pipe), folder / "osediff.pkl")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv(weights.VARIABLE, str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "weights"


@pytest.fixture
def cli(capsys):
    def run(*arguments):
        return main(["doctor", *arguments]), *capsys.readouterr()

    return run


def row(rows, item):
    (found,) = (row for row in rows if row["item"] == item)
    return found


def test_the_embedded_model_runs_here_without_any_weight(here, cli):
    code, out, err = cli("tiny", "--json")
    told = json.loads(out)
    assert code == 0 and told["can_run"] and told["work"] == "tiny" and err == "" and out.count("\n") == 1
    assert not any(row["needed"] and row["item"] in weights.WEIGHTS for row in told["rows"])
    assert not here.exists(), "asking changes nothing"


def test_full_size_cannot_run_and_every_missing_file_comes_with_its_way(here, cli):
    code, out, _ = cli("osediff")
    assert code == 1 and "can run: no" in out
    assert "missing   osediff (needed)" in out and "missing   empty_prompt:" in out
    for id in weights.MIRRORS:
        assert f"hf download {id} unet/config.json" in out and f"--local-dir {here}/sd21" in out
    rows = doctor.report("osediff")
    assert all(row["get"] for row in rows if row["state"] == "missing")
    assert [row["item"] for row in rows if row["needed"] and row["state"] == "missing"] == ["sd21", "osediff"]


def test_the_code_follows_the_files(here, shelf, cli):
    shutil.copytree(shelf, here)
    assert cli("sd21", "--json")[0] == 1
    assert "no text_encoder/" in row(doctor.report("sd21"), "sd21")["detail"]
    torch.save(torch.zeros(1, 77, 32), here / "empty_context_embedding.pt")
    assert cli("sd21")[0] == cli("osediff")[0] == 0
    assert cli("osediff-prompt")[0] == 1
    found = row(doctor.report("osediff"), "osediff")
    assert found["state"] == "present" and found["sha256"] == f"osediff.pkl {sha256(here / 'osediff.pkl')}"
    file = here / "osediff.pkl"
    file.write_bytes(file.read_bytes()[:5000])
    assert cli("osediff")[0] == 1 and cli("sd21")[0] == 0
    assert "damaged" in row(doctor.report("osediff"), "osediff")["detail"]
    file = here / "sd21" / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert cli("sd21")[0] == 1


def test_tags_make_osediffs_own_row_possible(here, shelf, cli):
    shutil.copytree(shelf, here)
    torch.save(torch.zeros(1, 77, 32), here / "empty_context_embedding.pt")
    (here / "sd21" / "text_encoder").mkdir()
    (here / "tags.csv").write_text("image,tags\nabsent.png,wall\n")
    assert cli("osediff-prompt")[0] == 1
    (here / "tags.csv").write_text("image,tags\n")
    assert cli("osediff-prompt")[0] == 0


def test_every_metric_file_of_every_protocol_is_listed_once(here):
    rows = doctor.report("scores")
    for protocol in PROTOCOLS:
        for name, metric in PROTOCOLS[protocol].items():
            for url in metric.weights:
                found = row(rows, iqa.label(url))
                assert found["needed"] and name in found["detail"] and found["state"] == "missing"
                assert url in found["get"][0] or found["get"][0].startswith("hf download timm/")
    file = here.parent / "torch" / "hub" / "pyiqa" / "niqe_modelparameters.mat"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    found = row(doctor.report("tiny"), file.name)
    assert found["state"] == "present" and found["sha256"] == sha256(file) and not found["get"]


def test_torchvision_of_another_torch_is_told_with_the_line_that_mends_it(monkeypatch):
    compat.torchvision_importable()
    import torchvision

    def found(vision, cuda=None, operators=True):
        monkeypatch.setattr(torch, "__version__", "2.11.0+cpu")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torchvision, "__version__", vision)
        monkeypatch.setattr(doctor, "_has_operators", lambda: operators)
        return doctor._torchvision()

    assert found("0.26.0+cpu")["state"] == "present"
    other = found("0.25.1+cpu")
    assert other["state"] == "attention" and "goes with 0.26" in other["detail"]
    assert "'torchvision==0.26.*'" in other["get"][0] and other["get"][0].endswith("/cpu")
    assert found("0.25.1+cpu", "12.6")["get"][0].endswith("/cu126")
    assert "another torch" in found("0.26.0+cpu", operators=False)["detail"]


def test_a_torchvision_that_does_not_import_stops_everything(monkeypatch):
    def broken():
        raise OSError("undefined symbol: _ZN5torch")

    monkeypatch.setattr(compat, "torchvision_importable", broken)
    found = doctor._torchvision()
    assert found["state"] == "missing" and found["needed"] and "undefined symbol" in found["detail"] and found["get"]


def test_old_software_stops_the_work_and_optional_software_does_not(monkeypatch):
    lines = ["diffusers>=0.40", 'pyiqa>=0.1.14; extra == "iqa"', 'ruff; extra == "dev"', 'x>=1; python_version < "3"']
    monkeypatch.setattr(doctor, "requires", lambda name: lines)
    versions = {"diffusers": "0.31.0", "pyiqa": "0.1.10", "peft": "0.3"}
    monkeypatch.setattr(doctor, "version", lambda name: versions[name])
    rows = doctor.report("tiny")
    assert not doctor.can_run(rows) and not {"ruff", "x"} & {row["item"] for row in rows}
    assert row(rows, "diffusers")["get"] == ["pip install 'diffusers>=0.40'"]
    versions["diffusers"] = "0.41.0.dev0"
    assert doctor.can_run(doctor.report("tiny")) and not doctor.can_run(doctor.report("scores"))
    assert row(doctor.report("tiny"), "pyiqa")["state"] == row(doctor.report("tiny"), "peft")["state"] == "missing"


@pytest.mark.parametrize(("flags", "state", "words"), [
    ("avx2 avx512f avx512_vnni amx_int8 amx_bf16", "present", "AVX2, AVX-512, AVX-512 VNNI, AMX int8, AMX bf16"),
    ("fpu avx avx2", "attention", "2 threads; AVX2; without VNNI"),
    ("fpu", "attention", "no AVX2"),
])  # fmt: skip
def test_the_processor_is_read_from_its_flags(monkeypatch, tmp_path, flags, state, words):
    (tmp_path / "cpuinfo").write_text(f"model name\t: A Processor\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 2)
    found = doctor._cpu()
    assert found["state"] == state and words in found["detail"] and "A Processor" in found["detail"]


def test_too_little_memory_stops_full_size_only(monkeypatch):
    monkeypatch.setattr(doctor.os, "sysconf", lambda name: 4096 if "SIZE" in name else 500_000)
    assert doctor._memory(full=False)["state"] == "present"
    found = doctor._memory(full=True)
    assert (
        found["state"] == "missing" and found["needed"] and "2.0 GB; the weights alone take 3.8 GB" in found["detail"]
    )


def test_the_report_is_a_table(here):
    frame = pd.DataFrame(doctor.report("tiny"))
    assert list(frame) == ["item", "state", "needed", "detail", "sha256", "get"]
    assert set(frame.state) <= {"present", "missing", "attention"} and frame.detail.str.len().gt(0).all()
    with pytest.raises(ValueError, match="choose from tiny, sd21"):
        doctor.report("everything")


def test_an_unknown_work_is_an_error_of_the_command(cli):
    code, out, err = cli("everything")
    assert code == 2 and out == "" and "choose from" in err
