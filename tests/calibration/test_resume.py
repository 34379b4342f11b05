"""Killed at any moment, a calibration goes on to exactly the uninterrupted result; what is damaged is refused."""

import copy
from dataclasses import replace

import pytest
import torch
from filled import same, told
from made import refused

import passionsr_lab as lab
from passionsr_lab.calibration import checkpoint
from passionsr_lab.calibration.method import Method, Stage
from passionsr_lab.calibration.task import task
from passionsr_lab.methods import METHODS
from passionsr_lab.quantization.filling import LET
from passionsr_lab.quantization.place import quantize
from passionsr_lab.quantization.recipe import W6A6

# So far do its stages go that the line search takes a part of it back.
STAGES = (Stage("all", ("bounds",)), Stage("unet", ("transform", "bounds"), blocks="*.conv_*"))
SHORT = Method("short", "Short", "", LET(), STAGES, "quantized", {"transform": 0.5, "bounds": 60.0}, average=1.0)
ENCODER, UNET = (replace(W6A6, modules=(module,)) for module in ("encoder", "unet"))


def begun(work, records, folder):
    """The file of a run that ended after so many records, and those records."""
    stream = work.run()
    first = [next(stream) for _ in range(records)]
    stream.close()
    checkpoint.save(work, folder / "state.pt")
    return folder / "state.pt", first


# Records of the short one: 0 start, 1 and 2 steps, 3 end, then the next stage.
@pytest.mark.parametrize(("method", "moments"), [("maxmin", (0, 1)), (SHORT, (1, 2, 4, 6))], ids=["maxmin", "short"])
def test_an_interrupted_run_goes_on_to_exactly_the_uninterrupted_result(pipe, begin, run, tmp_path, method, moments):
    q, records = run(method, UNET)
    for moment in moments:
        file, first = begun(begin(method, UNET), moment, tmp_path)
        fresh = quantize(copy.deepcopy(pipe), UNET)
        work = begin(method, q=fresh)
        rest = list(work.run(keep=file))
        assert told(first + rest) == told(work.records) == told(records), "every record once"
        assert same(q, fresh) and {**fresh.history, "cost": 0} == {**q.history, "cost": 0}
        assert fresh.history["cost"]["seconds"] == pytest.approx(sum(r["seconds"] for r in work.records))
    if method is SHORT:
        assert {r["step_length"] for r in records} & {0.0, 0.125, 0.25, 0.5}, "no stage went back"


@pytest.fixture(scope="module")
def encoded(begin):
    """A function (judged) -> the batches in which the encoder makes what the UNet begins with."""

    def make(judged):
        work = begin("lbq", pairs=lab.bundled("calibration", 18, 16), batch=3)
        work._begin()
        work.data.targets()
        work.observe(until="encoder")
        batches, forward = [], work.data.forward
        work.data.forward = lambda segment, x: batches.append(x) or forward(segment, x)
        if judged:
            work._judged(task(Stage("encoder", ("bounds",)), None, work.data))
        assert len(work.data.entering("unet")) == 18
        return batches

    return make


def test_inputs_of_a_module_are_made_in_the_same_batches_whether_the_one_before_was_judged_in_this_process(encoded):
    """What says how a stage ended goes on to the next module, and rounding depends on how many are made together."""
    ours, others = encoded(judged=True), encoded(judged=False)
    assert [len(x) for x in ours] == [3, 3, 3, 3, 3, 1, 2], "16 that are judged, and two"
    assert all(torch.equal(x, y) for x, y in zip(ours, others, strict=True))


def test_a_run_keeps_its_state_at_the_end_of_every_stage(begin, run, tmp_path):
    kept = []
    for record in begin(SHORT, UNET).run(keep=tmp_path / "state.pt"):
        if record["event"] == "end":
            kept.append(len(torch.load(tmp_path / "state.pt", weights_only=True)["records"]))
    assert kept == [i + 1 for i, r in enumerate(run(SHORT, UNET)[1]) if r["event"] == "end"]


def test_the_state_of_a_calibration_with_other_settings_is_refused(begin, pairs, make_pipe, tmp_path):
    file, _ = begun(begin("lbq+let", ENCODER), 1, tmp_path)
    checkpoint.resume(begin("lbq+let", ENCODER), file)
    for other in (
        {"seed": 1}, {"epochs": 2}, {"batch": 3}, {"method": "lbq"}, {"rates": {"bounds": 1e-2}}, {"pairs": pairs[1:4]},
        {"recipe": replace(ENCODER, zero_point="real")}, {"q": quantize(make_pipe(seed=1), ENCODER)},
        {"method": METHODS["lbq+let"].with_options(alpha=0.3)}, {"recipe": ENCODER.kept("vae.quant_conv")},
    ):  # fmt: skip
        with refused(file, "belongs to a calibration with other settings; delete it to start anew."):
            checkpoint.resume(begin(**{"method": "lbq+let", "recipe": ENCODER} | other), file)


def changed(content, path, value):
    """A copy of the content with another value at a path of keys."""
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


def test_a_damaged_or_missing_state_is_refused(begin, tmp_path):
    file, _ = begun(begin("lbq", ENCODER), 3, tmp_path)
    work = begin("lbq", ENCODER)
    content = torch.load(file, weights_only=True)
    name, nan = next(k for k in content["tensors"] if k.endswith("trim")), float("nan")
    group = content["optimizer"]["state"][0]
    damage = [
        (("stage",), 2), (("stage",), 1), (("stage",), -1), (("stage",), "0"), (("step",), -1), (("step",), None),
        (("first",), nan), (("ends",), {}), (("records",), None), (("cost", "seconds"), nan), (("tensors",), []),
        (("tensors", name), content["tensors"][name] * nan), (("before", name), content["before"][name] * nan),
        (("tensors", name), content["tensors"][name][:1]), (("before", name), 3.0),
        (("tensors", "more"), torch.ones(1)),
        (("before",), {"more": torch.ones(1)}), (("optimizer",), {}), (("optimizer",), "adam"),
        (("optimizer", "state", 0, "exp_avg"), group["exp_avg"] * nan),
    ]  # fmt: skip
    for path, value in damage:
        torch.save(changed(content, path, value), file)
        with refused(file, "is damaged; delete it to start anew."):
            checkpoint.resume(work, file)
    for content in (b"", b"not a state", None):
        file.unlink() if content is None else file.write_bytes(content)
        with refused(file, "is not a calibration state that can be read; delete it to start anew."):
            checkpoint.resume(work, file)
