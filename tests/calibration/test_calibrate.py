"""DQC and the joint calibrations: reproducible, interruptible, distributed, and better than no training."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import passionsr_lab as lab
from passionsr_lab.calibration.loop import RATES, Calibration, calibrate
from passionsr_lab.imaging.pairs import bundled
from passionsr_lab.imaging.psnr import psnr_rgb
from passionsr_lab.quantization.recipe import METHODS, W4A4, W6A6, W8A8
from passionsr_lab.quantization.surgery import QuantizedSR, load_state, mode, quantize, quantized_layers, state

QUICK = {"epochs": 1, "batch": 2}
FEW = slice(0, 3)


def same(a, b):
    """Whether two states or pipelines agree in every bit."""
    a, b = (state(t) if isinstance(t, QuantizedSR) else t for t in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def told(records):
    """Records without what a clock or the memory says."""
    return [{k: v for k, v in r.items() if k not in ("seconds", "peak_bytes")} for r in records]


@pytest.fixture(scope="module")
def run(pipe, pairs):
    """A function (method, recipe, **options) -> (calibrated pipeline, its records), on three small pairs; made once."""
    made = {}

    def get(method="passionsr", recipe=W6A6, **options):
        key = method, recipe, repr(options)
        if key not in made:
            q = quantize(pipe, recipe)
            made[key] = q, list(Calibration(q, pairs[FEW], method, **QUICK | options).run())
        return made[key]

    return get


# -- the real model: what calibration is for --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded():
    """Per recipe and method on the embedded model: loss by module at the start and the end, dB against full precision.

    Calibrated on four crops; measured on other photographs, of another size and shape.
    """
    full, made = lab.tiny(), {}
    tests = [full(pair.lr[:, :14, :19]) for pair in bundled("test", 3, 80)]
    lrs = [pair.lr[:, :14, :19] for pair in bundled("test", 3, 80)]

    def get(recipe, method):
        if (recipe, method) not in made:
            q = quantize(full, recipe)
            frame = calibrate(q, bundled("calibration", 4, 48), method, epochs=4, batch=2)
            made[recipe, method] = frame, np.mean([psnr_rgb(q(lr), y) for lr, y in zip(lrs, tests)])
        return made[recipe, method]

    return get


@pytest.mark.parametrize("recipe", [W8A8, W6A6, W4A4], ids=lambda r: r.name)
def test_the_loss_falls_clearly_below_where_initialisation_leaves_it(embedded, recipe):
    frame, _ = embedded(recipe, "passionsr")
    first = frame[frame.event == "start"].groupby("module").loss.first()
    last = frame[frame.event == "end"].groupby("module").loss.last()
    ratio = last / first
    assert (ratio <= 1).all()
    assert ratio.prod() < 0.85, ratio.to_dict()


@pytest.mark.parametrize("recipe", [W6A6, W4A4], ids=lambda r: r.name)
def test_passionsr_is_closer_to_full_precision_than_maxmin_on_other_pictures(embedded, recipe):
    assert embedded(recipe, "passionsr")[1] > embedded(recipe, "maxmin")[1] + 2


# -- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_tells_its_stages_and_as_many_records_as_announced(pipe, pairs, run, method):
    _, records = run(method)
    stages = [(s.module, "+".join(s.train)) for s in METHODS[method].stages] or [("all", "ranges")]
    assert [(r["module"], r["stage"]) for r in records if r["event"] == "end"] == stages
    assert len(records) == Calibration(quantize(pipe, W6A6), pairs[FEW], method, **QUICK).total
    keys = {"event", "module", "stage", "step", "of", "first", "loss", "lr", "seconds", "peak_bytes", "kept"}
    assert all(r.keys() >= keys and np.isfinite(r["loss"]) for r in records)
    steps = [r for r in records if r["event"] == "step"]
    assert all(r["seconds"] > 0 and r["peak_bytes"] > 1e6 and 0 < r["lr"] <= max(RATES.values()) for r in steps)
    for start in (r for r in records if r["event"] == "start"):
        own = [r for r in steps if (r["module"], r["stage"]) == (start["module"], start["stage"])]
        assert [r["step"] for r in own] == list(range(1, start["of"] + 1))
        assert [r["lr"] for r in own] == sorted((r["lr"] for r in own), reverse=True)


def test_joint_methods_make_as_many_updates_of_modules_as_distributed_ones(pipe, pairs):
    updates = {}
    for method in ("lbq", "lbq+let", "passionsr", "passionsr-strict"):
        work = Calibration(quantize(pipe, W6A6), pairs[FEW], method, epochs=4, batch=1)
        steps = [len(work._steps(stage, work.inputs)) for stage in work.stages]
        assert work.total == sum(steps) + 2 * len(steps)
        updates[method] = sum(n * (3 if s.module == "all" else 1) for n, s in zip(steps, work.stages))
    assert len(set(updates.values())) == 1, updates


@pytest.mark.parametrize("method", ["passionsr", "passionsr-strict"])
def test_what_a_stage_does_not_train_it_leaves_alone(pipe, pairs, method):
    q = quantize(pipe, W6A6)
    before, trained = None, {"transform": (".log_scale", ".offset"), "bounds": (".trim",)}
    trained["transform+bounds"] = trained["transform"] + trained["bounds"]
    prefix = {"encoder": ("vae.encoder", "vae.quant_conv"), "unet": ("unet",)}
    prefix["decoder"] = ("vae.decoder", "vae.post_quant_conv")
    changed = 0
    for record in Calibration(q, pairs[FEW], method, **QUICK).run():
        now = state(q)
        if record["event"] == "step":
            moved = [k for k in now if not torch.equal(now[k], before[k])]
            assert all(k.startswith(prefix[record["module"]]) for k in moved)
            assert all(k.endswith(trained[record["stage"]]) for k in moved)
            changed += len(moved)
        before = now
    assert changed > 100


def moved(pipe, pairs, method, recipe=W6A6):
    """Which learned tensors, by the end of their name, the steps of a calibration moved."""
    q, before, found = quantize(pipe, recipe), None, set()
    for record in Calibration(q, pairs[FEW], method, **QUICK).run():
        if record["event"] == "step":  # the end of a stage may take its steps back
            found |= {k.rsplit(".", 1)[-1] for k, v in state(q).items() if not torch.equal(v, before[k])}
        before = state(q)
    return found


def test_lbq_and_let_switch_on_independently(pipe, pairs):
    assert moved(pipe, pairs, "maxmin") == set() and moved(pipe, pairs, "lbq") == {"trim"}
    assert moved(pipe, pairs, "lbq+let") == moved(pipe, pairs, "passionsr") == {"log_scale", "offset", "trim"}


def test_a_shift_is_learned_only_where_the_recipe_says_so(pipe, pairs):
    assert moved(pipe, pairs, "lbq+let", replace(W6A6, shift=False)) == {"log_scale", "trim"}


# -- reproducible, interruptible --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lbq+let", "passionsr"])
def test_the_same_seed_gives_the_same_numbers_and_another_one_others(pipe, pairs, run, method):
    q, records = run(method)
    again = quantize(pipe, W6A6)
    torch.manual_seed(12345)  # the calibration's seed alone decides
    repeated = list(Calibration(again, pairs[FEW], method, **QUICK).run())
    assert told(repeated) == told(records) and same(q, again)
    losses = [[r["loss"] for r in run(method, **seed)[1] if r["event"] == "step"] for seed in ({}, {"seed": 1})]
    assert losses[0] != losses[1]


# Records of passionsr: 0 start, 1 and 2 steps, 3 end, then the next stage; 8 to 15 are the UNet's.
@pytest.mark.parametrize(
    ("method", "kept"), [("passionsr", 2), ("passionsr", 4), ("passionsr", 10), *(("lbq+let", k) for k in (1, 3, 5))]
)
def test_an_interrupted_run_goes_on_to_exactly_the_uninterrupted_result(pipe, pairs, run, tmp_path, method, kept):
    q, records = run(method)
    first = Calibration(quantize(pipe, W6A6), pairs[FEW], method, **QUICK)
    stream = first.run()
    begun = [next(stream) for _ in range(kept)]
    first.save(tmp_path / "state.pt")
    fresh = quantize(copy.deepcopy(pipe), W6A6)
    second = Calibration(fresh, pairs[FEW], method, **QUICK)
    second.resume(tmp_path / "state.pt")
    rest = list(second.run())
    assert same(q, fresh) and fresh.history == q.history
    assert told(second.ends) == [r for r in told(records) if r["event"] == "end"]
    assert all(r in told(records) for r in told(begun + rest))
    assert len(rest) <= len(records) - kept + 1, "only the record at which it stopped may come twice"


@pytest.mark.parametrize("method", ["maxmin", "passionsr"])
def test_it_may_stop_before_the_first_record(pipe, pairs, run, tmp_path, method):
    Calibration(quantize(pipe, W6A6), pairs[FEW], method, **QUICK).save(tmp_path / "state.pt")
    fresh = quantize(pipe, W6A6)
    second = Calibration(fresh, pairs[FEW], method, **QUICK)
    second.resume(tmp_path / "state.pt")
    assert told(second.run()) == told(run(method)[1]) and same(run(method)[0], fresh)


OTHER = {
    "seed": {"seed": 1},
    "epochs": {"epochs": 2},
    "batch": {"batch": 3},
    "method": {"method": "lbq"},
    "rates": {"rates": {"transform": 1e-3, "bounds": 1e-2}},
    "recipe": {"recipe": replace(W6A6, zero_point="real")},
    "pairs": {"pairs": slice(1, 4)},
    "model": {"seed of weights": 1},
}


@pytest.mark.parametrize("what", OTHER)
def test_the_state_of_a_calibration_with_other_settings_is_refused(pipe, pairs, make_pipe, tmp_path, what):
    def start(options):
        options = {"pairs": FEW, "method": "passionsr", "recipe": W6A6} | QUICK | options
        model = make_pipe(seed=options.pop("seed of weights")) if "seed of weights" in options else pipe
        return Calibration(quantize(model, options.pop("recipe")), pairs[options.pop("pairs")], **options)

    start({}).save(tmp_path / "state.pt")
    start({}).resume(tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt belongs to .* delete it to start anew\.$"):
        start(OTHER[what]).resume(tmp_path / "state.pt")


@pytest.mark.parametrize("content", [b"", b"not a state", None])
def test_a_damaged_or_missing_state_is_refused(pipe, pairs, tmp_path, content):
    if content is not None:
        (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"state\.pt is not a calibration state that can be read; delete it to start anew\.$"
    ):
        Calibration(quantize(pipe, W6A6), pairs[FEW]).resume(tmp_path / "state.pt")


def test_a_stage_that_gets_worse_is_taken_back(run):
    wild = {"transform": 3.0, "bounds": 300.0}
    q, records = run("lbq+let", rates=wild)
    start, end = records[0], records[-1]
    assert any(r["loss"] > 2 * start["loss"] for r in records if r["event"] == "step"), "it never got worse"
    assert end["kept"] == 0 and end["loss"] == start["loss"]
    assert same(q, run("let")[0])


def test_a_stage_that_went_too_far_goes_back_a_part_of_its_way(pipe, pairs):
    work = Calibration(quantize(pipe, W6A6), pairs[FEW], "lbq+let", **QUICK | {"epochs": 2})
    records = work.run()
    first = next(records)
    while first["of"] > next(records)["step"]:
        pass
    before, good = work._before, state(work.pipe)
    load_state(work.pipe, {k: torch.where(good[k] == t, t, t + 8 * (good[k] - t)) for k, t in before.items()})
    end = next(records)
    assert end["event"] == "end" and 0 < end["kept"] < 1 and end["loss"] < first["loss"]


def test_a_stage_that_gets_better_is_kept(run):
    q, records = run("lbq+let", epochs=2)
    assert records[-1]["kept"] == 1 and records[-1]["loss"] < records[0]["loss"]
    assert not same(q, run("let")[0])


def test_a_loss_that_is_not_finite_stops_with_one_sentence(pipe, pairs):
    work = Calibration(quantize(pipe, W6A6), pairs[FEW], "lbq+let", **QUICK)
    stream = work.run()
    next(stream)
    work.full["all"][:] = [torch.full_like(t, torch.nan) for t in work.full["all"]]
    with pytest.raises(FloatingPointError, match=r"^The calibration loss of all became nan; lower its rates\.$"):
        next(stream)


# -- distributed ------------------------------------------------------------------------------------------------------


def test_each_module_is_fed_with_the_quantized_output_of_the_one_before(pipe, pairs, run):
    q, _ = run("passionsr")
    inputs = [pipe.prepare(pair.lr[None]) for pair in pairs[FEW]]
    with torch.no_grad():
        latents = torch.cat([q.encode(x) for x in inputs])
        float_latents = torch.cat([pipe.encode(x) for x in inputs])
        cleaned = torch.cat([q.denoise(z) for z in latents.split(1)])
    assert not torch.equal(latents, float_latents)
    for name, x in (("unet.conv_in", latents), ("vae.post_quant_conv", cleaned / q.vae.config.scaling_factor)):
        seen = quantized_layers(q)[name].range
        assert torch.equal(seen.low, x.amin((0, 2, 3))) and torch.equal(seen.high, x.amax((0, 2, 3))), name
    joint = quantized_layers(run("lbq+let")[0])["unet.conv_in"].range
    assert torch.equal(joint.low, float_latents.amin((0, 2, 3))), "the joint methods see the float model's ranges"


def test_each_module_learns_from_that_input_towards_the_full_precision_target(pipe, pairs):
    """What the UNet's training steps see is q.encode of the pairs, and their target the float model's z_H."""
    q, seen = quantize(pipe, W6A6), []
    work = Calibration(q, pairs[FEW], "passionsr", epochs=1, batch=3)
    original = q.denoise
    for record in work.run():
        if record["event"] == "start" and record["module"] == "unet":
            q.denoise = lambda z, *rest: (seen.append(z.clone()), original(z, *rest))[1]
        if record["event"] == "step" and record["module"] == "unet":
            del q.denoise
            break
    inputs = torch.cat(work.inputs)
    with torch.no_grad():
        quantized, full = q.encode(inputs), pipe.encode(inputs)
        target = pipe.denoise(full)
    (z,) = seen
    assert len(z) == 3
    wrong, right = ((z.sum(0) - t.sum(0)).abs().mean() for t in (full, quantized))  # the pairs come in any order
    assert right < 0.01 * wrong
    torch.testing.assert_close(torch.cat(work.full["unet"]), target, rtol=1e-4, atol=1e-4)


def test_the_losses_told_are_those_of_the_modules(pipe, pairs, run):
    q, records = run("passionsr")
    ends = {r["module"]: r["loss"] for r in records if r["event"] == "end"}
    inputs = [pipe.prepare(pair.lr[None]) for pair in pairs[FEW]]

    @torch.no_grad()
    def loss(ours, full):
        return np.mean([(ours(x) - full(x)).square().mean().item() for x in inputs])

    assert ends["encoder"] == pytest.approx(loss(q.encode, pipe.encode), rel=1e-5)
    denoised = loss(lambda x: q.denoise(q.encode(x)), lambda x: pipe.denoise(pipe.encode(x)))
    assert ends["unet"] == pytest.approx(denoised, rel=1e-5)
    assert ends["decoder"] == pytest.approx(loss(q.restore, pipe.restore), rel=1e-5)


def test_passionsr_u_leaves_the_vae_in_full_precision(pipe, pairs, run):
    q, records = run("passionsr", replace(W6A6, modules=("unet",)))
    assert {r["module"] for r in records} == {"unet"}
    assert all(name.startswith("unet.") for name in quantized_layers(q))
    x = pipe.prepare(pairs[0].lr[None])
    with torch.no_grad():
        z = pipe.encode(x)
        assert torch.equal(q.encode(x), z) and torch.equal(q.decode(z), pipe.decode(z))
        assert not torch.equal(q.denoise(z), pipe.denoise(z))


@pytest.mark.parametrize("method", ["maxmin", "lbq"])
def test_passionsr_u_works_with_the_joint_methods(pipe, pairs, run, method):
    q, records = run(method, replace(W4A4, modules=("unet",)))
    assert torch.isfinite(q(pairs[0].lr)).all() and records


# -- pairs ------------------------------------------------------------------------------------------------------------


def test_a_calibrated_model_takes_other_sizes_than_it_was_calibrated_on(pipe, pairs, calibrated):
    q = calibrated(replace(W8A8, name="W12A12", weight_bits=12, act_bits=12))
    for h, w in ((1, 1), (5, 3), (16, 16), (11, 20)):
        lr = torch.rand(3, h, w, generator=torch.Generator().manual_seed(h))
        out = q(lr)
        assert out.shape == (3, 4 * h, 4 * w) and torch.isfinite(out).all()
        assert (out - pipe(lr)).abs().mean() < 0.05


def test_pairs_of_different_sizes_are_never_mixed_in_a_batch(pipe, pairs):
    mixed = [*pairs[:2], *bundled("calibration", 3, 16)]
    work = Calibration(quantize(pipe, W6A6), mixed, "lbq", epochs=1, batch=4)
    records = list(work.run())
    assert len(records) == work.total == 2 + 2 * 2
    for rows in work._steps(work.stages[0], work.inputs):
        assert len({work.inputs[i].shape for i in rows}) == 1


def test_every_pair_is_used_once_per_epoch(pipe, pairs):
    work = Calibration(quantize(pipe, W6A6), pairs, "passionsr", epochs=4, batch=4)
    rows = work._steps(work.stages[0], work.inputs)
    for epoch in range(3):
        assert sorted(rows[2 * epoch] + rows[2 * epoch + 1]) == [0, 1, 2, 3, 4, 5]
    assert rows[0] != rows[2] or rows[1] != rows[3], "the order is the same in every epoch"


def test_pairs_may_be_tuples_of_lr_and_hr(pipe, pairs, run):
    q = quantize(pipe, W6A6)
    calibrate(q, [(pair.lr, pair.hr) for pair in pairs[FEW]], "let")
    assert same(q, run("let")[0])


@pytest.mark.parametrize(("options", "message"), [
    ({"method": "magic"}, r"method is one of maxmin, .*, not 'magic'\."),
    ({"pairs": []}, r"at least one pair"),
    ({"epochs": 0}, r"at least 1, not 0 and 4"),
    ({"batch": 0}, r"at least 1, not 4 and 0"),
])  # fmt: skip
def test_impossible_requests_are_refused_in_one_sentence(pipe, pairs, options, message):
    with pytest.raises(ValueError, match=message):
        Calibration(quantize(pipe, W6A6), **{"pairs": pairs} | options)


def test_the_float_model_and_its_modes_are_left_as_they_were(pipe, pairs, run):
    q, _ = run("passionsr")
    assert {layer.mode for layer in quantized_layers(q).values()} == {"quantized"}
    with mode(q, "float"):
        assert torch.equal(q(pairs[0].lr), pipe(pairs[0].lr))
    assert not any(p.requires_grad for p in pipe.parameters())


def test_calibrate_gives_a_frame_and_calls_back(pipe, pairs):
    seen = []
    frame = calibrate(quantize(pipe, W6A6), pairs[FEW], "maxmin", callback=seen.append)
    assert told(seen) == told(frame.to_dict("records")) and len(frame) == 1
