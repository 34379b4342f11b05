"""One store: the same question has the same answer, found and not made again; what is damaged is made anew."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filled import same, told
from torch import nn

import passionsr_lab as lab
from passionsr_lab.calibration.loop import Calibration
from passionsr_lab.methods import METHODS
from passionsr_lab.pipeline.identity import fingerprint
from passionsr_lab.quantization.place import quantize
from passionsr_lab.quantization.recipe import W4A4, W6A6
from passionsr_lab.store import models
from passionsr_lab.store.folder import DESCRIPTION, TENSORS
from passionsr_lab.store.keys import calibration_key, key_of
from passionsr_lab.store.models import RECORDS, UNFINISHED
from passionsr_lab.store.results import kept

QUICK = {"epochs": 1, "batch": 2}
ENCODER, UNET = (replace(W4A4, modules=(module,)) for module in ("encoder", "unet"))


@pytest.fixture
def ask(pipe, pairs, tmp_path):
    """A function (method, recipe) -> a calibrated pipeline of the store in `tmp_path`."""
    return lambda method="lbq+let", recipe=W4A4, pipe=pipe, **options: lab.calibrated(
        pipe, recipe, method, pairs[:2], **QUICK, store=tmp_path, **options
    )


def folder_of(q):
    return Path(q.history["folder"])


def test_what_was_calibrated_is_taken_from_the_store_bit_for_bit(ask, pipe, pairs, make_pipe, monkeypatch):
    q, records = quantize(pipe, W4A4), []
    frame = lab.calibrate(q, pairs[:2], "lbq+let", **QUICK)
    first = ask(callback=records.append)
    assert same(first, q) and told(records) == told(frame.to_dict("records"))
    assert {p.name for p in folder_of(first).iterdir()} == {TENSORS, DESCRIPTION, RECORDS}
    monkeypatch.setattr(Calibration, "run", lambda *_: pytest.fail("calibrated again"))
    seen, branched = [], make_pipe()
    branched.prompt = nn.Identity()  # is cut away, so it decides nothing
    for again in (ask(callback=seen.append), ask(pipe=branched), ask()):
        assert same(again, first) and torch.equal(again(pairs[0].lr), first(pairs[0].lr))
        assert again.history == first.history and lab.records(again).to_dict("records") == records
    assert seen == records


def test_all_that_decides_a_number_gives_another_key(make_pipe, pairs):
    def key(
        method="lbq", change=lambda pipe: None, recipe=W6A6, pairs=pairs[:2], seed=0, epochs=4, batch=4, rates=None
    ):
        method = METHODS[method] if isinstance(method, str) else method
        pipe = make_pipe()
        change(pipe)
        return key_of(calibration_key(fingerprint(pipe), recipe, method, pairs, epochs, batch, seed, rates))

    assert key() == key() and key("maxmin") == key("maxmin", seed=1, epochs=2, batch=1, rates={"bounds": 1.0})
    assert key(pairs=[(pair.lr, pair.hr) for pair in pairs[:2]]) == key() == key(rates=dict(METHODS["lbq"].rates))
    keys = [
        key(), key(seed=1), key(epochs=2), key(batch=1), key(rates={"bounds": 0.1}), key("lbq+let"), key("let"),
        key(METHODS["let"].with_options(alpha=0.3)), key(replace(METHODS["lbq"], backtrack=False)), key(recipe=W4A4),
        key(recipe=W6A6.kept("unet.conv_in")), key(recipe=replace(W6A6, zero_point="real")), key(pairs=pairs[1:3]),
        key(pairs=pairs[1::-1]), key(pairs=pairs[:3]), key(change=lambda p: setattr(p, "timestep", 500)),
        key(change=lambda p: p.vae.register_to_config(scaling_factor=0.4)),
        key(change=lambda p: p.vae.decoder.conv_out.bias.data[0].add_(1e-6)),
        key(change=lambda p: p.prompt_embedding.mul_(1.001)),
    ]  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    keys.append(key())
    torch.set_num_threads(before)
    assert len(set(keys)) == len(keys)


DAMAGE = {
    "a flipped bit": (TENSORS, lambda p: p.write_bytes(p.read_bytes()[:-3] + b"\x00\x00\x07")),
    "half of the tensors": (TENSORS, lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2])),
    "another recipe": (DESCRIPTION, lambda p: p.write_text(p.read_text().replace('"act_bits": 4', '"act_bits": 5'))),
    "no description": (DESCRIPTION, lambda p: p.unlink()),
    "records that are none": (RECORDS, lambda p: p.write_text("[]")),
    "no records": (RECORDS, lambda p: p.unlink()),
}


def test_a_damaged_model_is_made_anew(ask):
    first = ask("let", ENCODER)
    for name, (file, damage) in DAMAGE.items():
        damage(folder_of(first) / file)
        made = []
        again = ask("let", ENCODER, callback=made.append)
        assert same(again, first) and told(made) == told(lab.records(again).to_dict("records")), name
        assert again.history["cost"] != first.history["cost"], f"{name}: it was believed"
        first = again


class Killed(Exception):
    pass


def test_a_run_that_was_killed_goes_on_and_a_damaged_state_begins_anew(ask):
    whole = ask("passionsr", UNET)  # start, 2 steps, end; start, step, end
    records = lab.records(whole).to_dict("records")

    def kill(record):
        if record["module"] == "unet" and record["stage"] == "bounds":
            raise Killed

    for damaged in (False, True):
        (folder_of(whole) / DESCRIPTION).unlink()
        with pytest.raises(Killed):
            ask("passionsr", UNET, callback=kill)
        unfinished = folder_of(whole) / UNFINISHED
        if damaged:
            unfinished.write_bytes(unfinished.read_bytes()[:100])
        seen = []
        again = ask("passionsr", UNET, callback=seen.append)
        assert same(again, whole) and told(seen) == told(records)[0 if damaged else 4 :] and not unfinished.exists()
        assert told(lab.records(again).to_dict("records")) == told(records)


CHILD = """
import sys, time, torch, passionsr_lab as lab
from pathlib import Path
model, store, ready, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
pipe, pairs = lab.load(model), lab.bundled("calibration", 2, 32)
Path(ready).touch()
q = lab.calibrated(pipe, "W4A4", "lbq", pairs, epochs=1, store=store)
print(q.history["folder"], q.history["cost"]["seconds"])
"""


def test_two_processes_that_ask_for_the_same_make_it_once(pipe, tmp_path):
    model, ready, root = pipe.save(tmp_path / "small"), tmp_path / "ready", Path(lab.__file__).parents[1]
    command = [sys.executable, "-c", CHILD, model, tmp_path / "store", ready, torch.get_num_threads()]
    environment = os.environ | {"PYTHONPATH": str(root)}
    child = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, text=True, env=environment)

    def wait(record):
        until = time.monotonic() + 200
        while not ready.exists():
            assert time.monotonic() < until and child.poll() is None
            time.sleep(0.05)
        time.sleep(0.1)  # it asks now, while this process is at work

    pairs = lab.bundled("calibration", 2, 32)
    q = lab.calibrated(lab.load(model), "W4A4", "lbq", pairs, epochs=1, store=tmp_path / "store", callback=wait)
    folder, seconds = child.communicate(timeout=200)[0].split()
    assert child.returncode == 0 and folder == q.history["folder"] and float(seconds) == q.history["cost"]["seconds"]
    assert [p.name for p in (tmp_path / "store" / "models").iterdir() if p.is_dir()] == [folder_of(q).name]


def test_results_are_made_once_and_believed_only_when_they_are_whole_and_answer_the_same_question(tmp_path):
    made = []

    def result():
        made.append(1)
        return {"psnr": np.float64(31.25), "rows": [{"n": np.int64(len(made)), "t": torch.tensor(0.5)}]}

    def ask(**content):
        return kept({"recipe": "W4A4"} | content, result, tmp_path)

    assert ask() == ask() == {"psnr": 31.25, "rows": [{"n": 1, "t": 0.5}]} and ask(seed=1)["rows"][0]["n"] == 2
    first, second = sorted((tmp_path / "results").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
    content = json.loads(first.read_text())
    damage = (
        first.read_text().replace("31.25", "41.25"), first.read_text()[:-20], "[]", "", second.read_text(),
        json.dumps(content | {"key": "0"}), json.dumps({k: v for k, v in content.items() if k != "digest"}),
    )  # fmt: skip
    for count, text in enumerate(damage, 3):
        first.write_text(text)
        assert ask()["rows"][0]["n"] == ask()["rows"][0]["n"] == count
    assert content["asked"] == {"recipe": "W4A4"} and models.root() == Path(os.environ["PASSIONSR_STORE"])


def test_a_result_whose_making_fails_is_not_kept(tmp_path):
    with pytest.raises(ZeroDivisionError):
        kept({"a": 1}, lambda: 1 / 0, tmp_path)
    assert kept({"a": 1}, lambda: [1], tmp_path) == [1]
