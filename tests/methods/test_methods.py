"""The methods: full precision at 16 bits, their order, one file each; and one from outside the library."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filled import relative, same
from made import refused
from test_imports import edges
from torch import nn

import passionsr_lab as lab
from passionsr_lab import methods
from passionsr_lab.calibration import checkpoint
from passionsr_lab.calibration.loop import Calibration
from passionsr_lab.calibration.method import Method, Stage
from passionsr_lab.calibration.state import state
from passionsr_lab.evaluation.sweep import grid, sweep
from passionsr_lab.imaging.psnr import psnr_rgb
from passionsr_lab.methods import METHODS, official
from passionsr_lab.quantization.filling import Slots
from passionsr_lab.quantization.layer import QuantLayer
from passionsr_lab.quantization.quantizer import QUANTIZERS, Quantizer
from passionsr_lab.quantization.slots import Slot

QUICK = {"epochs": 1, "batch": 2}


def fidelity(q, pipe, lrs):
    """Mean dB of a quantized pipeline against full precision."""
    return np.mean([psnr_rgb(q(lr), pipe(lr)) for lr in lrs])


# What clips a part of the values at any width has no full precision at any width.
CLIPPING = ("percentile", "lsq-published")
SLOW = ("efficientdm-published",)  # so slow that two steps change no integer
FINE, UNET = lab.recipe("W16A16", modules=("encoder", "decoder")), lab.recipe("W6A6", modules=("unet",))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_full_precision_back_at_16_bits_and_never_ends_above_its_start(ran, toy, few, name):
    if name not in CLIPPING:
        assert fidelity(ran(name, FINE)[0], toy, [p.lr for p in few]) >= 60
    method, (q, frame) = METHODS[name], ran(name, UNET)
    ends, worst = frame[frame.event == "end"], 1 if method.backtrack else 1.1
    assert (ends.loss <= worst * ends["first"]).all() and set(ends.module) <= {"unet", "all"}
    if method.stages and method.backtrack:
        assert (ends.loss < ends["first"]).any() or name in SLOW, "nothing was learned"
    assert all(layer.startswith("unet.") for layer in q.layers)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_saved_and_loaded_bit_for_bit_and_ends_in_integers(ran, toy, few, name, tmp_path):
    q, lr = ran(name, UNET)[0], few[0].lr
    back = lab.load(lab.save(q, tmp_path), toy)
    assert same(q, back) and torch.equal(q(lr), back(lr)) and back.method == METHODS[name]
    for layer in (m for m in back.layers.values() if isinstance(m, QuantLayer)):
        frozen = layer.frozen()
        halves = [(half.weight_codes + half.weight_zero) * half.weight_step for half in frozen.halves]
        assert relative(torch.cat(halves, 1), layer.quantized_weight()) < 1e-5, layer.name
        for half in frozen.halves:
            assert half.weight_codes.min() >= 0 and half.weight_codes.max() < 2**layer.setting.weight_bits


KINDS = {type(method.slots): name for name, method in reversed(METHODS.items()) if method.stages}


@pytest.mark.parametrize("name", KINDS.values())
def test_every_kind_of_method_goes_on_where_it_was_killed_and_the_same_seed_gives_the_same_bits(
    ran, toy, few, name, tmp_path
):
    q, frame = ran(name, UNET)
    first = Calibration(lab.quantize(toy, UNET), few, METHODS[name], **QUICK)
    stream = first.run()
    for _ in range(len(frame) // 2 + 1):
        next(stream)
    stream.close()
    checkpoint.save(first, tmp_path / "state.pt")
    fresh = lab.quantize(toy, UNET)
    work = Calibration(fresh, few, METHODS[name], **QUICK)
    assert [*work.run(keep=tmp_path / "state.pt")] and len(work.records) == len(frame)
    assert same(q, fresh)


def test_on_the_embedded_model_maxmin_is_below_let_and_let_below_passionsr():
    """At W6A6, on other pictures than those of the calibration, of another size and shape."""
    full, found = lab.tiny(), {}
    pairs, lrs = lab.bundled("calibration", 6, 48), [pair.lr[:, :14, :19] for pair in lab.bundled("test", 4, 80)]
    for name in ("maxmin", "let", "passionsr"):
        q = lab.quantize(full, lab.W6A6)
        frame = lab.calibrate(q, pairs, name, epochs=2, batch=3)
        found[name] = fidelity(q, full, lrs)
    assert found["maxmin"] + 5 < found["let"] < found["passionsr"] - 0.5, found
    first = frame[frame.event == "start"].groupby("module").loss.first()
    last = frame[frame.event == "end"].groupby("module").loss.last()
    assert (last <= first).all() and (last / first).prod() < 0.85


def test_the_end_to_end_finish_has_a_part_of_the_rates(ran):
    frame = ran("passionsr+e2e", UNET)[1]
    first = frame[frame.event == "step"].groupby(["module", "stage"]).lr.first()
    assert first["all", "transform+bounds"] == pytest.approx(0.1 * first["unet", "transform+bounds"])
    with refused("rate is above 0", "0.0"):
        Stage("all", ("bounds",), rate=0.0)


QUICKER = ("percentile", "lsq", "lsq+", "efficientdm", "svdquant")


@pytest.mark.parametrize("names", [QUICKER, pytest.param(("q-diffusion",), marks=pytest.mark.slow)])
def test_on_the_embedded_model_the_compared_methods_are_above_maxmin(names):
    """At W6A6 of the UNet, on other pictures than those of the calibration."""
    full, found = lab.tiny(), {}
    pairs, lrs = lab.bundled("calibration", 2, 48), [pair.lr[:, :14, :19] for pair in lab.bundled("test", 2, 80)]
    for name in ("maxmin", *names):
        q, method = lab.quantize(full, lab.W6A6, ("unet",)), METHODS[name]
        method = method.with_options(candidates=3, rounds=2) if name == "svdquant" else method
        lab.calibrate(q, pairs, method, epochs=1, batch=2)
        found[name] = fidelity(q, full, lrs)
    assert all(found[name] > found["maxmin"] + 1 for name in names), found


def test_a_method_is_one_file_that_only_the_table_names_and_the_official_procedure_is_the_released_one():
    names = {path.stem for path in Path(methods.__file__).parent.glob("*.py")} - {"__init__", "table"}
    for source, target, where in edges():
        assert source == ("methods", "table") or target[:1] != ("methods",) or target[-1] not in names, where
    method = official.METHOD
    assert [(s.segment, *s.train) for s in method.stages] == [
        (m, tag) for m in ("encoder", "unet", "decoder") for tag in ("transform", "bounds")
    ]
    assert method.rates == {"transform": 1e-5, "bounds": 1e-5} and not method.backtrack
    assert (method.slots.alpha, method.slots.beta, {s.steps(4, 1) for s in method.stages}) == (0.3, 0.3, {2})


def test_what_is_no_method_is_refused():
    for name in ("", "a,b", "a/b", "released"):
        with refused(repr(name)):
            lab.register(replace(METHODS["lbq"], name=name))
    with refused("not str"):
        lab.register("lbq")
    with refused("method is one of maxmin, let", "'nobody'", "lab.register"):
        methods.find("nobody")
    assert not {"released", "a,b", "a/b", ""} & METHODS.keys() and lab.register(METHODS["lbq"]) is METHODS["lbq"]


# -- a method from outside: a quantizer, a branch, and stages on blocks ------------------------------------------------


class StepQuantizer(Quantizer):
    """LSQ's kind: a learned step, symmetric about zero, that starts from the data and not from a range."""

    tag = "step"

    def __init__(self, bits, shape=(), zero_point="integer"):
        super().__init__(bits, shape, zero_point)
        self.log_step = nn.Parameter(torch.zeros(shape))
        self.learning_rate_scale = 0.5

    @torch.no_grad()
    def start(self, x, low, high):
        reach = torch.maximum(low.abs(), high.abs()) if x is None else x.abs().amax(tuple(range(1, x.ndim)), True)
        self.log_step.copy_((reach.clamp_min(1e-6) / (2 ** (self.bits - 1) - 1)).log())

    def bounds(self, low, high):
        half = 2 ** (self.bits - 1)
        return -half * self.log_step.exp(), (half - 1) * self.log_step.exp()


class LowRank(Slot):
    """The largest singular directions of a weight, in float beside the quantized rest."""

    tag = "branch"

    def __init__(self, layer, rank):
        super().__init__()
        weight = layer.layer.weight
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        self.layer, self.shape = [layer], weight.shape
        self.up, self.down = nn.Parameter(u[:, :rank] * s[:rank]), nn.Parameter(v[:rank])

    def weight(self):
        return (self.up @ self.down).view(self.shape)

    def forward(self, x):
        return self.layer[0].operate(x, self.weight(), None)


@dataclass(frozen=True)
class Sketch(Slots):
    quantizer: str = "step"
    rank: int = 2

    def fill(self, layer):
        super().fill(layer)
        if isinstance(layer, QuantLayer):
            layer.branch = LowRank(layer, layer.setting.rank or self.rank)

    def start(self, layer):
        if not isinstance(layer, QuantLayer):
            for key in "qkv":
                layer.quantizers[key].start(None, *layer.natural_range(key))
            return layer.quantizers["p"].start(None, torch.zeros(()), layer.ranges["p"].high[0])
        halves = layer.weight_halves(layer.residual_weight())
        for quantizer, half in zip(layer.weight_quantizers, halves):
            quantizer.start(half, None, None)
        for quantizer, found in zip(layer.act_quantizers, layer.input_ranges()):
            quantizer.start(None, *found)


SKETCH = Method(
    "sketch", "Low rank and steps", "this test", Sketch(),
    (Stage("unet", ("step", "branch"), 2.0, blocks="*.resnets.*"), Stage("decoder", ("step",))), "quantized",
    {"step": 0.02, "branch": 1e-3},
)  # fmt: skip


@pytest.fixture
def sketch(monkeypatch):
    monkeypatch.setitem(QUANTIZERS, "step", StepQuantizer)
    yield lab.register(SKETCH)
    METHODS.pop("sketch", None)


def test_a_method_from_outside_calibrates_is_saved_stored_and_swept_as_those_inside(sketch, pipe, tmp_path):
    pairs, recipe = lab.bundled("calibration", 2, 32), lab.W4A4.override("unet.conv_in", rank=3)
    lrs = [pair.lr for pair in pairs]
    fine, q, rest = lab.quantize(pipe, "W16A16"), lab.quantize(pipe, recipe), lab.quantize(pipe, recipe)
    lab.calibrate(fine, pairs, "sketch", **QUICK)
    assert fidelity(fine, pipe, lrs) >= 60
    records = lab.calibrate(q, pairs, "sketch", **QUICK)
    ends = records[records.event == "end"]
    blocks = ends[ends.module == "unet"]
    assert (ends.loss <= ends["first"]).all() and len(blocks) >= 5 and blocks.block.is_unique
    assert (blocks.loss < blocks["first"]).mean() >= 0.7, "blocks learn"
    lab.calibrate(rest, pairs, replace(sketch, stages=()))
    assert fidelity(q, pipe, lrs) > fidelity(rest, pipe, lrs), "its stages help"
    assert q.layers["unet.conv_in"].branch.up.shape[1] == 3 and q.layers["unet.conv_out"].branch.up.shape[1] == 2
    assert not any(name.endswith(("trim", "log_scale")) for name in state(q))
    back = lab.load(lab.save(q, tmp_path / "q"), pipe)
    assert same(q, back) and torch.equal(back(lrs[0]), q(lrs[0])) and back.method == sketch

    store, model = tmp_path / "store", pipe.save(tmp_path / "small")
    stored = [lab.calibrated(pipe, recipe, "sketch", pairs, **QUICK, store=store) for _ in range(2)]
    assert same(stored[0], q) and same(stored[1], q) and len(lab.records(stored[1])) == len(records)
    asked = {
        "recipe": [recipe],
        "method": ["maxmin", "sketch"],
        "pairs": [2],
        "size": [32],
        "epochs": [1],
        "batch": [2],
    }
    table = sweep(grid(model=[str(model)], **asked, test_pairs=[1], test_size=[32]), store)
    assert table.method.tolist() == ["maxmin", "sketch"] and (table.psnr_fp > 10).all()
    assert table.seconds[1] == stored[0].history["cost"]["seconds"], "the stored model is the one that was measured"


def test_a_method_that_is_not_registered_may_be_stored_and_another_code_is_another_method(
    sketch, pipe, pairs, tmp_path
):
    del METHODS["sketch"]
    q = lab.calibrated(pipe, "W6A6", replace(sketch, stages=()), pairs[:1], store=tmp_path)
    with refused("not a complete quantized model", "'sketch'", "lab.register"):
        lab.load(q.history["folder"], pipe)

    @dataclass(frozen=True)
    class Other(Sketch):
        def start(self, layer):
            super().start(layer)
            for slot in (m for m in layer.modules() if isinstance(m, StepQuantizer)):
                slot.log_step.data -= 0.5

    Other.__name__ = Sketch.__name__
    other = lab.calibrated(pipe, "W6A6", replace(sketch, stages=(), slots=Other()), pairs[:1], store=tmp_path)
    assert other.history["folder"] != q.history["folder"] and not same(other, q)
