"""The one loop: stages as data, what trains and what rests, reproducible, accounted for, never worse than its start."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from filled import same, told
from made import refused

import passionsr_lab as lab
from passionsr_lab.calibration.loop import Calibration
from passionsr_lab.calibration.method import RATES, Loss, Method, Stage
from passionsr_lab.calibration.state import load_state, state
from passionsr_lab.calibration.task import task
from passionsr_lab.methods import METHODS, calibrate, passionsr
from passionsr_lab.quantization.filling import LET
from passionsr_lab.quantization.layer import mode
from passionsr_lab.quantization.place import quantize
from passionsr_lab.quantization.ranges import Range
from passionsr_lab.quantization.recipe import W6A6, W8A8, recipe

UNET = replace(W6A6, modules=("unet",))
FINE = replace(W8A8, modules=("unet",))  # its loss is smooth in the boundaries
LEARNED = {"transform": {"log_scale", "offset"}, "bounds": {"trim"}}
PREFIX = {"encoder": ("vae.encoder", "vae.quant_conv"), "unet": ("unet",), "decoder": ("vae.decoder", "vae.post_quant")}


def one(*stages, slots=LET(), **more):
    """A method of these stages."""
    return Method("one", "One", "", slots, stages, **more)


def losses(records, event="step"):
    return [r["loss"] for r in records if r["event"] == event]


@torch.no_grad()
def together(run, inputs):
    """What leaves a segment, two inputs at a time, as the calibration has them: of one alone a few codes differ."""
    return [y for i in range(0, len(inputs), 2) for y in run(torch.cat(list(inputs[i : i + 2]))).split(1)]


# -- records ----------------------------------------------------------------------------------------------------------


def test_a_run_tells_its_stages_as_many_records_as_announced_and_all_its_costs(begin, run):
    for name in ("maxmin", "lbq+let", "passionsr"):
        method, (q, records) = METHODS[name], run(name)
        stages = [(s.segment, "+".join(s.train)) for s in method.stages] or [("all", "ranges")]
        assert [(r["module"], r["stage"]) for r in records if r["event"] == "end"] == stages
        assert len(records) == begin(name).total
        assert all(r["seconds"] > 0 and r["cpu_seconds"] > 0 and r["peak_bytes"] > 1e6 for r in records)
        for key, total in (("seconds", sum), ("cpu_seconds", sum), ("peak_bytes", max)):
            assert q.history["cost"][key] == pytest.approx(total(r[key] for r in records))
        steps = [r for r in records if r["event"] == "step"]
        assert all(0 < r["lr"] <= max(RATES.values()) and np.isfinite(r["loss"]) for r in steps)
        for start in (r for r in records if r["event"] == "start"):
            own = [r for r in steps if (r["module"], r["stage"]) == (start["module"], start["stage"])]
            assert [r["step"] for r in own] == list(range(1, start["of"] + 1))
            assert [r["lr"] for r in own] == sorted((r["lr"] for r in own), reverse=True)


def test_all_that_a_run_does_is_over_when_its_last_record_is_told(begin):
    """So no seconds go uncounted: segments that no stage trains are observed before."""
    work = begin(one(Stage("encoder", ("bounds",)), observe="quantized"))
    for _, _ in zip(range(work.total), work.run()):
        pass
    assert all(m.known for layer in work.q.layers.values() for m in layer.modules() if isinstance(m, Range))


def test_joint_methods_make_as_many_updates_of_modules_as_distributed_ones():
    updates = {}
    for method in ("lbq", "lbq+let", "passionsr", "passionsr-strict"):
        stages = METHODS[method].stages
        updates[method] = sum(s.steps(4, 1) * (3 if s.segment == "all" else 1) for s in stages)
    assert set(updates.values()) == {24}, updates


def test_the_summary_says_of_each_stage_what_it_gained_what_was_undone_and_why(begin):
    assert begin("maxmin").summary() == []
    work = begin("maxmin")
    list(work.run())
    assert work.summary() == [f"all, ranges: loss {work.ends[0]['loss']:.3g}; nothing is trained."]
    end = {"module": "unet", "block": "unet.conv_in", "stage": "bounds", "of": 4, "first": 2.0, "loss": 1.0}
    work.ends = [end | {"step_length": s} for s in (1.0, 0.25)] + [end | {"loss": 2.0, "step_length": 0.0, "block": ""}]
    gained = "unet unet.conv_in, bounds: loss 2 to 1 (50 % less)"
    assert work.summary() == [
        f"{gained}.", f"{gained}; only 0.25 of its way is left, since the whole ended above its start.",
        "unet, bounds: loss 2 to 2 (0 % less); undone, since no part of its way ended below its start.",
    ]  # fmt: skip


def test_calibrate_gives_a_frame_and_calls_back_and_takes_tuples(pipe, pairs, run):
    seen, q = [], quantize(pipe, W6A6)
    frame = calibrate(q, [(pair.lr, pair.hr) for pair in pairs[:3]], "let", callback=seen.append, batch=2)
    assert told(seen) == told(frame.to_dict("records")) and len(frame) == 1 and same(q, run("let")[0])


# -- what is trained --------------------------------------------------------------------------------------------------


def test_what_a_stage_does_not_train_it_leaves_alone(begin):
    work, before, changed = begin("passionsr-strict"), None, 0
    for record in work.run():
        now = state(work.q)
        if record["event"] == "step":
            moved = [k for k in now if not torch.equal(now[k], before[k])]
            assert all(k.startswith(PREFIX[record["module"]]) for k in moved)
            trained = set().union(*(LEARNED[tag] for tag in record["stage"].split("+")))
            assert {k.rpartition(".")[2] for k in moved} == trained
            changed += len(moved)
        before = now
    assert changed > 100


def test_a_shift_is_learned_only_where_the_option_says_so(run):
    q, _ = run(METHODS["lbq+let"].with_options(shift=False, alpha=0.3))
    learned = state(q)
    assert not any(v.any() for k, v in learned.items() if k.endswith("offset"))
    assert any(v.any() for k, v in learned.items() if k.endswith("trim"))
    with refused("'lbq+let' has no option alfa"):
        METHODS["lbq+let"].with_options(alfa=0.3)


def test_the_same_seed_gives_the_same_bits_whatever_came_before_and_another_seed_others(begin, run):
    """A second calibration, by another method, starts anew; without gradients around it, too."""
    q = begin("lbq").q
    for method in ("passionsr", "maxmin"):
        torch.manual_seed(12345)
        with torch.no_grad():
            records = list(begin(method, q=q).run())
        assert same(q, run(method)[0]) and told(records) == told(run(method)[1])
        assert q.method is METHODS[method] and q.history["stages"] == run(method)[0].history["stages"]
    assert losses(run("lbq")[1]) != losses(run("lbq", seed=1)[1])


def test_every_pair_is_used_once_per_epoch_in_another_order_and_sizes_are_never_mixed(begin, pairs):
    method = one(Stage("encoder", ("bounds",), 2.0))
    work = begin(method, pairs=[*pairs, *lab.bundled("calibration", 1, 16)], epochs=2, batch=4)
    work.data.targets()
    steps = work._steps(task(work.stages[0][0], None, work.data))
    assert len(steps) + 2 == work.total == 4 * 3 + 2, "two steps of six pairs and one of the other size"
    orders = [[i for step in steps[3 * epoch : 3 * epoch + 3] for i in step] for epoch in range(4)]
    assert all(sorted(order) == list(range(7)) for order in orders) and orders[0] != orders[1]
    assert all(len({work.data.inputs[i].shape for i in step}) == 1 for step in steps)
    part = begin(replace(method, stages=(Stage("encoder", ("bounds",), 0.75),)), pairs=pairs[:6], epochs=2, batch=2)
    part.data.targets()
    steps = part._steps(task(part.stages[0][0], None, part.data))
    assert len(steps) == 4, "1.5 times three, rounded to even"
    assert sorted(i for step in steps[:3] for i in step) == list(range(6)) and part.total == len(steps) + 2


# -- the line search --------------------------------------------------------------------------------------------------


def test_of_more_than_16_pairs_16_say_how_a_stage_began(begin):
    work = begin(one(Stage("encoder", ("bounds",))), pairs=lab.bundled("calibration", 20, 32))
    first, other = next(work.run()), begin(pairs=lab.bundled("calibration", 20, 32), seed=1)
    pairs = zip(together(work.q.encode, work.data.inputs), work.data.full["encoder"])
    each = np.array([(y - target).square().mean().item() for y, target in pairs])
    judged, every = each[work.data.judges].mean(), each.mean()
    assert judged != pytest.approx(every, rel=1e-3), "these pairs cannot tell"
    assert first["loss"] == pytest.approx(judged, rel=1e-3)
    assert len(set(work.data.judges)) == 16 and set(other.data.judges) != set(work.data.judges)


def test_a_stage_that_gets_worse_is_undone_wholly(run):
    q, records = run("lbq+let", UNET, rates={"transform": 3.0, "bounds": 300.0})
    start, end = records[0], records[-1]
    assert max(losses(records)) > 2 * start["loss"], "it never got worse"
    assert end["step_length"] == 0 and end["loss"] == start["loss"] and same(q, run("let", UNET)[0])


def test_a_stage_that_went_too_far_goes_back_along_its_way(begin):
    last = replace(METHODS["lbq+let"], average=0.0)
    work = begin(last, FINE, pairs=lab.bundled("calibration", 6, 32, seed=1), epochs=2)
    records = work.run()
    first = next(records)
    while first["of"] > next(records)["step"]:
        pass
    before, good = work.before, state(work.q)
    load_state(work.q, good | {k: t + 8 * (good[k] - t) for k, t in before.items()})
    end = next(records)
    assert end["event"] == "end" and 0 < end["step_length"] < 1 and end["loss"] < first["loss"]
    assert f"only {end['step_length']:g} of its way" in work.summary()[0]


def test_a_stage_that_gets_better_stays_and_without_a_line_search_every_stage_does(run):
    options = {"pairs": lab.bundled("calibration", 6, 32, seed=1), "epochs": 2}
    q, records = run("lbq+let", FINE, **options, rates={"transform": 1e-3, "bounds": 0.02})
    assert (
        records[-1]["step_length"] == 1
        and records[-1]["loss"] < records[0]["loss"]
        and not same(q, run("let", FINE)[0])
    )
    wild = replace(METHODS["lbq+let"], backtrack=False)
    _, records = run(wild, UNET, rates={"transform": 3.0, "bounds": 300.0})
    assert records[-1]["step_length"] == 1 and records[-1]["loss"] > records[0]["loss"]


@pytest.mark.parametrize(("average", "count"), [(0.0, 1), (0.5, 2), (1.0, 4)])
def test_a_stage_ends_in_the_mean_of_its_last_states(begin, average, count):
    work = begin(one(Stage("encoder", ("transform", "bounds")), average=average, backtrack=False), epochs=2)
    states = [state(work.q) for record in work.run() if record["event"] == "step"][-count:]
    for name, ended in state(work.q).items():
        mean = torch.stack([s[name] for s in states]).double().mean(0)
        assert torch.allclose(ended.double(), mean, atol=1e-6), name
    moved = [name for name in states[0] if not torch.equal(states[0][name], states[-1][name])]
    assert len(states) == count and (moved or count == 1)


def test_a_loss_that_is_not_finite_stops_with_one_sentence(begin):
    work = begin("lbq+let")
    stream = work.run()
    next(stream)
    work.data.full["all"][:] = [torch.full_like(t, torch.nan) for t in work.data.full["all"]]
    with pytest.raises(FloatingPointError, match=r"^The calibration loss of all became nan; lower its rates\.$"):
        next(stream)


# -- inputs, targets, losses ------------------------------------------------------------------------------------------


def test_each_segment_is_fed_by_the_quantized_one_before_and_its_losses_are_those_told(pipe, pairs, run):
    q, records = run("passionsr")
    inputs = [pipe.prepare(pair.lr[None]) for pair in pairs[:3]]
    entering = [{"encoder": inputs}, {"encoder": inputs}]
    for p, seen in zip((q, pipe), entering):
        seen["unet"] = together(p.encode, inputs)
        seen["decoder"] = together(p.denoise, seen["unet"])
    quantized, (latents, cleaned) = entering[0], (torch.cat(entering[0][name]) for name in ("unet", "decoder"))
    full = entering[1] | {"image": together(pipe.decode, entering[1]["decoder"])}
    assert not torch.equal(latents, torch.cat(full["unet"]))
    for name, x in (("unet.conv_in", latents), ("vae.post_quant_conv", cleaned / q.vae.config.scaling_factor)):
        seen = q.layers[name].range
        assert torch.equal(seen.low, x.amin((0, 2, 3))) and torch.equal(seen.high, x.amax((0, 2, 3))), name
    joint = run("lbq+let")[0].layers["unet.conv_in"].range
    assert torch.equal(joint.low, torch.cat(full["unet"]).amin((0, 2, 3))), "joint methods see the float model's ranges"
    ends = {r["module"]: r["loss"] for r in records if r["event"] == "end"}
    chain = ("encoder", q.encode, "unet"), ("unet", q.denoise, "decoder"), ("decoder", q.decode, "image")
    for name, work, behind in chain:
        out = torch.cat(together(work, quantized[name]))
        assert ends[name] == pytest.approx((out - torch.cat(full[behind])).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize(("upstream", "downstream", "observe"), [
    ("quantized", "quantized", "quantized"), ("quantized", "float", "quantized"), ("float", "quantized", "float"),
])  # fmt: skip
def test_a_stage_says_what_is_quantized_around_it_and_where_and_how_its_loss_is_measured(
    pipe, begin, upstream, downstream, observe
):
    terms = (Loss(weight=0.5), Loss("absolute", "image", 2.0))
    stage = Stage("unet", ("bounds",), upstream=upstream, downstream=downstream, losses=terms)
    work = begin(one(stage, observe=observe))
    *_, end = work.run()
    before, after = (work.q if name == "quantized" else pipe for name in (upstream, downstream))
    with torch.no_grad():
        latents = together(before.encode, work.data.inputs)
        denoised = together(pipe.denoise, together(pipe.encode, work.data.inputs))
        full = torch.cat(denoised), torch.cat([pipe.decode(z) for z in denoised])
        y = together(work.q.denoise, latents)
        expected = 0.5 * (torch.cat(y) - full[0]).square().mean().item()
        expected += 2 * (torch.cat(together(after.decode, y)) - full[1]).abs().mean().item()
    assert end["loss"] == pytest.approx(expected, rel=1e-4) and end["loss"] <= end["first"]


def test_losses_of_the_modules_are_those_of_now_at_any_step(begin):
    work = begin(one(Stage("encoder", ("bounds",))), epochs=2)
    for _ in work.run():
        ours = torch.cat(together(work.q.denoise, together(work.q.encode, work.data.inputs)))
        expected = (ours - torch.cat(work.data.full["unet"])).square().mean().item()
        assert work.module_losses()["unet"] == pytest.approx(expected, rel=1e-6)


def test_a_run_that_is_stopped_and_finished_works(begin, pairs):
    work = begin()
    for _, _ in zip(range(2), work.run()):
        pass
    with pytest.raises(RuntimeError, match="calibrate"):
        work.q(pairs[0].lr)
    work.finish()
    assert torch.isfinite(work.q(pairs[0].lr)).all() and [*work.module_losses()] == ["encoder", "unet", "decoder"]


# -- pipelines and pairs ----------------------------------------------------------------------------------------------


def test_passionsr_u_leaves_the_vae_in_full_precision(pipe, pairs, run):
    for method in ("passionsr", "lbq", "maxmin"):
        q, records = run(method, UNET)
        assert {r["module"] for r in records} <= {"unet", "all"} and all(name.startswith("unet.") for name in q.layers)
        with torch.no_grad():
            z = pipe.encode(pipe.prepare(pairs[0].lr[None]))
            assert torch.equal(q.encode(pipe.prepare(pairs[0].lr[None])), z) and torch.equal(
                q.decode(z), pipe.decode(z)
            )
            assert not torch.equal(q.denoise(z), pipe.denoise(z))


def test_a_calibrated_model_takes_other_sizes_and_leaves_modes_as_they_were(pipe, calibrated):
    q = calibrated(recipe("W12A12"))
    for h, w in ((1, 1), (5, 3), (16, 16), (11, 20)):
        lr = torch.rand(3, h, w, generator=torch.Generator().manual_seed(h))
        out = q(lr)
        assert out.shape == (3, 4 * h, 4 * w) and (out - pipe(lr)).abs().mean() < 0.05
    assert {layer.mode for layer in q.layers.values()} == {"quantized"}
    with mode(q.pipe, "float"):
        assert torch.equal(q(lr), pipe(lr))


def test_impossible_requests_are_refused_in_one_sentence(pipe, pairs, begin):
    for options, words in (
        ({"method": "magic"}, "method is one of maxmin"), ({"pairs": []}, "at least one (lr, hr)"),
        ({"epochs": 0}, "epochs is a whole number from 1 on"), ({"batch": 0}, "batch is a whole number from 1 on"),
        ({"rates": {"steps": 1.0}}, "trains nothing tagged 'steps'"), ({"q": pipe}, "quantize this one first"),
    ):  # fmt: skip
        with refused(words):
            begin(**options)
    with refused("takes a Method"):
        Calibration(quantize(pipe, W6A6), pairs, "let")
    for make, words in (
        (lambda: Stage("vae", ("bounds",)), "segment is one of"), (lambda: Stage("unet", "bounds"), "tuple of tags"),
        (lambda: Stage("unet", ("bounds",), upstream="real"), "'quantized' or 'float'"),
        (lambda: Stage("all", ("bounds",), blocks="*"), "names their segment"),
        (lambda: Loss("cubes"), "a distance of squares, absolute"), (lambda: Loss(at="end"), "'output' or 'image'"),
        (lambda: one(Stage("unet", ("low",))), "gives no learning rate"), (lambda: one(observe="now"), "'now'"),
        (lambda: one(average=1.5), "from 0 to 1, not 1.5"),
    ):  # fmt: skip
        with refused(words):
            make()
    with refused("fills no slot tagged transform"):
        list(begin(one(Stage("unet", ("transform",)), slots=METHODS["lbq"].slots)).run())
    assert passionsr.STRICT.stages[0].train == ("transform",)
