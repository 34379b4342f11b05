"""Costs: the paper's Tables 1 and 3 to the printed digit, and the counts against PyTorch's own counter."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from passionsr_lab.analysis.bitcost import paper_cost, recipe_cost, report
from passionsr_lab.analysis.cost import count
from passionsr_lab.analysis.paper import table1, table3
from passionsr_lab.evaluation.cited import table2
from passionsr_lab.fullsize.sd21 import architecture, sd21
from passionsr_lab.quantization.recipe import W4A4, W6A6, W8A8, recipe
from passionsr_lab.tools.train import new_model

BARE = replace(W6A6, at_least=())


@pytest.fixture(scope="module")
def full():
    return sd21()


@pytest.fixture(scope="module")
def frame(full):
    return count(full)


@pytest.fixture(scope="module")
def tiny():
    return new_model()


# -- the paper's numbers ----------------------------------------------------------------------------------------------


def test_table1_is_the_papers(full):
    table = table1(full).set_index("component")
    assert table.params_M.to_dict() == {
        "UNet": 865.785, "VAE": 83.614, "DAPE": 160.335, "CLIPEncoder": 193.055, "Total": 1302.789,
    }  # fmt: skip
    printed = {"UNet": 339.241, "VAE": 1781.123, "DAPE": 126.591, "CLIPEncoder": 14.856, "Total": 2261.811}
    assert {k: v for k, v in printed.items() if table.MACs_G[k] != v}.keys() == {"VAE", "Total"}
    assert table.MACs_G.to_dict() == pytest.approx(printed, rel=1e-4) and table.MACs_G["VAE"] == 1781.229
    assert table.source.tolist() == ["counted", "counted", "cited", "cited", "counted + cited"]


def test_table3_is_the_papers_to_the_digit():
    table = table3().set_index(["method", "bits"])
    assert table.drop(columns="source").iloc[1:].T.to_dict("list") == {
        ("OSEDiff", "W32A32"): [1303, 0, 4523, 0],
        ("PassionSR-FP", "W32A32"): [949, 27.13, 4240, 6.25],
        ("PassionSR-U", "W8A8"): [300, 76.96, 3732, 17.50],
        ("PassionSR-U", "W6A6"): [246, 81.11, 3689, 18.44],
        ("PassionSR-UV", "W8A8"): [238, 81.77, 1060, 76.56],
        ("PassionSR-UV", "W6A6"): [178, 86.32, 795, 82.42],
    }
    assert table.loc[("DiffBIR", "W32A32"), ["params_M", "ops_G", "source"]].tolist() == [1618, 49056, "cited"]
    assert set(table.source.iloc[2:]) == {"counted"}


def test_the_cited_table2_is_whole():
    table = table2()
    assert len(table) == 36 and not table.isna().any().any()
    assert set(table.groupby(["dataset", "bits"]).size().items()) == {
        ((dataset, bits), n)
        for dataset in ("RealSR", "DRealSR", "DIV2K_val")
        for bits, n in (("W32A32", 2), ("W8A8", 5), ("W6A6", 5))
    }


def test_sd21_has_the_papers_layers(frame):
    layers = frame[frame.kind.isin(["conv", "linear"])].groupby("module").size()
    assert layers["unet"] == 282 and layers["encoder"] + layers["decoder"] == 72
    assert (frame[frame.module == "unet"].kind == "qk").sum() == 32
    assert (frame.kind == "groupnorm").sum() == 61 + 52


# -- counting ---------------------------------------------------------------------------------------------------------


def test_every_parameter_is_counted_once_and_the_pipeline_stays_as_it_was(tiny):
    before = {name: (id(t), t.clone()) for name, t in tiny.state_dict(keep_vars=True).items()}
    frame = count(tiny, 64)
    assert frame.parameters.sum() == sum(p.numel() for m in (tiny.unet, tiny.vae) for p in m.parameters())
    assert frame.layer.is_unique and frame.module.drop_duplicates().tolist() == ["encoder", "unet", "decoder"]
    for row in frame[~frame.kind.isin(["qk", "av"])].itertuples():
        assert sum(p.numel() for p in tiny.get_submodule(row.layer).parameters()) == row.parameters
    for name, t in tiny.state_dict(keep_vars=True).items():
        assert id(t) == before[name][0] and torch.equal(t, before[name][1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.modules())


def flops_of(pipe, size, backend):
    """PyTorch's count for a real forward; a fused attention kernel is left out, the plain one is two products."""
    with torch.no_grad(), sdpa_kernel(backend), FlopCounterMode(display=False) as counter:
        pipe.decode(pipe.noise(pipe.encode(torch.zeros(1, 3, size, size))))
    flops = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    return {op: n for op, n in flops.items() if "attention" not in op}


def test_macs_are_those_of_pytorchs_counter(tiny):
    fused, plain = (flops_of(tiny, 96, b) for b in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH))
    macs = count(tiny, 96).groupby("kind").macs.sum()
    assert 2 * macs["conv"] == fused["aten.convolution"] == plain["aten.convolution"]
    assert 2 * macs["linear"] == sum(fused.values()) - fused["aten.convolution"]
    assert 2 * (macs["qk"] + macs["av"]) == sum(plain.values()) - sum(fused.values()) > 0


def test_products_by_hand(frame):
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    macs = frame.set_index("layer").macs
    assert macs[f"{name}.attn1.qk"] == macs[f"{name}.attn1.av"] == 5 * 4096 * 4096 * 64
    assert macs[f"{name}.attn2.qk"] == macs[f"{name}.attn2.av"] == 5 * 4096 * 77 * 64
    order = frame.layer[frame.layer.str.startswith(f"{name}.attn2.")].str.removeprefix(f"{name}.attn2.")
    assert order.tolist() == ["to_q", "to_k", "to_v", "qk", "av", "to_out.0"]


class Twice(nn.Module):
    """A pipeline of one grouped convolution (4 to 6 channels, 12 weights, 6 biases) that runs twice."""

    multiple = 1

    def __init__(self):
        super().__init__()
        self.unet, self.vae = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2)), nn.Module()
        self.register_buffer("prompt_embedding", torch.zeros(1))

    def encode(self, x):
        return x[:, :1].expand(-1, 4, -1, -1)

    def noise(self, z):
        return self.unet(z) + self.unet(z)

    decode = nn.Identity()


def test_grouped_and_repeated_layers():
    frame = count(Twice(), 10)
    assert frame.values.tolist() == [["unet", "unet.0", "conv", 18, 12, 4, 6, 2 * 100 * 12]]
    odd, split = recipe("W3A8"), replace(recipe("W3A8"), split=True)
    assert recipe_cost(frame, odd)["bytes"] == 5 + 4 * (6 + 12 + 4 + 2), "36 bits are five bytes, begun ones counted"
    assert recipe_cost(frame, split)["bytes"] == 5 + 4 * (6 + 24 + 4 + 4), "bounds for each half"


def test_refuses_what_it_cannot_count(tiny):
    for size in (100, 0, -64):
        with pytest.raises(ValueError, match="positive multiple of 16"):
            count(tiny, size)
    pipe = sd21()
    pipe.unet.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match=r"unet\.extra"):
        count(pipe)


def test_the_architecture_of_a_folder_costs_what_its_model_does(make_pipe, tmp_path):
    pipe = make_pipe(cross=True)
    folder = pipe.save(tmp_path / "model")
    for file in folder.glob("*/*.safetensors"):
        file.unlink()  # no weight is read
    skeleton = architecture(folder)
    assert {t.device.type for t in (*skeleton.parameters(), *skeleton.buffers())} == {"meta"}
    assert count(skeleton, 64).equals(count(pipe, 64)) and count(architecture("tiny"), 64).parameters.sum() > 0
    for wrong, message in (("nowhere", "There is no folder"), (".", "config.json is missing")):
        with pytest.raises(ValueError, match=message):
            architecture(tmp_path / wrong)


# -- the cost of a recipe ---------------------------------------------------------------------------------------------


def test_bits_by_hand(frame):
    name = "unet.mid_block.attentions.0.transformer_blocks.0"
    rows = frame[frame.layer.isin([f"{name}.norm1", f"{name}.attn1.to_out.0", f"{name}.attn1.qk"])]
    cost = recipe_cost(rows, replace(recipe("W4A6"), split=(f"{name}.attn1*",)))
    stored = 1280 * 1280 * 4 + 32 * (1280 + 4 * 1280 + 1280 + 4)  # bias, bounds of the weight's halves, LET, bounds
    stored += 32 * (1280 + 4)  # the product's LET and bounds: it has no halves
    stored += 32 * 2 * 1280  # the norm
    linear, product, norm = 64 * 1280 * 1280, 64 * 64 * 1280, 4 * 64 * 1280
    operations = linear * 4 * 6 + product * 6 * 6 + norm * 32 * 32
    assert cost == {"bytes": stored / 8, "bit_operations": operations, "weight_bits": 4, "act_bits": 6}
    full = {"bytes": 4 * rows.parameters.sum(), "bit_operations": 32 * 32 * rows.macs.sum()}
    assert recipe_cost(rows, None) == full | {"weight_bits": 32, "act_bits": 32}


def test_exceptions_cost_their_bits(frame):
    plain, kept = recipe_cost(frame, BARE), recipe_cost(frame, W6A6)
    weights = 320 * 1280 + 9 * 320 * 4 + 64 + 16 + 9 * 512 * 8 + 9 * 128 * 3  # of the six official ones
    assert kept["bytes"] - plain["bytes"] == weights * 2 / 8 and 6 < kept["weight_bits"] < 6.01
    assert recipe_cost(frame, BARE.kept("*", bits=4).kept("*.*", bits=6)) == plain, "the last that matches decides"
    with pytest.raises(ValueError, match=r"'unet.conv_ouf' .* matches no layer; the nearest are unet.conv_out"):
        recipe_cost(frame, W6A6.kept("unet.conv_ouf"))


def test_an_official_exception_for_a_layer_that_a_model_lacks_changes_nothing(make_pipe):
    frame = count(make_pipe(quant_conv=False), 64)  # the recipes keep vae.quant_conv at 8 bits
    lean = replace(W6A6, at_least=tuple(pair for pair in W6A6.at_least if "quant_conv" not in pair[0]))
    assert recipe_cost(frame, W6A6) == recipe_cost(frame, lean)


def test_products_go_by_their_attention(frame):
    plain, kept = recipe_cost(frame, BARE), recipe_cost(frame, BARE.kept("*.attn1"))
    products = frame.kind.isin(["qk", "av"])
    changes = (
        (kept, frame.layer.str.contains(r"attn1\.(?:qk|av)"), 64),
        (recipe_cost(frame, replace(BARE, attention=False)), products, 32 * 32),
        (recipe_cost(frame, replace(BARE, attention=("unet.*",))), products & (frame.module != "unet"), 32 * 32),
    )
    for cost, rows, bits in changes:
        assert cost["bit_operations"] - plain["bit_operations"] == frame.macs[rows].sum() * (bits - 36) > 0
    assert kept["bytes"] == plain["bytes"]


def test_only_the_named_modules_shrink(frame):
    unet = frame.module == "unet"
    cost = recipe_cost(frame, replace(BARE, modules=("unet",)))
    parts = recipe_cost(frame[unet], BARE), recipe_cost(frame[~unet], None)
    for key in ("bytes", "bit_operations"):
        assert cost[key] == sum(part[key] for part in parts)


def test_the_papers_counting_goes_by_the_wider_bits_and_leaves_exceptions_out(frame):
    assert paper_cost(frame, W6A6) == paper_cost(frame, BARE)
    wide, narrow, mixed = (paper_cost(frame, r) for r in (W8A8, W4A4, recipe("W4A8")))
    assert mixed == (narrow[0], wide[1])


def test_the_report_holds_both_countings_and_adds_up(full, frame):
    told = report(full, W8A8)
    paper, exact, modules = told["paper"], told["exact"], told["paper"]["modules"]
    assert modules["unet"] == {"params_M": 865.785, "MACs_G": 339.241}
    for key, printed in (("params_M", 83.614), ("MACs_G", 1781.123)):
        assert modules["encoder"][key] + modules["decoder"][key] == pytest.approx(printed, rel=5e-4)
    assert (round(paper["params_M"]), int(paper["ops_G"])) == (238, 1060)
    assert (round(paper["full"]["params_M"]), int(paper["full"]["ops_G"])) == (949, 4240)
    assert exact["bit_operations"] == sum(part["bit_operations"] for part in exact["modules"].values())
    assert exact["bytes"] < exact["full"]["bytes"] / 3.9 and told["macs"] == frame.macs.sum()
    assert told["macs"] > 1e9 * sum(part["MACs_G"] for part in modules.values()), "the exact count sees more"
