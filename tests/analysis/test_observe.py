"""Observing, error propagation, sensitivity: each against the direct computation that keeps everything."""

import gc
import math
import pickle
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from passionsr_lab.analysis import running
from passionsr_lab.analysis.layers import layer_numbers, layer_table, scale_factors
from passionsr_lab.analysis.observe import observing, weight_channels
from passionsr_lab.analysis.propagation import collapse, propagation
from passionsr_lab.analysis.running import BINS, Accumulator
from passionsr_lab.analysis.sensitivity import keep_top, measure, sensitivity
from passionsr_lab.imaging.pairs import bundled
from passionsr_lab.methods import calibrate
from passionsr_lab.quantization.attention import attend
from passionsr_lab.quantization.layer import QuantLayer, mode
from passionsr_lab.quantization.place import quantize
from passionsr_lab.quantization.recipe import W4A4, W8A8
from passionsr_lab.tools.train import new_model

CONV, LINEAR = "vae.decoder.up_blocks.2.resnets.0.conv1", "unet.mid_block.attentions.0.proj_in"
BAD = "unet.down_blocks.1.resnets.0.conv1"
ATTENTION = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"


@pytest.fixture(scope="module")
def pipe():
    model = new_model(0)
    torch.manual_seed(1)
    with torch.no_grad():  # the start leaves branches at zero; here every layer should matter
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.prune()


@pytest.fixture(scope="module")
def pairs():
    return bundled("calibration", count=3, size=32)


@pytest.fixture(scope="module")
def images(pairs):
    return [pair.lr for pair in pairs]


@pytest.fixture(scope="module")
def calibrated(pipe, pairs):
    """Calibrated pipelines by recipe; tests leave them as they are."""
    made = {}

    def get(recipe):
        if recipe not in made:
            made[recipe] = quantize(pipe, recipe)
            calibrate(made[recipe], pairs, "let")
        return made[recipe]

    return get


def hooks(pipe):
    return [h for m in pipe.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


def modes(q):
    return [layer.mode for layer in q.layers.values()]


def inputs_of(pipe, name, images):
    """The direct way: every input of one layer, kept, as rows (C, N) in float64."""
    kept, layer = [], pipe.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, args: kept.append(args[0].clone()))
    for image in images:
        pipe(image)
    handle.remove()
    dim = 1 if name == CONV else -1
    return torch.cat([x.movedim(dim, 0).flatten(1) for x in kept], 1).double()


# -- running statistics -----------------------------------------------------------------------------------------------


def values(seed=0):
    """(4, 5, 6, 7): channels far apart in mean and width, one constant, one outlier."""
    x = np.random.default_rng(seed).normal(size=(4, 5, 6, 7)) * np.array([1, 0.01, 30, 2, 0])[:, None, None]
    x = x + np.array([0, 5, -3, 100, -7])[:, None, None]
    x[2, 0, 1, 1] = 900
    return torch.from_numpy(x)


def expected(rows):
    """Kurtosis and outliers by their definitions."""
    z = (rows - rows.mean()) / rows.std(unbiased=False)
    return (z**4).mean().item(), (z.abs() > 6).double().mean().item()


def check(seen, rows):
    rows_np, summary, channels = rows.numpy(), seen.summary(), seen.channels()
    for key, direct in {"low": rows_np.min(1), "high": rows_np.max(1)}.items():
        np.testing.assert_array_equal(channels[key], direct)
        assert summary[key] == {"low": min, "high": max}[key](direct)
    np.testing.assert_allclose(channels["mean"], rows_np.mean(1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(channels["std"], rows_np.std(1), rtol=1e-9, atol=1e-12)
    assert channels["count"] == rows.shape[1] and summary["count"] == rows.numel()
    kurtosis, share = expected(rows)
    assert summary["mean"] == pytest.approx(rows_np.mean(), rel=1e-9, abs=1e-12)
    assert summary["std"] == pytest.approx(rows_np.std(), rel=1e-9)
    assert summary["kurtosis"] == pytest.approx(kurtosis, rel=1e-7)
    slack = (rows - rows.mean()).abs() > 6 * rows.std(unbiased=False) + seen.width
    assert slack.double().mean().item() <= summary["outlier_share"] <= share


FACTORS = {"plain": (1, 1, 1, 1), "small, half of it zero": (0, 1e-6, 0, 1e-6), "far apart": (0, 1e-9, 1, 1e6)}
CUTTINGS = {
    "whole": lambda x: [x],
    "samples": lambda x: x.split(1),
    "backwards": lambda x: x.flip(0).split(1),
    "rows": lambda x: x.split(1, 2),
    "unequal": lambda x: x.split([1, 3]),
    "small blocks": lambda x: [x],
}


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("cutting", CUTTINGS)
def test_running_statistics_are_those_of_all_values_however_they_are_cut(monkeypatch, factors, cutting):
    x, seen = values() * torch.tensor(FACTORS[factors])[:, None, None, None], Accumulator(5)
    if cutting == "small blocks":
        monkeypatch.setattr(running, "BLOCK", 20)
    for part in CUTTINGS[cutting](x):
        seen.add(part, 1)
    rows = x.transpose(0, 1).flatten(1)
    check(seen, rows)
    edges, counts = seen.histogram()
    np.testing.assert_array_equal(counts, np.histogram(rows, edges)[0])
    assert edges[-1] == -edges[0] == 2.0 ** math.frexp(rows.abs().max())[1] and len(counts) == BINS


def test_channels_last_and_first_agree():
    x, first, last = values(), Accumulator(5), Accumulator(5)
    first.add(x, 1)
    last.add(x.movedim(1, -1), -1)
    np.testing.assert_array_equal(first.histogram().counts, last.histogram().counts)
    np.testing.assert_allclose(first.channels()["mean"], last.channels()["mean"], rtol=1e-12)
    assert first.channels()["high"].tolist() == x.amax((0, 2, 3)).tolist()


def test_a_constant_has_no_kurtosis_and_no_outliers():
    zeros = Accumulator(2)
    zeros.add(torch.zeros(1, 2, 9), 1)
    assert (*zeros.histogram().edges[[0, -1]], zeros.summary()["outlier_share"]) == (-1, 1, 0)
    for channels in range(1, 12):  # the mean of some numbers of equal values is not quite that value
        seen = Accumulator(channels)
        seen.add(torch.full((1, channels, 9), 0.1), 1)
        summary = seen.summary()
        assert math.isnan(summary["kurtosis"]) and summary["outlier_share"] == 0 and summary["std"] < 1e-15


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    x = torch.zeros(1, 3, 4)
    x[0, 1, 2] = bad
    with pytest.raises(FloatingPointError):
        Accumulator(3).add(x, 1)


# -- observing --------------------------------------------------------------------------------------------------------


def observed(model, images):
    with observing(model) as stats:
        for image in images:
            model(image)
    return stats


@pytest.mark.parametrize("name", [CONV, LINEAR])
def test_observed_inputs_are_those_of_the_layer(pipe, images, name):
    rows, stats = inputs_of(pipe, name, images), observed(pipe, images)
    frame, row = stats.channels(name), stats.layers().set_index("layer").loc[name]
    np.testing.assert_array_equal(frame.low, rows.amin(1))
    np.testing.assert_allclose(frame["mean"], rows.mean(1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(frame["std"], rows.std(1, unbiased=False), rtol=1e-7)
    assert frame.channel.tolist() == list(range(len(rows))) and (frame["count"] == rows.shape[1]).all()
    assert row["kurtosis"] == pytest.approx(expected(rows)[0], rel=1e-7)
    assert row.high == rows.max() and row["count"] == rows.numel() and row.channels == len(rows)
    edges, counts = stats.histogram(name)
    np.testing.assert_array_equal(counts, np.histogram(rows, edges)[0])


def test_hooks_go_outputs_stay_and_two_runs_are_the_same(pipe, calibrated, images):
    for model in (pipe, calibrated(W4A4)):
        before, frames = model(images[0]), []
        for _ in range(2):
            with observing(model) as stats:
                assert hooks(model) and torch.equal(model(images[0]), before)
            frames.append(stats.layers())
        assert frames[0].equals(frames[1])
        with pytest.raises(KeyError), observing(model):
            raise KeyError
        assert not hooks(model) and torch.equal(model(images[0]), before)


def test_every_layer_and_attention_is_seen_in_the_order_it_runs(pipe, calibrated, images):
    plain = [(n, m) for n, m in pipe.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    ran, orders = [], []
    with ExitStack() as stack:
        for name, layer in plain:
            stack.callback(layer.register_forward_pre_hook(lambda _, args, n=name: ran.append(n)).remove)
        pipe(images[0])
    for model in (pipe, calibrated(W4A4)):
        frame = observed(model, images[:1]).layers()
        orders.append(list(frame.layer))
        assert frame.layer.cat.ordered and list(frame.layer.cat.categories) == orders[-1]
        assert list(frame[frame.kind != "attention"].layer) == ran
        assert {f"{ATTENTION}.{key}" for key in "qkv"} < set(frame[frame.kind == "attention"].layer)
        assert list(frame.module.unique()) == ["encoder", "unet", "decoder"]
    assert orders[0] == orders[1]


def test_memory_does_not_grow_with_the_images(pipe):
    """Everything that is left, measured from outside: the pickle of the statistics."""
    sizes = []
    for side, count in ((8, 1), (32, 3)):
        generator = torch.Generator().manual_seed(0)
        stats = observed(pipe, [torch.rand(3, side, side, generator=generator) for _ in range(count)])
        sizes.append(len(pickle.dumps(stats)))
        assert 0.5 * sizes[-1] < stats.bytes <= sizes[-1]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


def test_values_after_let_are_those_the_quantizers_see(calibrated, images):
    q, seen = calibrated(W4A4), {key: [] for key in "qkv"}
    with ExitStack() as stack:
        for key, into in seen.items():
            quantizer = q.get_submodule(ATTENTION).processor.quantizers[key]
            stack.callback(quantizer.register_forward_pre_hook(lambda _, args, to=into: to.append(args[0])).remove)
        stats = observed(q, images)
    for name in (CONV, LINEAR):
        rows, transform = inputs_of(q, name, images), q.get_submodule(name).transform
        shift, scale = transform.shift[:, None].double(), transform.scale[:, None].double()
        after = (rows - shift) / scale
        assert (scale / scale.mean()).std() > 0.1  # LET does something here
        np.testing.assert_allclose(stats.channels(name, after=True).high, after.amax(1), rtol=1e-5)
        np.testing.assert_allclose(stats.channels(name).high, rows.amax(1), rtol=1e-5)
        row = stats.layers(after=True).set_index("layer").loc[name]
        assert row["kurtosis"] == pytest.approx(expected(after)[0], rel=1e-4)
        edges, counts = stats.histogram(name, after=True)
        assert counts.sum() == rows.numel() and abs(counts - np.histogram(after, edges)[0]).sum() <= 1e-3 * rows.numel()
    for key, parts in seen.items():
        rows, factor = torch.cat([x.flatten(0, 1) for x in parts]), q.get_submodule(ATTENTION).processor.factor(key)
        np.testing.assert_allclose(stats.channels(f"{ATTENTION}.{key}", after=True).low, rows.amin(0), rtol=1e-5)
        before = stats.channels(f"{ATTENTION}.{key}").low
        np.testing.assert_allclose(before, (rows / factor).amin(0), rtol=1e-4)
        assert (factor / factor.mean()).std() > 0.1


def test_what_was_not_seen_is_not_there(pipe, calibrated, images):
    stats = observed(calibrated(replace(W8A8, name="U", modules=("unet",))), images[:1])
    assert set(stats.layers().module) == {"encoder", "unet", "decoder"}
    assert set(stats.layers(after=True).module) == {"unet"}
    stats = observed(pipe, [])
    assert len(stats.layers()) == 0 and len(stats.channels()) == 0 and "kurtosis" in stats.layers()
    stats = observed(pipe, images[:1])
    with pytest.raises(ValueError, match="after=False"):
        stats.layers(after=True)
    with pytest.raises(ValueError, match=r"no\.such"):
        stats.histogram("no.such")
    plant = pipe.get_submodule(LINEAR).register_forward_pre_hook(lambda _, args: (args[0] * math.nan,))
    with pytest.raises(FloatingPointError, match=LINEAR):
        observed(pipe, images)
    plant.remove()
    assert not hooks(pipe)


def test_weight_channels(pipe, calibrated):
    q, weight = calibrated(W4A4), pipe.get_submodule(CONV).weight
    for model, after, w in ((pipe, False, weight), (q, False, weight), (q, True, q.layers[CONV].transformed_weight())):
        for dim, others in ((0, (1, 2, 3)), (1, (0, 2, 3))):
            frame = weight_channels(model, CONV, after, dim)
            np.testing.assert_array_equal(frame.low, w.amin(others))
            np.testing.assert_array_equal(frame.high, w.amax(others))
            np.testing.assert_allclose(frame["std"], w.double().std(others, unbiased=False), rtol=1e-6)
    for model, layer, after in ((pipe, CONV, True), (q, ATTENTION, False), (q, "no.such", False)):
        with pytest.raises(ValueError):
            weight_channels(model, layer, after)


# -- propagation ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def outputs(q, lr, name):
    """The direct way: the outputs of all layers and attention products of a run in one mode, and the layers' inputs.

    In a batch of two, because a batch of one rounds otherwise here and there.
    """
    out, into = {}, {}

    def hook(layer, args, y):
        out[layer.name], into[layer.name] = y, args[0]

    with ExitStack() as stack, mode(q, name):
        for key, layer in q.layers.items():
            if isinstance(layer, QuantLayer):
                stack.callback(layer.register_forward_hook(hook).remove)
            else:
                first = q.get_submodule(key).to_out[0]
                catch = lambda _, args, key=key: out.update({key: args[0]})
                stack.callback(first.register_forward_pre_hook(catch).remove)
        q.restore(q.prepare(torch.stack([lr, lr])))
    return out, into


def decibels(pairs):
    """10 log10(signal / noise) of a list of (full, quantized)."""
    signal = sum(y.double().square().sum() for y, _ in pairs)
    return 10 * torch.log10(signal / sum((y - z).double().square().sum() for y, z in pairs)).item()


def entering(q, images):
    """What enters every layer, and leaves the projections of every attention, during `propagation`; and its frame."""
    seen = {}
    add = lambda name, value: seen.setdefault(name, []).append(value)
    with ExitStack() as stack:
        for name, layer in q.layers.items():
            if isinstance(layer, QuantLayer):
                stack.callback(layer.register_forward_pre_hook(lambda _, args, n=name: add(n, args[0])).remove)
            for key in "qkv" if not isinstance(layer, QuantLayer) else "":
                to = q.get_submodule(f"{name}.to_{key}")
                stack.callback(to.register_forward_hook(lambda *call, n=f"{name}.{key}": add(n, call[2])).remove)
        frame = propagation(q, images)
    return seen, frame.set_index("layer")


@torch.no_grad()
def test_propagation_is_what_separate_passes_give(calibrated, images):
    """Accumulated: of a pass in float and one in integers.  Local: of each layer by itself, on what it was given."""
    q = calibrated(W4A4)
    runs = [(outputs(q, image, "float")[0], outputs(q, image, "quantized")[0]) for image in images[:2]]
    seen, frame = entering(q, images[:2])
    assert set(frame.index) == set(q.layers)
    for name, layer in q.layers.items():
        accumulated = decibels([(full[name], low[name]) for full, low in runs])
        assert frame.accumulated_db[name] == pytest.approx(accumulated, abs=1e-3)
        if isinstance(layer, QuantLayer):
            pairs = [(layer.layer(x)[:1], layer.forward(x)[:1]) for x in seen[name]]
        else:
            heads, scale = q.get_submodule(name).heads, q.get_submodule(name).scale
            inputs = list(zip(*(seen[f"{name}.{key}"] for key in "qkv")))
            pairs = [(attend(*x, heads, scale)[:1], layer.product(*x, heads, scale)[:1]) for x in inputs]
        assert frame.local_db[name] == pytest.approx(decibels(pairs), abs=1e-3)


def test_propagation_leaves_no_trace(calibrated, images):
    q = calibrated(W4A4)
    before, output = modes(q), q(images[0])
    first = propagation(q, images[:1])
    assert not hooks(q) and modes(q) == before and torch.equal(q(images[0]), output)
    assert first.equals(propagation(q, images[:1]))
    with pytest.raises(ValueError):
        propagation(q, [torch.full((3, 8, 8), 2.0)])
    assert not hooks(q) and modes(q) == before


def test_error_adds_up_along_the_way_and_bits_reduce_it(calibrated, images):
    low, high = (propagation(calibrated(replace(r, at_least=())), images) for r in (W4A4, W8A8))
    for frame in (low, high):
        assert frame.layer.iloc[0] == "vae.encoder.conv_in" and frame.layer.iloc[-1] == "vae.decoder.conv_out"
        assert frame.local_db.iloc[0] == pytest.approx(frame.accumulated_db.iloc[0], abs=1e-3)
        assert (frame.local_db >= frame.accumulated_db).mean() > 0.95
    assert (high.local_db > low.local_db + 20).all() and (high.accumulated_db > low.accumulated_db).all()
    theory = 20 * math.log10(255 / 15)  # the step shrinks from 1/15 to 1/255 of the range
    assert (high.local_db - low.local_db).median() == pytest.approx(theory, abs=0.3)


def test_collapse_names_the_planted_layer(calibrated, images):
    good, bad = (propagation(calibrated(recipe), images) for recipe in (W8A8, W8A8.kept(BAD, bits=2)))
    assert collapse(good) is None
    assert collapse(bad) == BAD
    assert collapse(good, 1000.0) == "vae.encoder.conv_in" == collapse(good[::-1], 1000.0)  # whatever the frame's order


def test_propagation_keeps_no_activations(calibrated):
    """Tensors alive when the last layer begins: not many more than a pass over two images holds anyway."""
    q, alive = calibrated(W4A4), []

    def count(_, args):
        memory = [o.untyped_storage() for o in gc.get_objects() if type(o) is torch.Tensor]  # which views share
        alive.append(sum({part.data_ptr(): part.nbytes() for part in memory}.values()))

    x = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    q(x)  # quantized weights are kept from here on
    last = q.get_submodule("vae.decoder.conv_out").register_forward_pre_hook(count)
    with torch.no_grad(), mode(q, "float"):
        q.restore(q.prepare(torch.stack([x, x])))
    propagation(q, [x])
    last.remove()
    everything = sum(t.nbytes for t in outputs(q, x, "float")[0].values())
    assert alive[1] - alive[0] < 0.05 * everything


def test_what_cannot_be_measured_says_what_is_wrong(pipe, calibrated, pairs, images):
    q = calibrated(W4A4)
    for arguments, words in (((pipe, images), "quantize"), ((q, []), "at least one image")):
        with pytest.raises(ValueError, match=words):
            propagation(*arguments)
    with pytest.raises(RuntimeError, match="calibrate"):
        propagation(quantize(pipe, W4A4), images)
    for arguments in ((pipe, pairs), (q, pairs, W4A4), (pipe, [], W4A4), (pipe, pairs, W4A4, "let", 0)):
        with pytest.raises(ValueError):
            sensitivity(*arguments)


# -- sensitivity ------------------------------------------------------------------------------------------------------


def psnr_rgb(images, full):
    return -10 * math.log10(np.mean([(a - b).double().square().mean().item() for a, b in zip(images, full)]))


@pytest.mark.parametrize("layer", ["vae.encoder.mid_block.resnets.0.conv1", BAD, CONV, ATTENTION])
def test_scores_are_those_of_whole_passes(pipe, calibrated, images, layer):
    """Against the pipeline's own outputs from end to end, of one batch: the last bit of an image's outputs depends on
    its batch, and a rounding that turns on it another error on the way."""
    q, batch = calibrated(W4A4), torch.stack(images)
    full, own = pipe(batch), q.layers[layer]
    with mode(q, "float"), mode(own, "quantized"):
        alone = psnr_rgb(q(batch), full)
    with mode(own, "float"):
        kept = psnr_rgb(q(batch), full)
    every, before = psnr_rgb(q(batch), full), modes(q)
    (record,) = measure(q, images, [layer])
    assert record["alone_db"] == pytest.approx(alone, abs=0.01) and record["kept_db"] == pytest.approx(kept, abs=0.01)
    assert record["gain_db"] == pytest.approx(kept - every, abs=0.01)
    assert modes(q) == before


def test_images_of_different_sizes_are_pooled_and_cut(pipe, calibrated, images):
    q, images = calibrated(W4A4), [images[0], images[1][:, :5, :3]]
    with mode(q, "float"), mode(q.layers[CONV], "quantized"):
        errors = [(q(image) - pipe(image)).double().square().flatten() for image in images]
    (record,) = measure(q, images, [CONV])
    assert record["alone_db"] == pytest.approx(-10 * math.log10(torch.cat(errors).mean()), abs=0.05)


def test_the_planted_layer_ranks_first_and_is_spared(pipe, calibrated, pairs, images):
    """A round trip: 2 bits in one layer of a W8A8 recipe; found, kept at 8, and the harm is gone."""
    bad, seen = W8A8.kept(BAD, bits=2), []
    frame = sensitivity(pipe, pairs[:2], bad, limit=5, callback=seen.append)
    assert [r["step"] for r in seen] == [1, 2, 3, 4, 5] and {r["of"] for r in seen} == {5}
    assert frame.layer[0] == BAD and frame.sort_values("gain_db").layer.iloc[-1] == BAD
    assert frame.alone_db[0] < frame.alone_db[1] - 10 and frame.gain_db[0] > frame.gain_db[1:].max() + 3
    assert frame.alone_db.is_monotonic_increasing and (frame.weight_bits[0], frame.act_bits[1]) == (2, 8)
    better = keep_top(bad, frame, 1)
    assert better.bits(BAD) == (8, 8) and better.overrides[:-1] == bad.overrides
    (spared,) = measure(calibrated(better), images[:2], [BAD])
    assert spared["alone_db"] > frame.alone_db[0] + 20


def test_limit_takes_the_layers_that_lose_most_themselves(calibrated, pairs, images):
    q = calibrated(W4A4)
    frame = sensitivity(q, pairs[:1], limit=4)
    lowest = propagation(q, images[:1]).set_index("layer").local_db.nsmallest(4)
    assert frame.set_index("layer").local_db.to_dict() == pytest.approx(lowest.to_dict())


def test_keep_top_passes_layers_that_have_the_bits():
    ranking = pd.DataFrame({"layer": ["unet.conv_out", CONV, BAD, LINEAR]})  # the first has 8 bits in every recipe
    recipe = keep_top(W4A4, ranking, 2, bits=6)
    assert [recipe.bits(name)[0] for name in ranking.layer] == [8, 6, 6, 4]
    assert keep_top(W4A4, ranking, 0) == W4A4
    assert keep_top(W4A4, ranking[::-1], 1).bits(LINEAR) == (8, 8)
    with pytest.raises(ValueError, match="count"):
        keep_top(W4A4, ranking, -1)
    with pytest.raises(ValueError, match="bits"):
        keep_top(W4A4, ranking, 1, bits=40)


def test_a_layer_has_one_number_wherever_it_is_listed(pipe, calibrated, images):
    """In the order in which layers run, which definition order is not; with the hooks of others on the model."""
    numbers, ran = layer_numbers(pipe), []
    with ExitStack() as stack:
        for name, m in pipe.named_modules():
            if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)) and name.startswith(("unet", "vae")):
                stack.callback(m.register_forward_pre_hook(lambda *_, n=name: ran.append(n)).remove)
        assert layer_numbers(pipe) == numbers and not ran
        pipe(images[0])
    assert [name for name in numbers if name in set(ran)] == ran and [*numbers.values()] == [
        *range(1, 1 + len(numbers))
    ]
    part, whole = calibrated(replace(W4A4, name="U", modules=("unet",))), calibrated(W4A4)
    assert layer_numbers(part) == layer_numbers(whole) == numbers and set(whole.layers) == set(numbers)
    tables = [
        layer_table(part),
        propagation(whole, images[:1]),
        observed(whole, images[:1]).layers(),
        scale_factors(whole),
    ]
    for table in tables:
        owners = table.layer.astype(str).where(table.layer.isin(list(numbers)), table.layer.str.rpartition(".")[0])
        assert table.number.is_monotonic_increasing and (owners.map(numbers) == table.number).all()
    assert tables[-1].number.unique().tolist() == [*numbers.values()]


def test_the_table_of_layers_has_both_bits_and_the_observed_ranges(pipe, calibrated):
    q = calibrated(W4A4.override(CONV, weight_bits=5))
    table = layer_table(q).set_index("layer")
    assert set(table.index) == set(q.layers) and table.loc[CONV, ["weight_bits", "act_bits"]].tolist() == [5, 4]
    own = q.layers[CONV].range
    assert (table.low[CONV], table.high[CONV]) == (own.low.min(), own.high.max())
    products = table[table.kind == "attention"]
    assert products.weight_bits.isna().all() and (products.act_bits == 4).all() and products.low.isna().all()
    assert layer_table(quantize(pipe, W4A4)).low.isna().all()
    with pytest.raises(ValueError, match="Only a quantized pipeline"):
        layer_table(pipe)
