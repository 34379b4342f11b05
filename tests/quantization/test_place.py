"""Quantizing and taking it off again; recipes: what must stay as it is stays so to the last bit."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import passionsr_lab as lab
from passionsr_lab.analysis.layers import layer_table
from passionsr_lab.calibration.state import load_state, state
from passionsr_lab.methods import calibrate
from passionsr_lab.quantization.attention import QuantAttention
from passionsr_lab.quantization.layer import Quantized, QuantLayer
from passionsr_lab.quantization.place import quantize, unquantize
from passionsr_lab.quantization.recipe import AT_LEAST, W4A4, W6A6, W8A8, LayerRecipe, Recipe, recipe


@pytest.fixture
def lr(pairs):
    return pairs[0].lr


@pytest.fixture(scope="module")
def trained(calibrated):
    """Every trainable tensor has moved."""
    return calibrated("W6A6", "passionsr", epochs=1, batch=6)


# -- quantize ---------------------------------------------------------------------------------------------------------


def test_every_linear_convolution_and_attention_is_quantized(pipe):
    q = quantize(pipe, W4A4)
    plain = {
        f"{network}.{name}"
        for network in ("unet", "vae")
        for name, m in getattr(pipe, network).named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d)) or type(m).__name__ == "Attention"
    }
    assert q.layers.keys() == plain and len(plain) > 80
    for name, layer in q.layers.items():
        module = q.get_submodule(name)
        assert layer is (module if isinstance(layer, QuantLayer) else module.processor)
    assert sum(isinstance(m, QuantAttention) for m in q.layers.values()) == 4
    without = quantize(pipe, replace(W4A4, attention=False)).layers
    assert all(isinstance(layer, QuantLayer) for layer in without.values()) and len(without) == len(plain) - 4


def test_the_original_is_untouched_by_quantizing_calibrating_and_moving(pipe, pairs, lr):
    weights = {k: v.clone() for k, v in pipe.state_dict().items()}
    names = [(n, type(m)) for n, m in pipe.named_modules()]
    processors = [m.processor for m in pipe.modules() if type(m).__name__ == "Attention"]
    expected = pipe(lr)
    q = quantize(pipe, W4A4)
    for name, layer in q.layers.items():
        if isinstance(layer, QuantLayer):
            assert layer.layer.weight.data_ptr() == pipe.get_submodule(name).weight.data_ptr(), "shared, not copied"
    calibrate(q, pairs, "lbq+let", epochs=1, batch=6)
    assert not torch.equal(q(lr), expected)
    q.to("meta")
    now = pipe.state_dict()
    assert now.keys() == weights.keys() and all(torch.equal(now[k], weights[k]) for k in now)
    assert [(n, type(m)) for n, m in pipe.named_modules()] == names
    after = [m.processor for m in pipe.modules() if type(m).__name__ == "Attention"]
    assert all(a is b for a, b in zip(after, processors))
    assert torch.equal(pipe(lr), expected)


def test_unquantize_gives_the_full_precision_pipeline_back(pipe, trained, lr):
    before = state(trained)
    plain = unquantize(trained)
    assert type(plain) is type(pipe) and torch.equal(plain(lr), pipe(lr))
    assert not any(isinstance(m, Quantized) for m in plain.modules())
    assert [n for n, _ in plain.named_modules()] == [n for n, _ in pipe.named_modules()]
    after = state(trained)
    assert all(torch.equal(before[k], after[k]) for k in before)
    quantize(plain, W8A8)


def test_what_makes_no_sense_for_a_quantized_pipeline_is_not_there(pipe, trained, lr):
    for name in ("save", "half", "train", "load_state_dict"):
        with pytest.raises(AttributeError, match=rf"no '{name}'; its full-precision one may \(lab\.unquantize\)"):
            getattr(trained, name)
    with pytest.raises(ValueError, match="quantized already"):
        quantize(trained, W4A4)
    with pytest.raises(RuntimeError, match=r"has no activation range yet: calibrate the model first"):
        quantize(pipe, W4A4)(lr)
    assert copy.deepcopy(trained)(lr).equal(trained(lr))


def test_the_prompt_branch_is_left_out_and_a_compiled_network_is_looked_through(make_pipe, lr, pairs):
    pipe = make_pipe()
    plain = quantize(pipe, W4A4)
    pipe.prompt = nn.Identity()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    q = quantize(pipe, W4A4)
    assert q.prompt is None and pipe.prompt is not None
    assert q.layers.keys() == plain.layers.keys()
    assert all(q.layers[n].setting == plain.layers[n].setting for n in q.layers)
    assert state(q).keys() == state(plain).keys()


# -- recipes ----------------------------------------------------------------------------------------------------------


def test_the_official_exceptions_have_at_least_8_bits(pipe, trained):
    table = layer_table(quantize(pipe, W4A4)).set_index("layer")
    kept = {name for name, _ in AT_LEAST}
    assert set(table.index[table.act_bits == 8]) == kept and len(kept) == 6
    assert set(table.act_bits.drop(list(kept))) == {4} and table.low.isna().all()
    assert {recipe("W16A16").bits(name) for name in kept} == {(16, 16)}, "the list never lowers a width"
    observed = layer_table(trained)
    assert observed.layer.iloc[0] == "vae.encoder.conv_in" and observed.layer.is_unique
    assert observed.module.unique().tolist() == ["encoder", "unet", "decoder"]
    layers = observed[observed.kind != "attention"]
    assert (layers.low < layers.high).all() and layers.weight_bits.notna().all()
    with pytest.raises(ValueError, match="quantize this one first"):
        layer_table(pipe)


def test_patterns_decide_settings_and_the_last_one_wins(pipe, pairs):
    wanted = W4A4.override("vae.encoder.*", weight_bits=6, act_bits=5).kept("*.attn1*", bits=7)
    wanted = wanted.override("vae.encoder.conv_in", act_bits=3, split=True)
    q = quantize(pipe, wanted)
    calibrate(q, pairs[:1], "maxmin")
    for name, layer in q.layers.items():
        floor = dict(AT_LEAST).get(name, 4)
        weight, act = (7, 7) if ".attn1" in name else (6, 5) if name.startswith("vae.encoder.") else (floor, floor)
        act = 3 if name == "vae.encoder.conv_in" else act
        assert wanted.bits(name) == (weight, act), name
        if isinstance(layer, QuantLayer):
            assert {x.bits for x in layer.weight_quantizers} == {weight}
            assert {x.bits for x in layer.act_quantizers} == {act}
            assert len(layer.act_quantizers) == (2 if name == "vae.encoder.conv_in" else 1)
        else:
            assert {x.bits for x in layer.quantizers.values()} == {act}


@pytest.mark.parametrize(("change", "told"), [
    (lambda: W4A4.kept("unet.mid.*"), r"'unet\.mid\.\*' in overrides matches no layer; the nearest are unet\."),
    (lambda: replace(W8A8, split=("unet.nothing",)), r"'unet\.nothing' in split matches no layer"),
    (lambda: replace(W8A8, attention=("vae.decoder.conv_in",)), "in attention matches no layer"),
    (lambda: replace(W8A8, split="unet.*"), r"a tuple of patterns such as \('unet\.\*',\)"),
    (lambda: replace(W8A8, weight_bits=1), "bits from 2 to 16, not 1"),
    (lambda: replace(W8A8, act_bits=6.0), "bits from 2 to 16, not 6.0"),
    (lambda: replace(W8A8, zero_point="none"), "zero_point is one of"),
    (lambda: replace(W8A8, modules=("vae",)), "modules are some of"),
    (lambda: replace(W8A8, at_least=(("unet.*", 40),)), "bits from 2 to 16, not 40"),
    (lambda: W8A8.override("unet.*", width=3), "no setting 'width'"),
    (lambda: W8A8.override("unet.*", rank=-1), "rank is a whole number"),
    *((lambda name=name: name, "name is like W6A6|bits from 2 to 16")
      for name in ("W9", "w6a6", "6", "", "W6A6 ", "W-1A4", "W1A4", "W4A99", 8)),
])  # fmt: skip
def test_impossible_recipes_and_patterns_that_match_nothing_are_refused(pipe, change, told):
    with pytest.raises(ValueError, match=told):
        quantize(pipe, change())


def test_modules_and_json(pipe):
    for modules in (("encoder",), ("unet", "decoder")):
        for q in (quantize(pipe, "W4A8", modules), quantize(pipe, recipe("W4A8", modules=modules))):
            table = layer_table(q)
            assert set(table.module) == set(modules) and len(table) == len(q.layers)
    made = replace(recipe("W2A3"), split=True, modules=("unet",)).kept("unet.*", bits=5).override("*", rank=4)
    assert Recipe.from_dict(json.loads(json.dumps(made.to_dict()))) == made and hash(made)
    assert made.layer("unet.conv_in") == LayerRecipe(5, 5, split=True, rank=4)
    with pytest.raises(ValueError, match="not the values of a recipe"):
        Recipe.from_dict({"name": "W6A6"})


def test_load_state_names_what_does_not_fit(trained):
    good = state(trained)
    with pytest.raises(ValueError, match=next(iter(good)).replace(".", r"\.")):
        load_state(trained, dict(list(good.items())[1:]))
    with pytest.raises(ValueError, match="extra and 0 more"):
        load_state(trained, good | {"extra": torch.zeros(1)})
    after = state(trained)
    assert all(torch.equal(good[k], after[k]) for k in good), "a refused file must change nothing"
    assert lab.recipe("W6A6") == W6A6
