"""QArtSR: the reversed order with a float prefix and a quantized tail, its quantizer, and what its branch costs."""

import pytest
import torch
from filled import filled, relative
from made import refused

import passionsr_lab as lab
from passionsr_lab.analysis.bitcost import recipe_cost
from passionsr_lab.analysis.cost import count
from passionsr_lab.analysis.layers import branch_ranks
from passionsr_lab.calibration.loop import Calibration
from passionsr_lab.calibration.lowrank import LowRank
from passionsr_lab.calibration.method import DISTANCES, Loss
from passionsr_lab.calibration.perceptual import GRADIENTS, gradient_distance
from passionsr_lab.calibration.task import task
from passionsr_lab.methods import qartsr
from passionsr_lab.methods.qartsr import QArtSR
from passionsr_lab.quantization.layer import QuantLayer, mode
from passionsr_lab.quantization.place import segment_modules


def test_the_last_module_is_first_behind_a_float_prefix_and_before_a_quantized_tail(toy, few):
    q = lab.quantize(toy, "W4A4")
    work = Calibration(q, few, qartsr.METHOD, epochs=1, batch=2)
    assert [stage.segment for stage, _ in work.stages] == ["decoder", "unet", "encoder", "all"]
    work._begin()
    work.data.targets()
    work.observe()
    found = task(work.stages[1][0], None, work.data)
    with torch.no_grad():
        latent = found.inputs[0]
        assert torch.equal(latent, work.data.full["encoder"][0]), "full precision comes in"
        outputs = found.outputs([latent])
        assert torch.equal(outputs["image"], q.decode(outputs["output"])), "what follows is quantized"
        with mode(segment_modules(q, "decoder"), "float"):
            assert not torch.equal(outputs["image"], q.decode(outputs["output"]))


def test_by_blocks_every_run_has_float_blocks_before_and_quantized_ones_behind(toy, few):
    q = lab.quantize(toy, "W4A4")
    work = Calibration(q, few, qartsr.BLOCKS, epochs=1, batch=2)
    names = [name for stage, name in work.stages if stage.segment == "unet"]
    assert names[0] == "unet.conv_out" and names[-1] in ("unet.conv_in", "unet.time_embedding.linear_1")
    work._begin()
    work.data.targets()
    work.observe()
    stage = next(stage for stage, name in work.stages if name == "unet.mid_block.resnets.0")
    found, seen = task(stage, "unet.mid_block.resnets.0", work.data), {}
    layers = {n: layer for n, layer in q.layers.items() if isinstance(layer, QuantLayer)}
    see = lambda layer, _: seen.update({layer.name: layer.mode})
    hooks = [layer.register_forward_pre_hook(see) for layer in layers.values()]
    with torch.no_grad():
        outputs = found.outputs(found.inputs[:1])
    for hook in hooks:
        hook.remove()
    order = list(seen)
    first = next(i for i, name in enumerate(order) if name.startswith("unet.mid_block.resnets.0"))
    assert {seen[n] for n in order[:first]} == {"float"} and {seen[n] for n in order[first:]} == {"quantized"}
    assert outputs["image"].shape == work.data.full["all"][0].shape
    assert outputs["output"].shape == found.targets["output"][0].shape and len(found.targets["output"]) == len(few)
    assert not work.q.get_submodule("unet.mid_block.resnets.0")._forward_hooks


def test_a_branch_that_is_trained_has_the_values_of_16_bits_and_the_gradient_of_32():
    layer, _ = filled("3x3 padded", QArtSR(branch=0.4), weight_bits=4, act_bits=4)
    QArtSR(branch=0.4).start(layer)
    branch = layer.branch
    assert branch.up.dtype == torch.float32 and branch.rank == 2
    assert all(torch.equal(t, t.half().float()) for t in branch.factors())
    branch.requires_grad_(True)
    branch.weight().sum().backward()
    assert torch.allclose(branch.up.grad, branch.factors()[1].sum(1).expand_as(branch.up), atol=1e-5)
    before = branch.weight().detach().clone()
    with torch.no_grad():
        branch.up.mul_(8)
        branch.balance()
        assert relative(branch.weight(), 8 * before) < 1e-2, "balancing changes the factors and not their product"
    up, down = branch.up.square().mean(0), branch.down.square().mean(1)
    assert torch.allclose(up, down, rtol=1e-3)


def test_a_branch_and_a_lora_are_there_and_learn_only_where_they_are_asked_for(toy, few):
    ends = []
    for options, tags in (({}, qartsr.TAGS), ({"branch": 0.0, "lora": 0.0}, ("transform", "bounds"))):
        q = lab.quantize(toy, lab.recipe("W3A3", modules=("decoder",)))
        method = qartsr.METHOD.with_options(**options)
        method = lab.Method("x", "x", "x", method.slots, qartsr.rpq(tags, 6.0), rates=qartsr.RATES)
        frame = lab.calibrate(q, few, method, epochs=2, batch=1)
        last = frame[frame.event == "end"].iloc[0]
        assert last.loss < last["first"]
        ends.append(last.loss)
        layers = [layer for layer in q.layers.values() if isinstance(layer, QuantLayer)]
        assert {layer.branch is not None for layer in layers} == {"branch" in tags}
        assert {layer.delta is not None and bool(layer.delta.up.any()) for layer in layers} == {"lora" in tags}
    assert ends[0] < ends[1], "they help"


def test_the_cost_of_a_branch_is_16_bits_per_number_and_its_products(toy, few):
    q = lab.quantize(toy, "W4A4")
    qartsr.METHOD.slots.install(q)
    frame, ranks = count(toy, 64), branch_ranks(q)
    plain, ours = recipe_cost(frame, q.recipe), recipe_cost(frame, q.recipe, ranks)
    numbers = operations = 0
    for row in frame[frame.layer.isin(ranks)].itertuples():
        branch = q.layers[row.layer].branch
        own = branch.up.numel() + branch.down.numel()
        numbers, operations = numbers + own, operations + own * row.macs // row.weights * 256
    assert ours["bytes"] - plain["bytes"] == ours["branch_bytes"] == 2 * numbers > 0
    assert ours["bit_operations"] - plain["bit_operations"] == operations
    with refused("no layer 'unet.nowhere'"):
        recipe_cost(frame, q.recipe, {"unet.nowhere": 2})
    assert isinstance(q.layers["unet.conv_in"].branch, LowRank)


def test_gradients_at_four_scales_see_structure_and_not_tone():
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert gradient_distance(x, x + 0.3).item() == pytest.approx(0, abs=1e-6)
    edges = gradient_distance(x, x.flip(-1)).item()
    blurred = gradient_distance(x, torch.nn.functional.avg_pool2d(x, 3, 1, 1)).item()
    assert edges > blurred > 0.05
    ramp = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
    expected = sum(1 / 15 * 2**k for k in range(4)) / 8  # only along x; every scale doubles the step
    assert gradient_distance(ramp, torch.zeros_like(ramp)).item() == pytest.approx(expected, rel=1e-4)
    assert gradient_distance(x[..., :2, :2], x[..., :2, :2] * 0).isfinite() and Loss(GRADIENTS).distance in DISTANCES


def test_lpips_is_asked_for_only_where_its_weights_are(toy, few, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with refused("LPIPS needs alexnet", "multi-scale gradients"):
        lab.calibrate(lab.quantize(toy, "W4A4"), few, qartsr.PERCEPTUAL)
