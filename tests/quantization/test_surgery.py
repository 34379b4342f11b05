"""Quantizing, taking it off again, and files: what must stay as it is stays so to the last bit."""

import json
import shutil
from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch import nn

import passionsr_lab as lab
from passionsr_lab.calibration.loop import calibrate
from passionsr_lab.quantization.layer import QuantAttention, Quantized, QuantLayer
from passionsr_lab.quantization.recipe import KEEP, METHODS, OFFICIAL, RECIPES, W4A4, W6A6, W8A8, Recipe, recipe
from passionsr_lab.quantization.surgery import (
    DESCRIPTION,
    TENSORS,
    fingerprint,
    layer_table,
    load,
    load_state,
    mode,
    parameters,
    quantize,
    quantized_layers,
    save,
    state,
    unquantize,
)


@pytest.fixture
def lr(pairs):
    return pairs[0].lr


@pytest.fixture(scope="module")
def trained(calibrated):
    """Every trainable tensor has moved."""
    return calibrated("W6A6", "passionsr", epochs=1, batch=6)


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    return save(trained, tmp_path_factory.mktemp("saved"))


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


# -- quantize ---------------------------------------------------------------------------------------------------------


def test_every_linear_convolution_and_attention_is_quantized(pipe):
    q = quantize(pipe, W4A4)
    plain = {
        f"{part}.{name}"
        for part in ("unet", "vae")
        for name, m in getattr(pipe, part).named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d)) or type(m).__name__ == "Attention"
    }
    found = quantized_layers(q)
    assert found.keys() == plain and len(plain) > 80
    for name, layer in found.items():
        module = q.get_submodule(name)
        assert layer is (module if isinstance(layer, QuantLayer) else module.processor)
    assert sum(isinstance(m, QuantAttention) for m in found.values()) == 4


def test_a_recipe_without_attention_leaves_its_products_in_float(pipe):
    found = quantized_layers(quantize(pipe, replace(W4A4, attention=False)))
    assert all(isinstance(layer, QuantLayer) for layer in found.values())
    assert any(name.endswith("to_q") for name in found)


def test_the_original_is_untouched_by_quantizing_and_calibrating(pipe, pairs, lr):
    weights = {k: v.clone() for k, v in pipe.state_dict().items()}
    names = [(n, type(m)) for n, m in pipe.named_modules()]
    processors = [m.processor for m in pipe.modules() if type(m).__name__ == "Attention"]
    expected = pipe(lr)
    q = quantize(pipe, W4A4)
    calibrate(q, pairs, "lbq+let", epochs=1, batch=6)
    q(lr)
    now = pipe.state_dict()
    assert now.keys() == weights.keys() and all(torch.equal(now[k], weights[k]) for k in now)
    assert [(n, type(m)) for n, m in pipe.named_modules()] == names
    after = [m.processor for m in pipe.modules() if type(m).__name__ == "Attention"]
    assert all(a is b for a, b in zip(after, processors))
    assert torch.equal(pipe(lr), expected)
    assert not torch.equal(q(lr), expected)


def test_the_float_weights_are_shared_not_copied(pipe, trained):
    for name, layer in quantized_layers(trained).items():
        if isinstance(layer, QuantLayer):
            assert layer.layer.weight.data_ptr() == pipe.get_submodule(name).weight.data_ptr()


def test_unquantize_gives_the_full_precision_pipeline_back(pipe, trained, lr):
    before = state(trained)
    plain = unquantize(trained)
    assert type(plain) is lab.OneStepSR
    assert torch.equal(plain(lr), pipe(lr))
    assert not quantized_layers(plain) and not any(isinstance(m, Quantized) for m in plain.modules())
    assert [n for n, _ in plain.named_modules()] == [n for n, _ in pipe.named_modules()]
    after = state(trained)
    assert quantized_layers(trained) and all(torch.equal(before[k], after[k]) for k in before)
    quantize(plain, W8A8)


def test_a_quantized_pipeline_is_not_quantized_again(trained):
    with pytest.raises(ValueError, match="quantized already"):
        quantize(trained, W4A4)


def test_a_pipeline_that_was_not_calibrated_says_so(pipe, lr):
    with pytest.raises(RuntimeError, match=r"has no activation range yet: calibrate the model first"):
        quantize(pipe, W4A4)(lr)


def test_the_prompt_branch_is_left_out(make_pipe, lr):
    pipe = make_pipe()
    pipe.prompt = nn.Identity()
    assert quantize(pipe, W8A8).prompt is None and pipe.prompt is not None


def test_modes_are_restored_on_exit_and_after_an_error(trained, lr):
    layers = quantized_layers(trained)
    first, second = list(layers.values())[:2]
    with mode(first, "float"):
        with pytest.raises(ZeroDivisionError), mode(trained, "observe"):
            assert {layer.mode for layer in layers.values()} == {"observe"}
            raise ZeroDivisionError
        assert (first.mode, second.mode) == ("float", "quantized")
    assert {layer.mode for layer in layers.values()} == {"quantized"}
    with pytest.raises(ValueError, match="'low'"):
        mode(trained, "low").__enter__()


# -- recipes ----------------------------------------------------------------------------------------------------------


def test_the_official_exceptions_keep_8_bits_by_default(pipe):
    table = layer_table(quantize(pipe, W4A4)).set_index("layer")
    kept = {name for name, _ in KEEP}
    assert set(table.index[table.bits == 8]) == kept and len(kept) == 6
    assert set(table.bits.drop(list(kept))) == {4}


def test_patterns_decide_bits_and_the_last_one_wins(pipe):
    wanted = replace(W4A4, keep=(("vae.encoder.*", 6), ("*.attn1*", 7))).kept("vae.encoder.conv_in", bits=3)
    for name, layer in quantized_layers(quantize(pipe, wanted)).items():
        bits = 3 if name == "vae.encoder.conv_in" else 7 if ".attn1" in name else 4
        bits = 6 if bits == 4 and name.startswith("vae.encoder.") else bits
        if isinstance(layer, QuantLayer):
            held = (*layer.act_quantizers, *layer.weight_quantizers)
        else:
            held = tuple(layer.quantizers.values())
        assert {q.bits for q in held} == {bits} == set(wanted.bits(name)), name


def test_weights_and_activations_may_have_different_bits(pipe):
    layer = quantized_layers(quantize(pipe, recipe("W4A8")))["unet.conv_in"]
    assert (layer.weight_quantizers[0].bits, layer.act_quantizers[0].bits) == (4, 8)


@pytest.mark.parametrize("modules", [("encoder",), ("unet",), ("decoder",), ("unet", "decoder")])
def test_only_the_recipes_modules_are_quantized(pipe, modules):
    q = quantize(pipe, replace(W4A4, modules=modules))
    assert set(layer_table(q).module) == set(modules)
    assert len(layer_table(q)) == len(quantized_layers(q))


def test_the_table_has_network_order_bits_and_observed_ranges(trained):
    table = layer_table(trained)
    assert table.layer.is_unique and table.module.unique().tolist() == ["encoder", "unet", "decoder"]
    assert table.layer.iloc[0] == "vae.encoder.conv_in"
    layers = table[table.kind != "attention"]
    assert (layers.low < layers.high).all()
    assert table.set_index("layer").loc["unet.conv_in", "shape"] == (16, 4, 3, 3)


@pytest.mark.parametrize("name", ["W8A8", "W6A6", "W4A4", "W2A3"])
def test_a_recipe_survives_json(name):
    made = replace(recipe(name), split=True, modules=("unet",)).kept("unet.*", bits=5)
    assert Recipe.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize("wrong", ["W9", "w6a6", "6", "", "W6A6 ", "W-1A4", "W1A4", "W4A99"])
def test_names_that_are_no_recipe_are_refused(pipe, wrong):
    with pytest.raises(ValueError, match=r"name is like W6A6|bits from 2 to 16"):
        quantize(pipe, wrong)


@pytest.mark.parametrize("values", [
    {"weight_bits": 1}, {"act_bits": 6.0}, {"zero_point": "none"}, {"modules": ()}, {"modules": ("vae",)},
    {"keep": (("unet.*", 40),)},
])  # fmt: skip
def test_impossible_recipes_fail_when_they_are_made(values):
    with pytest.raises(ValueError, match=r"bits from 2 to 16|zero_point|modules"):
        replace(W8A8, **values)


def test_presets_state_what_they_are():
    assert [(r.name, r.weight_bits, r.act_bits) for r in RECIPES.values()] == [
        ("W8A8", 8, 8), ("W6A6", 6, 6), ("W4A4", 4, 4)
    ]  # fmt: skip
    assert replace(W6A6, **OFFICIAL).alpha == 0.3
    assert METHODS.keys() == {"maxmin", "let", "lbq", "lbq+let", "passionsr", "passionsr-strict"}


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {}, {"split": True}, {"zero_point": "real"}, {"modules": ("unet",)}, {"attention": False}, {"shift": False},
    {"centre": True, "keep": ()},
], ids=str)  # fmt: skip
def test_load_gives_what_was_saved_to_the_last_bit(pipe, pairs, lr, tmp_path, options):
    q = quantize(pipe, replace(W4A4, **options))
    calibrate(q, pairs[:2], "let")
    torch.manual_seed(0)
    for p in chain(*parameters(q, "bounds").values(), *parameters(q, "transform").values()):
        p.data += 0.05 * torch.rand_like(p)
    back = load(save(q, tmp_path), pipe)
    assert back.recipe == q.recipe and back.history == json.loads(json.dumps(q.history))
    assert torch.equal(back(lr), q(lr))
    before, after = state(q), state(back)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_a_saved_folder_holds_what_quantization_added_and_how(saved, trained):
    assert {p.name for p in saved.iterdir()} == {TENSORS, DESCRIPTION}
    description = json.loads((saved / DESCRIPTION).read_text())
    assert description["label"] == "simulated" and description["recipe"]["weight_bits"] == 6
    assert description["calibration"]["method"] == "passionsr"
    assert (saved / TENSORS).stat().st_size < 4 * sum(p.numel() for p in trained.parameters()) / 2


def test_a_model_from_a_folder_and_its_quantization_load_together(pipe, trained, saved, lr, tmp_path):
    model = load(pipe.save(tmp_path / "small"))
    assert torch.equal(load(saved, model)(lr), trained(lr))


@pytest.mark.parametrize("change", [{"seed": 1}, {"unet": (16, 24)}, {"vae": (8, 16, 16)}, {"latent": 8}], ids=str)
def test_another_models_file_is_refused(make_pipe, saved, change):
    with pytest.raises(ValueError, match=r"another model \('small'\), not for 'other'; load that one\.$"):
        load(saved, make_pipe(name="other", **change))


def test_a_model_with_one_weight_changed_is_another_model(make_pipe):
    a, b = make_pipe(), make_pipe()
    assert fingerprint(a) == fingerprint(b) == fingerprint(quantize(a, W4A4))
    b.unet.conv_in.weight.data[0, 0, 0, 0] += 1e-3
    assert fingerprint(a) != fingerprint(b)


@pytest.mark.parametrize("change", [
    {"split": True}, {"attention": False}, {"modules": ("unet",)}, {"weight_bits": 4, "act_bits": 4, "name": "W4A4"},
    {"zero_point": "real"},
], ids=str)  # fmt: skip
def test_the_tensors_of_another_recipe_are_refused(copied, pipe, change):
    """`quantized.json` of one calibration beside the tensors of another."""
    description = json.loads((copied / DESCRIPTION).read_text())
    description["recipe"] |= change
    (copied / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(ValueError) as error:
        load(copied, pipe)
    assert str(copied) in str(error.value) and one_sentence(error)


def test_the_tensors_of_another_model_are_refused_although_their_shapes_fit(make_pipe, pairs, copied, pipe, tmp_path):
    other = quantize(make_pipe(seed=1), W6A6)
    calibrate(other, pairs[:1], "maxmin")
    shutil.copy(save(other, tmp_path / "other") / TENSORS, copied / TENSORS)
    with pytest.raises(ValueError) as error:
        load(copied, pipe)
    assert str(copied) in str(error.value) and one_sentence(error)


def one_sentence(error) -> bool:
    text = str(error.value)
    return "\n" not in text.strip() and 20 < len(text) < 600


DAMAGE = {
    "truncated tensors": (TENSORS, lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2])),
    "empty tensors": (TENSORS, lambda p: p.write_bytes(b"")),
    "no tensors": (TENSORS, lambda p: p.unlink()),
    "tensors that are text": (TENSORS, lambda p: p.write_text("hello, these are no tensors at all")),
    "truncated description": (DESCRIPTION, lambda p: p.write_text(p.read_text()[:100])),
    "empty description": (DESCRIPTION, lambda p: p.write_text("")),
    "a list": (DESCRIPTION, lambda p: p.write_text("[1, 2]")),
    "no recipe": (DESCRIPTION, lambda p: p.write_text(json.dumps(json.loads(p.read_text()) | {"recipe": {}}))),
    "an unknown setting": (DESCRIPTION, lambda p: p.write_text(p.read_text().replace('"split"', '"spilt"'))),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_and_missing_files_are_refused_in_one_sentence(copied, pipe, what):
    file, damage = DAMAGE[what]
    damage(copied / file)
    with pytest.raises(ValueError, match="is not a complete quantized model") as error:
        load(copied, pipe)
    assert str(copied) in str(error.value) and one_sentence(error)


def test_an_empty_or_missing_folder_is_refused_in_one_sentence(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=str(folder)) as error:
            load(folder)
        assert one_sentence(error)


def test_a_folder_that_names_a_model_that_is_not_at_hand_says_how_to_give_it(saved):
    with pytest.raises(ValueError, match=r"'small'.*pipe=") as error:
        load(saved)
    assert one_sentence(error)


def test_a_quantized_folder_of_the_embedded_model_finds_its_model(tmp_path, pairs):
    q = quantize(lab.tiny(), W8A8)
    calibrate(q, pairs[:1], "maxmin")
    assert torch.equal(lab.load(lab.save(q, tmp_path))(pairs[0].lr), q(pairs[0].lr))


def test_load_state_names_what_does_not_fit(trained):
    good = state(trained)
    missing = dict(list(good.items())[1:])
    with pytest.raises(ValueError, match=next(iter(good)).replace(".", r"\.")):
        load_state(trained, missing)
    with pytest.raises(ValueError, match="extra and 0 more"):
        load_state(trained, good | {"extra": torch.zeros(1)})
    after = state(trained)
    assert all(torch.equal(good[k], after[k]) for k in good), "a refused file must change nothing"
