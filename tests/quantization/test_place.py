"""Putting quantized layers in and taking them out: what must stay as it is stays so to the last bit."""

import copy

import pytest
import torch
from filled import disturb, relative
from made import refused
from torch import nn

import passionsr_lab as lab
from passionsr_lab.analysis.layers import layer_table
from passionsr_lab.calibration.state import load_state, state
from passionsr_lab.quantization.attention import QuantAttention
from passionsr_lab.quantization.layer import QuantLayer
from passionsr_lab.quantization.place import quantize, unquantize
from passionsr_lab.quantization.recipe import W4A4, W8A8
from passionsr_lab.quantization.transform import EquivalentTransform


@pytest.fixture(scope="module")
def trained(calibrated):
    """Every trainable tensor has moved."""
    return calibrated("W6A6", "passionsr", epochs=1, batch=6)


def same_memory(a, b):
    return all(p.data_ptr() == q.data_ptr() and p is not q for p, q in zip(a, b, strict=True))


def test_every_linear_convolution_and_attention_is_quantized_in_the_recipes_modules_only(pipe):
    plain = {
        f"{part}.{name}"
        for part in ("unet", "vae")
        for name, m in getattr(pipe, part).named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d)) or type(m).__name__ == "Attention"
    }
    q = quantize(pipe, W4A4)
    assert q.layers.keys() == plain and len(plain) > 80
    for name, layer in q.layers.items():
        module = q.get_submodule(name)
        assert layer is (module if isinstance(layer, QuantLayer) else module.processor) and layer.name == name
    assert sum(isinstance(m, QuantAttention) for m in q.layers.values()) == 4
    for chosen in (("encoder",), ("unet",), ("decoder",), ("unet", "decoder")):
        table = layer_table(quantize(pipe, W4A4, modules=chosen))
        assert set(table.module) == set(chosen) and table.layer.is_unique


def test_the_source_is_untouched_by_quantizing_calibrating_and_moving(pipe, pairs):
    lr = pairs[0].lr
    weights = {k: v.clone() for k, v in pipe.state_dict().items()}
    names = [(n, type(m)) for n, m in pipe.named_modules()]
    processors = [m.processor for m in pipe.modules() if type(m).__name__ == "Attention"]
    expected, q = pipe(lr), quantize(pipe, W4A4)
    assert same_memory(q.parameters(), pipe.parameters()), "shared, not copied; and no parameter is the other's"
    lab.calibrate(q, pairs, "lbq+let", epochs=1, batch=6)
    assert not torch.equal(q(lr), expected)
    q.to("meta")
    assert all(p.is_meta for p in q.parameters()), "it moves"
    now = pipe.state_dict()
    assert now.keys() == weights.keys() and all(torch.equal(now[k], weights[k]) for k in now)
    assert [(n, type(m)) for n, m in pipe.named_modules()] == names
    after = [m.processor for m in pipe.modules() if type(m).__name__ == "Attention"]
    assert all(a is b for a, b in zip(after, processors)) and torch.equal(pipe(lr), expected)
    assert not any(p.requires_grad for p in pipe.parameters())


def test_unquantize_gives_the_source_back_bit_for_bit_and_leaves_the_quantized_one(pipe, trained, pairs):
    before, plain = state(trained), unquantize(trained)
    assert type(plain) is type(pipe) and torch.equal(plain(pairs[0].lr), pipe(pairs[0].lr))
    assert [(n, type(m)) for n, m in plain.named_modules()] == [(n, type(m)) for n, m in pipe.named_modules()]
    assert same_memory(plain.parameters(), pipe.parameters())
    plain.to("meta")
    after = state(trained)
    assert trained.layers and all(torch.equal(before[k], after[k]) for k in before)
    assert torch.equal(unquantize(quantize(pipe, W8A8))(pairs[0].lr), pipe(pairs[0].lr))


def test_what_makes_no_sense_for_a_quantized_pipeline_is_refused_in_one_sentence(pipe, make_pipe, trained):
    for name in ("save", "half", "float", "train", "load_state_dict", "state_dict"):
        with refused(f"A quantized pipeline has no '{name}'", kind=AttributeError):
            getattr(trained, name)
    assert set(dir(trained)) >= {"encode", "recipe"} and not set(dir(trained)) & {"save", "half"}
    with refused("quantized already"):
        quantize(trained, W4A4)
    with refused("no activation range yet: calibrate", kind=RuntimeError):
        quantize(pipe, W4A4)(torch.rand(3, 8, 8))
    assert torch.equal(copy.deepcopy(trained)(torch.ones(3, 8, 8)), trained(torch.ones(3, 8, 8)))
    branched = make_pipe()
    branched.prompt = nn.Identity()
    assert quantize(branched, W8A8).prompt is None and branched.prompt is not None, "PassionSR-FP"


def test_let_leaves_the_whole_pipeline_unchanged(pipe, pairs, calibrated, without_rounding):
    q = without_rounding(calibrated("W6A6"))
    transforms = [m for m in q.modules() if isinstance(m, EquivalentTransform)]
    for seed, transform in enumerate(transforms):
        disturb(transform, seed, 0.5)
    x = pipe.prepare(pairs[0].lr[None])
    assert len(transforms) > 50
    with torch.no_grad():
        for ours, theirs in zip(q.segments(), pipe.segments()):
            assert relative(ours.run(x), theirs.run(x)) < 1e-5
            x = theirs.run(x)


def test_load_state_names_what_does_not_fit_and_changes_nothing_then(trained):
    good = state(trained)
    name = next(k for k in good if k.endswith("log_scale"))
    for wrong in ({name: good[name][:1]}, {"extra": torch.zeros(1)}):
        bad = {k: v + 1 for k, v in good.items()} | wrong
        with refused(min(wrong), "0 more"):
            load_state(trained, bad)
    with refused(name):
        load_state(trained, {k: v for k, v in good.items() if k != name})
    after = state(trained)
    assert all(torch.equal(good[k], after[k]) for k in good)


@pytest.fixture
def compiled(make_pipe):
    """A pipeline whose UNet is compiled when it is first called, which takes long."""
    pipe = make_pipe()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    return pipe


def test_a_compiled_unet_keeps_its_names_and_its_list_of_8_bits_and_is_saved_and_loaded(
    make_pipe, compiled, pairs, tmp_path
):
    plain, lr = make_pipe(), pairs[0].lr
    ours, theirs = (quantize(pipe, W4A4) for pipe in (compiled, plain))
    assert {n: m.setting for n, m in ours.layers.items()} == {n: m.setting for n, m in theirs.layers.items()}
    assert ours.layers["unet.conv_out"].setting.weight_bits == 8
    with torch.compiler.set_stance("force_eager"):
        for q in (ours, theirs):
            lab.calibrate(q, pairs[:1], "let")
        folder = lab.save(ours, tmp_path)
        expected = theirs(lr)
        assert all(torch.equal(lab.load(folder, pipe)(lr), expected) for pipe in (compiled, plain))
        assert torch.equal(unquantize(ours)(lr), plain(lr)) and state(ours).keys() == state(theirs).keys()


def test_a_compiled_unet_gives_what_the_plain_one_gives(make_pipe, compiled, pairs):
    found = []
    for pipe in (compiled, make_pipe()):
        q = quantize(pipe, W4A4)
        with torch.compiler.set_stance("force_eager"):
            lab.calibrate(q, pairs[:1], "let")
        found.append(q(pairs[0].lr))
    assert relative(*found) < 1e-5


@pytest.mark.parametrize("name", ["timestep", "scheduler", "upscale", "unet", "prompt_embedding"])
def test_what_belongs_to_the_pipeline_cannot_be_set_past_it(pipe, name):
    q = quantize(pipe, W4A4)
    before = getattr(q, name)
    with pytest.raises(ValueError, match="full-precision pipeline's"):
        setattr(q, name, 500)
    assert getattr(q, name) is before
