"""Recipes: presets, patterns, what is refused, JSON; and what they do to a pipeline's layers."""

import json
from dataclasses import replace

import pytest
from made import refused

import passionsr_lab as lab
from passionsr_lab.quantization.attention import QuantAttention
from passionsr_lab.quantization.place import quantize
from passionsr_lab.quantization.recipe import AT_LEAST, W4A4, W6A6, W8A8, LayerRecipe, Recipe, recipe


def test_presets_and_names_say_what_they_are():
    assert [(r.name, r.weight_bits, r.act_bits) for r in (W8A8, W6A6, W4A4)] == [
        ("W8A8", 8, 8), ("W6A6", 6, 6), ("W4A4", 4, 4)
    ]  # fmt: skip
    made = recipe("W4A8", modules=("unet",))
    assert (made.name, made.bits("unet.conv_in"), made.modules) == ("W4A8", (4, 8), ("unet",))
    for wrong in ("W9", "w6a6", "6", "", "W6A6 ", "W-1A4", "W1A4", "W4A99", 6):
        with pytest.raises(ValueError, match=r"name is like W6A6|bits from 2 to 16"):
            recipe(wrong)


def test_the_official_exceptions_have_at_least_8_bits_and_never_fewer_than_asked(pipe):
    layers = quantize(pipe, W4A4).layers
    assert {name for name, layer in layers.items() if layer.setting.weight_bits == 8} == {name for name, _ in AT_LEAST}
    assert {layer.setting.act_bits for layer in layers.values()} == {4, 8}
    wide = recipe("W16A5")
    assert all(wide.bits(name) == (16, 8) for name, _ in AT_LEAST) and wide.bits("unet.conv_in") == (16, 5)
    last = replace(W4A4, at_least=(("unet.*", 6), ("*.conv_in", 5)))
    assert (last.bits("unet.conv_out"), last.bits("unet.conv_in")) == ((6, 6), (5, 5)), "the last match counts"


def test_patterns_decide_everything_about_a_layer_in_their_order(pipe):
    wanted = replace(W4A4, split=("unet.mid_block.*",), attention=("unet.*",))
    wanted = wanted.kept("vae.encoder.*", bits=6).kept("vae.encoder.conv_in", bits=3)
    wanted = wanted.override("*.attn1*", weight_bits=7, zero_point="real", rank=4).override("unet.conv_in", split=True)
    layers = quantize(pipe, wanted).layers
    assert layers["vae.encoder.conv_in"].setting == LayerRecipe(3, 3) == wanted.layer("vae.encoder.conv_in")
    assert layers["vae.encoder.conv_out"].setting == LayerRecipe(6, 6), "overrides may go below at_least"
    attn = next(name for name in layers if name.endswith("attn1.to_q"))
    assert layers[attn].setting == LayerRecipe(7, 4, "real", True, 4)
    assert layers["unet.conv_in"].setting.split and not layers["unet.conv_out"].setting.split
    products = [name for name, layer in layers.items() if isinstance(layer, QuantAttention)]
    assert products and all(name.startswith("unet.") for name in products)
    assert layers[products[0]].setting == LayerRecipe(7, 4, "real", True, 4), "of the products, too"
    without = quantize(pipe, replace(W4A4, attention=False)).layers
    assert not any(isinstance(layer, QuantAttention) for layer in without.values()) and attn in without


@pytest.mark.parametrize("change", [
    W6A6.kept("unet.conv_inn"), replace(W6A6, split=("unet.conv_inn",)), replace(W6A6, attention=("unet.conv_in",)),
    recipe("W6A6", modules=("decoder",)).kept("unet.conv_in"),
])  # fmt: skip
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names(pipe, change):
    near = {"unet.conv_inn": "unet.conv_in"}.get(str(change.split[0] if change.split else change.overrides), "")
    with refused("matches no layer", "nearest are", near):
        quantize(pipe, change)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: replace(W8A8, weight_bits=1), "2 to 16, not 1"),
    (lambda: replace(W8A8, act_bits=6.0), "2 to 16, not 6.0"),
    (lambda: LayerRecipe(True, 4), "2 to 16, not True"),
    (lambda: replace(W8A8, zero_point="none"), "'none'"),
    (lambda: replace(W8A8, modules=()), "modules are some of"),
    (lambda: replace(W8A8, modules=("vae",)), "modules are some of"),
    (lambda: replace(W8A8, modules="unet"), "modules are some of"),
    (lambda: replace(W8A8, split="unet.*"), "split is True, False or a tuple of patterns"),
    (lambda: replace(W8A8, attention="unet.*"), "attention is True, False or a tuple of patterns"),
    (lambda: replace(W8A8, at_least=(("unet.*", 40),)), "2 to 16, not 40"),
    (lambda: W8A8.override("unet.*", bits=4), "no setting 'bits'"),
    (lambda: W8A8.override("unet.*", rank=-1), "whole number from 0 on, not -1"),
    (lambda: W8A8.override("unet.*", split="yes"), "split is True or False for a layer"),
    (lambda: Recipe.from_dict({}), "not the values of a recipe"),
    (lambda: Recipe.from_dict(W8A8.to_dict() | {"spilt": True}), "not the values of a recipe"),
])  # fmt: skip
def test_impossible_recipes_fail_when_they_are_made(make, words):
    with refused(words):
        make()


def test_a_recipe_survives_json_and_may_be_made_with_lists():
    made = replace(recipe("W2A3"), split=["unet.*"], attention=("unet.*",), modules=["unet"])
    made = made.kept("unet.*", bits=5).override("unet.conv_in", zero_point="real", split=True, rank=2)
    assert Recipe.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert hash(made) == hash(replace(made)) and lab.recipe("W6A6") == W6A6
