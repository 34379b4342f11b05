"""Every kind of layer: an engine's sums of whole numbers are the reference's to the last bit."""

import pytest
import torch
import torch.nn.functional as F
from filled import filled
from made import refused
from torch import nn

from passionsr_lab.deployment import layers, pipeline
from passionsr_lab.deployment.emitter import Emitter
from passionsr_lab.deployment.folder import Part
from passionsr_lab.deployment.graph import Graph, with_constants
from passionsr_lab.deployment.layers import Around, emit_layer
from passionsr_lab.deployment.safe import adds_widely
from passionsr_lab.methods.svdquant import LowRank
from passionsr_lab.quantization.filling import LET, Slots
from passionsr_lab.quantization.quantizer import QUANTIZERS

CASES = [
    *(
        "linear",
        "linear without bias",
        "1x1",
        "1x1 padded",
        "3x3",
        "3x3 padded",
        "3x3 without bias",
        "3x3 of one pixel",
    ),
    *("down-sampling", "down-sampling, padded outside", "wide padding", "uneven", "dilated", "same", "one channel"),
]
WIDTHS = [(8, 8), (6, 6), (4, 4), (4, 8), (8, 4), (3, 5), (2, 2)]


def run(emitted, x, backend, rank):
    """The output of a one-layer graph, whose input and output have any rank."""
    graph = emitted.graph.model("x", 1, "y", 1)
    for end in (*graph.graph.input, *graph.graph.output):
        del end.type.tensor_type.shape.dim[rank:]
        for i, dim in enumerate(end.type.tensor_type.shape.dim):
            dim.ClearField("dim_value")
            dim.dim_param = f"{end.name}{i}"
    with_constants(graph, {})
    return pipeline.engine(Part.of(emitted, graph), backend)(x)


def emit(layer, around=Around()):
    emitted = Emitter(Graph("layer"))
    emitted.graph.op("Identity", emit_layer(emitted, layer, layer.name, "x", around), name="y")
    return emitted


def on_grid(layer, x, seed=0):
    """An input of this shape whose values lie in the middle between two roundings, at both ends of the grid too."""
    frozen, draw = layer.frozen(), torch.Generator().manual_seed(seed)
    parts = []
    for size, half in zip(frozen.sizes, frozen.halves):
        shape = list(x.shape)
        shape[layer.dim] = size
        codes = torch.randint(2**layer.setting.act_bits, shape, generator=draw)
        parts.append((codes + half.act_zero) * half.act_step)
    seen, channels = torch.cat(parts, layer.dim), [1] * x.ndim
    channels[layer.dim] = -1
    if frozen.scale is None:
        return seen
    return seen * frozen.scale.view(channels) + frozen.shift.view(channels)


def sums(layer, x):
    """Per half: whole sums in float64, which holds them exactly, and the product of the steps."""
    frozen, seen = layer.frozen(), layer.quantized_input(x)
    for half, part in zip(frozen.halves, seen.split(frozen.sizes, layer.dim)):
        whole = (part.double() / half.act_step.double()).round()
        weight = half.weight_codes.double() + half.weight_zero.double()
        yield layer.operate(whole, weight, None), half.act_step.double() * half.weight_step.double().flatten()


def columns(layer, step):
    return step.view(-1, 1, 1) if layer.conv else step


def decibels(ours, expected):
    return (10 * torch.log10(expected.square().mean() / (ours - expected).square().mean().clamp_min(1e-300))).item()


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("case", CASES)
def test_the_sums_are_the_references_to_the_last_bit(case, backend):
    widths = WIDTHS if case in ("linear", "3x3 padded") else [(8, 6)]
    for weight_bits, act_bits in widths:
        for slots in (LET(), Slots()):
            layer, x = filled(case, slots, weight_bits=weight_bits, act_bits=act_bits)
            x = on_grid(layer, x)
            ((whole, step),) = sums(layer, x)
            bias = layer.bias()
            bias = torch.zeros(len(step)) if bias is None else bias
            found = run(emit(layer), x, backend, x.ndim).double()
            accumulated = (found - columns(layer, bias.double())) / columns(layer, step)
            assert torch.equal(accumulated.round(), whole), (case, weight_bits, act_bits)
            expected = whole * columns(layer, step) + columns(layer, bias.double())
            assert decibels(found, expected) > 100, (case, weight_bits, act_bits)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("case", ["linear", "1x1", "3x3 padded", "down-sampling"])
def test_halves_branches_and_what_neighbours_fold_in(case, backend):
    for bits in (8, 6):
        layer, x = filled(case, split=True, weight_bits=bits, act_bits=bits)
        x = on_grid(layer, x)
        expected = sum(whole * columns(layer, step) for whole, step in sums(layer, x))
        expected = expected + columns(layer, layer.bias().double())
        assert decibels(run(emit(layer), x, backend, x.ndim).double(), expected) > 100
        whole, _ = filled(case, LET(shift=False), weight_bits=bits, act_bits=bits)
        after, added = torch.rand(len(layer.layer.weight)) + 0.5, torch.randn(len(layer.layer.weight))
        x = on_grid(whole, x)
        expected = (whole(x) + columns(whole, added)) * columns(whole, after)
        found = run(emit(whole, Around(after=after, added=added)), x, backend, x.ndim)
        assert decibels(found, expected) > 100
        whole.branch = LowRank(whole, 2)
        whole.branch.fit(whole.transformed_weight())
        x = on_grid(whole, x)
        assert decibels(run(emit(whole), x, backend, x.ndim), whole(x)) > 90  # the branch's sums are float
        emitted = emit(whole)
        assert "branch of rank 2" in emitted.rows[0].why


def test_weights_of_8_bits_are_moved_to_where_a_sign_fits_and_fewer_bits_are_not():
    for bits, expected in ((8, True), (7, False), (4, False)):
        layer, _ = filled("3x3 padded", weight_bits=bits)
        half = layer.frozen().halves[0]
        offset = layers.moved(half.weight_codes, half.weight_zero.flatten())
        whole = half.weight_codes + half.weight_zero - offset.view(-1, 1, 1, 1)
        assert bool((offset != 0).any()) is expected and whole.min() >= -128 and whole.max() <= 127


def test_products_that_could_pass_16_bits_are_known_and_run_in_float_without_vnni():
    layer = nn.Linear(64, 3)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.weight[:, 0] = -0.9  # so that whole numbers are large and of one sign
    full = layers.QuantLayer(layer, "unet.layer", layers.LayerRecipe(8, 8))
    full.fill_quantizers(QUANTIZERS["boundaries"])
    full.range.set(torch.zeros(64), torch.ones(64))
    x = torch.ones(1, 5, 64)
    emitted = emit(full)
    assert emitted.rows[0].overflow and emitted.risky == ["unet.layer.act"]
    ((whole, step),) = sums(full, x)
    for backend in ("openvino", "onnxruntime"):
        found = (run(emitted, x, backend, 3).double() - layer.bias.double()) / step
        assert decibels(found, whole) > 100, (backend, adds_widely())
    narrow, _ = filled("linear", weight_bits=6, act_bits=6)
    assert not emit(narrow).rows[0].overflow


def test_wide_grids_stay_in_float_and_say_so():
    layer, x = filled("3x3 padded", weight_bits=12, act_bits=10)
    emitted = emit(layer)
    assert (emitted.rows[0].runs, emitted.rows[0].why) == ("float", "more than 8 bits") and not emitted.codes
    x = on_grid(layer, x)
    assert decibels(run(emitted, x, "openvino", 4), layer(x)) > 100


class Unknown(nn.Module):
    """A branch of nobody's."""

    def weight(self):
        return 0


def test_what_has_no_integers_is_refused_by_name():
    for case, word in (("groups", "groups"), ("reflect", "reflect")):
        layer, _ = filled(case)
        with refused(word):
            emit(layer)
    layer, _ = filled("linear")
    layer.branch = Unknown()
    with refused("unet.layer", "branch of Unknown"):
        emit(layer)
    layer, _ = filled("linear", Slots(), zero_point="real")
    with refused("real zero point"):
        emit(layer)
    with refused("unet.x", "Embedding"):
        emit_layer(Emitter(Graph("layer")), nn.Embedding(2, 2), "unet.x", "x")


def test_enlarging_whole_numbers_is_enlarging_before(monkeypatch):
    for slots in (LET(), Slots()):
        layer, x = filled("3x3 padded", slots, weight_bits=6, act_bits=6)
        x = on_grid(layer, x)
        emitted = emit(layer, Around(up=True))
        expected = layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        assert decibels(run(emitted, x, "openvino", 4), expected) > 100
