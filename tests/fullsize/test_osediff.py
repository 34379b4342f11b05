"""OSEDiff's checkpoint: both dictionaries, the merge by its formula and by peft, and what is wrong told by name."""

import copy

import pytest
import torch
from synthetic import osediff_file, targets

from passionsr_lab.fullsize.osediff import attach, lora_of, read_lora
from passionsr_lab.pipeline.lora import delta, merge


@pytest.fixture(scope="module")
def content(base):
    return osediff_file(base)


@pytest.fixture
def write(tmp_path):
    def save(content, name="osediff.pkl"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def merged(base, content, write):
    pipe = copy.deepcopy(base)
    for network, lora in zip((pipe.unet, pipe.vae), read_lora(write(content))):
        merge(network, lora)
    return pipe


def test_the_layers_at_the_real_architecture_are_those_that_osediff_adapts(real):
    assert {k: len(v) for k, v in targets(real.unet).items()} == {"encoder": 94, "decoder": 148, "others": 16}
    assert len(targets(real.vae, vae=True)["encoder"]) == 32
    for network, lora in zip((real.unet, real.vae), lora_of(osediff_file(real))):
        merge(network, lora)  # on the meta device: every shape fits


@pytest.mark.parametrize("rank", [1, 4, 8])
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 3, 3), (5, 3, 1, 1)])
def test_the_merge_is_the_formula_written_out(rank, shape):
    a, b = torch.randn(rank, *shape[1:]), torch.randn(shape[0], rank, *(1 for _ in shape[2:]))
    expected = torch.zeros(shape, dtype=torch.float64)
    for o in range(shape[0]):
        for r in range(rank):
            expected[o] += 8 / rank * b[o, r].double().squeeze() * a[r].double()
    torch.testing.assert_close(delta(a, b).double(), expected, rtol=1e-5, atol=1e-5)


def test_every_adapted_layer_and_no_other_changes_by_twice_ba(base, content, merged):
    seen = 0
    for part, entry in (("unet", "state_dict_unet"), ("vae", "state_dict_vae")):
        tensors, before = content[entry], getattr(base, part).state_dict()
        for name, after in getattr(merged, part).state_dict().items():
            layer = name.removesuffix(".weight")
            pair = [t for k, t in sorted(tensors.items()) if k.startswith(f"{layer}.lora_")]
            start = tensors.get(f"{layer}.base_layer.weight", before[name])
            if name == "conv_in.bias":
                start = tensors["conv_in.base_layer.bias"]
            if not pair:
                assert torch.equal(after, start), name
                continue
            a, b = pair
            step = 2 * (b.flatten(1).double() @ a.flatten(1).double()).reshape(after.shape)
            torch.testing.assert_close(after.double(), start.double() + step, rtol=1e-5, atol=1e-6)
            assert not torch.equal(after, start)
            seen += 1
    assert seen == 94 + 148 + 16 + 32


def test_conv_in_is_replaced_before_it_is_adapted(base, content, merged):
    tensors = content["state_dict_unet"]
    assert torch.equal(merged.unet.conv_in.bias, tensors["conv_in.base_layer.bias"])
    difference = merged.unet.conv_in.weight - tensors["conv_in.base_layer.weight"]
    assert 0 < difference.abs().max() < (merged.unet.conv_in.weight - base.unet.conv_in.weight).abs().max()


def test_passionsrs_names_mean_the_same_and_its_decoder_is_left_out(base, content, write):
    ours, theirs = read_lora(write(content)), read_lora(write(osediff_file(base, passionsr=True), "osediff.ckpt"))
    for a, b in zip(ours, theirs):
        assert (a.rank, a.modules) == (b.rank, b.modules) and a.tensors.keys() == b.tensors.keys()
        assert all(torch.equal(tensor, b.tensors[key]) for key, tensor in a.tensors.items())
    assert not [key for key in theirs[1].tensors if "decoder" in key]


# -- peft -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def through_peft(base, content, write):
    pytest.importorskip("peft")
    pipe = copy.deepcopy(base)
    for network, lora in zip((pipe.unet, pipe.vae), read_lora(write(content))):
        attach(network, lora)
    return pipe


def test_merged_weights_are_pefts_own(through_peft, merged):
    from peft.tuners.lora import LoraLayer

    count = 0
    for part in ("unet", "vae"):
        ours = getattr(merged, part).state_dict()
        for name, module in getattr(through_peft, part).named_modules():
            if isinstance(module, LoraLayer):
                module.merge()
                torch.testing.assert_close(module.base_layer.weight, ours[f"{name}.weight"], rtol=1e-5, atol=1e-6)
                count += 1
    assert count == 94 + 148 + 16 + 32


def test_unmerged_and_merged_give_the_same_picture(base, through_peft, merged):
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        ours, theirs, without = (pipe.noise(pipe.encode(x)) for pipe in (merged, through_peft, base))
    assert (ours - theirs).abs().max() < 1e-3 * (ours - without).abs().max()


def test_without_peft_the_sentence_says_what_to_install(base, content, write, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ValueError, match="pip install peft"):
        attach(copy.deepcopy(base.unet), read_lora(write(content))[0])


# -- what is wrong ----------------------------------------------------------------------------------------------------

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def without(content, entry, key):
    return content | {entry: {k: v for k, v in content[entry].items() if k != key}}


DAMAGE = {
    "a missing tensor": (
        lambda c: without(c, "state_dict_unet", f"{LAYER}.lora_B.default_others.weight"), f"no {LAYER}.lora_B"
    ),
    "no replaced conv_in": (
        lambda c: without(c, "state_dict_unet", "conv_in.base_layer.bias"), "no conv_in.base_layer.bias"
    ),
    "a tensor too many": (
        lambda c: c | {"state_dict_vae": c["state_dict_vae"] | {"decoder.conv_in.lora_A.x.weight": torch.zeros(1)}},
        "decoder.conv_in.lora_A.x.weight belongs to no listed layer",
    ),
    "a missing entry": (lambda c: {k: v for k, v in c.items() if k != "rank_vae"}, "no rank_vae"),
    "an unknown entry": (lambda c: c | {"extra": 1}, "'extra'"),
    "an entry of another kind": (lambda c: c | {"unet_lora_others_modules": "all"}, "no unet_lora_others_modules"),
    "a number in a tensor's place": (
        lambda c: c | {"state_dict_vae": dict.fromkeys(c["state_dict_vae"], 3)}, "vae: .* not finite numbers"
    ),
    "a NaN": (
        lambda c: c | {"state_dict_unet": {k: t * torch.nan for k, t in c["state_dict_unet"].items()}}, "not finite"
    ),
    "a layer twice": (
        lambda c: c | {"unet_lora_encoder_modules": c["unet_lora_encoder_modules"] + [LAYER]}, f"{LAYER} is in two"
    ),
    "a list": (lambda c: list(c), "holds a list"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_wrong_file_is_refused_by_name(content, write, what):
    change, words = DAMAGE[what]
    with pytest.raises(ValueError, match=words) as error:
        read_lora(write(change(content)))
    assert "osediff.pkl" in str(error.value) and "\n" not in str(error.value)


def widen(content):
    key = f"{LAYER}.lora_A.default_others.weight"
    content["state_dict_unet"][key] = torch.zeros(4, 7)


def rename(content):
    layers = content["unet_lora_others_modules"]
    layers[layers.index("mid_block.attentions.0.proj_in")] = "mid_block.nowhere"
    old = [k for k in content["state_dict_unet"] if k.startswith("mid_block.attentions.0.proj_in.")]
    for key in old:
        value = content["state_dict_unet"].pop(key)
        content["state_dict_unet"][key.replace("attentions.0.proj_in", "nowhere")] = value


@pytest.mark.parametrize(("change", "words"), [
    (widen, f"LoRA of {LAYER}: A \\(4, 7\\)"),
    (rename, "adapts mid_block.nowhere.weight"),
    (lambda c: c.update(rank_unet=8), "fit rank 8"),
    (lambda c: c["state_dict_unet"].update({"conv_in.base_layer.bias": torch.zeros(3)}), "conv_in.bias"),
])  # fmt: skip
def test_what_does_not_fit_the_model_is_told_and_nothing_is_changed(base, write, change, words):
    damaged, network = osediff_file(base), copy.deepcopy(base.unet)
    change(damaged)
    with pytest.raises(ValueError, match=words):
        merge(network, read_lora(write(damaged))[0])
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), base.unet.parameters()))


def test_another_model_is_not_adapted(pipe, content, write):
    with pytest.raises(ValueError, match=r"conv_in.weight of the checkpoint is \(32, 4, 3, 3\)"):
        merge(pipe.unet, read_lora(write(content))[0])
