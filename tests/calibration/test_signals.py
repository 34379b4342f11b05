"""Calibrations that a signal ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import passionsr_lab
from passionsr_lab.store.folder import TENSORS


def start(out, model, seed=3):
    """`calibrate` in a process of its own."""
    command = [sys.executable, "-m", "passionsr_lab", "calibrate", "--model", model, "--out", out, "--seed", seed,
               "--epochs", 3, "--batch", 1, "--pairs", 4, "--size", 64]  # fmt: skip
    root = Path(passionsr_lab.__file__).parents[1]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(c) for c in command], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, **pipes)


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
    model = pipe.save(tmp_path / "small")
    state = tmp_path / "disturbed" / "unfinished.pt"
    process = start(state.parent, model)
    written = wait_for(state)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130 and out == "" and "run the same command again to go on" in err
    assert [p.name for p in state.parent.iterdir()] == ["unfinished.pt"]
    first = torch.load(state, weights_only=True)
    process = start(state.parent, model)
    wait_for(state, wait_for(state, state.stat().st_mtime_ns))  # the end of a stage twice: the first may be the same
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and state.stat().st_mtime_ns > written
    second = torch.load(state, weights_only=True)
    assert (second["stage"], second["step"]) > (first["stage"], first["step"]), "it went on, not anew"
    process = start(state.parent, model)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0 and not state.exists(), err
    process = start(tmp_path / "whole", model)
    assert process.communicate(timeout=240) and process.returncode == 0
    ours, whole = (load_file(folder / TENSORS) for folder in (state.parent, tmp_path / "whole"))
    assert ours.keys() == whole.keys() and all(torch.equal(ours[k], whole[k]) for k in ours)
