# %% [markdown]
# # Distributed calibration: one module at a time
#
# **The question.** PassionSR trains its quantizers module by module (DQC, section 3.4): the encoder on its latent
# (Eq. 8), then the UNet and the decoder (Eq. 10), each on the quantized output of what precedes it; in each module
# first LET, with the boundaries re-initialised as it moves, then the boundaries alone. What does that gain over training
# everything at once on the final image, and what does it cost?
#
# **What you will see.** DQC's stages as rows of data; the loss of each module with and without DQC (the paper's
# Figure 5), drawn while it falls; the quality reached after equal steps and after equal seconds; the memory of a step;
# then DQC with five seeds, on three models, at three widths, and both with three seeds from ever more pairs, as they are
# kept in `figures/stability*.csv`. In the paper's Table 4, DQC takes 28 % of the time and 70 % of the memory of joint
# training, for 1 dB less PSNR.
#
# **How long.** About a minute and a half on two cores; the cell that calibrates says how much is left.
#
# **What is simulated.** The low bits. Seconds and bytes are those of calibrating in floating point on this machine.

# %%
import numpy as np
import pandas as pd
import torch
from IPython.display import display

import passionsr_lab as lab
from passionsr_lab import plots, widgets
from passionsr_lab.analysis.roughness import roughness
from passionsr_lab.calibration.loop import Calibration
from passionsr_lab.calibration.state import load_state, state
from passionsr_lab.evaluation.tables import provenance
from passionsr_lab.quantization.place import segment_modules
from passionsr_lab.quantization.slots import trainable
from passionsr_lab.tools import readme
from passionsr_lab.tools.notebooks import committed, figures_folder

# %% tags=["parameters"]
MODEL = "tiny"  # or a folder or hub id that lab.load reads
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RECIPE = "W6A6"
METHODS = {"passionsr": "DQC", "lbq+let": "joint"}  # name in the library: name in the figures
PAIRS, SIZE = 12, 64  # calibration crops and their HR pixels
EPOCHS, BATCH, SEED = 4, 4, 0  # joint calibration makes as many updates of modules as DQC in sum
TESTS, TEST_SIZE = 4, 128
EVERY = 6  # steps between two measurements
COMMITTED = "stability"  # figures/stability_runs.csv has every run from 64 crops, stability_256_runs.csv from more
FIGURES = figures_folder()

# %%
pd.Series(provenance(MODEL, SEED, RECIPE) | {"device": DEVICE}, name="provenance").to_frame()

# %% [markdown]
# ## The stages
# A method is a list of stages; one loop runs them all. `segment` says whose output the loss compares and whose
# slots are trained, `train` which ones: LET's scales and shifts ("transform") or LBQ's boundaries ("bounds").
# Boundaries are fractions of the range, so they are re-initialised at every step of stage 1 by LET itself; what stage 1
# trains of them are the fractions. `passionsr-strict` leaves these at rest until stage 2, as the paper has it.

# %%
stages = [
    (METHODS[m], s.segment, " + ".join(s.train), s.epochs * EPOCHS) for m in METHODS for s in lab.METHODS[m].stages
]
pd.DataFrame(stages, columns=["calibration", "segment", "trains", "epochs"])

# %% [markdown]
# ## Both calibrations, measured on the way
# Every few steps the calibration is asked two things, without disturbing it and outside its clock: the loss of each
# module over *all* pairs, against the full-precision latents and image; and the quality of the whole pipeline if it
# ended now (modules that DQC has not reached have LET's start and plain ranges).

# %%
pipe = lab.load(MODEL).to(DEVICE)
pairs = lab.bundled("calibration", PAIRS, SIZE, SEED)
tests = [pair.lr for pair in lab.bundled("test", TESTS, TEST_SIZE)]
full = [pipe(lr) for lr in tests]


@torch.no_grad()
def module_losses(work, last="decoder"):
    """Mean squared error of z_L, z_H and the image over all pairs, up to one module."""
    x, losses = torch.cat(work.data.inputs), {}
    for segment in work.q.segments():
        x = segment.run(x)
        losses[segment.name] = (x - torch.cat(work.data.full[segment.name])).square().mean().item()
        if segment.name == last:
            break
    return losses


def quality_now(work):
    """PSNR (dB) against full precision on the test pictures, if the calibration ended here."""
    before = state(work.q)
    work.finish()
    reached = widgets.fidelity(work.q, tests, full)
    load_state(work.q, before)
    return reached


def loss_rows(work, record):
    """The record for loss_curves, with the losses over all pairs: one row for DQC's module, three for a joint step."""
    losses = module_losses(work, record["module"])
    modules = [record["module"]] if record["module"] in losses else losses
    return [record | {"module": module, "loss": losses[module]} for module in modules]


# %% [markdown]
# A calibration is a generator, so the two can run side by side: the one that has used fewer seconds makes the next step.
# Whatever else the machine does slows both alike.


# %%
def race(works, clock):
    """(run, record) of several calibrations in turn, always of the one with the fewest seconds so far."""
    waiting = {run: work.run() for run, work in works.items()}
    while waiting:
        run = min(waiting, key=clock.get)
        record = next(waiting[run], None)
        if record is None:
            del waiting[run]
        else:
            clock[run] += record["seconds"]
            yield run, record


options = {"epochs": EPOCHS, "batch": BATCH, "seed": SEED}
works = {run: Calibration(lab.quantize(pipe, RECIPE), pairs, lab.METHODS[m], **options) for m, run in METHODS.items()}
clock, updates, records, losses, quality, live = dict.fromkeys(works, 0.0), dict.fromkeys(works, 0.0), [], [], [], None
steps = sum(work.total for work in works.values())
caption = {"model": MODEL, "pairs": f"{PAIRS} of {SIZE} px", "epochs": EPOCHS, "batch": BATCH, "seed": SEED}
caption |= {"one run": "each"}
for run, record in widgets.follow(race(works, clock), steps, "both calibrations", knobs="EPOCHS or PAIRS"):
    records.append(record | {"run": run})
    if record["event"] == "step":  # a joint step updates all three modules, one of DQC a third of them
        updates[run] += 1 if record["module"] == "all" else 1 / 3
    if record["event"] != "step" or record["step"] % EVERY == 0:
        losses += [row | {"run": run} for row in loss_rows(works[run], record)]
        place = {"method": run, "updates": updates[run], "seconds": clock[run]}
        quality.append(place | {"psnr_fp": quality_now(works[run])})
        figure5 = plots.loss_curves(
            pd.DataFrame(losses), f"Loss of each module over all pairs: DQC against joint, {RECIPE}", 1, caption=caption
        )
        live = live.update(figure5) or live if live else display(figure5, display_id=True)

# %% [markdown]
# Interrupted, the run so far goes on below.

# %%
records, quality = pd.DataFrame(records), pd.DataFrame(quality)
saved = plots.save(figure5, "dqc_loss", FIGURES)

# %% [markdown]
# With DQC each module is led to its own full-precision output, and an error made before it is its to correct. Joint
# training only sees the final image: it lets the latents move away from the full-precision ones where that helps the
# image, so its losses of encoder and UNet may rise while that of the decoder falls. The marks are losses over all
# pairs, before and after a stage; a cross is a stage that went back along its way, because its end was not below its
# start.

# %% [markdown]
# ## Quality against time
# Both curves start at LET's initialisation (not quite at the same quality: DQC takes a module's ranges on what the
# quantized modules before it give, joint training on what full precision gives) and end after the same number of
# updates of modules: a joint step updates three of them, a step of DQC one. DQC spends more of its updates on the later
# modules, which also make good what the earlier ones did. On the left they are compared at equal steps, counted as
# updates of all three modules; on the right at equal seconds. The clock counts all that a calibration does: targets,
# upstream passes, losses and line searches besides its steps. The rings stand where the first of the two ended.

# %%
heading = f"DQC against joint calibration at {RECIPE}: quality after equal steps and after equal seconds"
curve = plots.quality_over_time(quality, heading=heading, caption=caption | {"tests": f"{TESTS} of {TEST_SIZE} px"})
plots.save(curve, "dqc_quality_time", FIGURES)
curve

# %% [markdown]
# ## Memory of a step
# What a training step must keep is the activations between the trained module and its loss. They are counted here, on
# this batch, as the bytes that autograd saves for the backward pass; the process's peak, which also holds the weights
# and the library itself, is in the last table.


# %%
def kept_for_backward(work, module, kinds):
    """Bytes of activations that one step of this stage saves for its backward pass."""
    inputs, seen, scope = work.data.entering(module, "float"), {}, segment_modules(work.q, module)
    trained = [p for kind in kinds for group in trainable(scope, kind).values() for p in group]

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in pipe.parameters()}
    for p in trained:
        p.requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = work.data.forward(module, torch.cat(inputs[:BATCH]))
    for p in trained:
        p.requires_grad_(False)
    del output
    return sum(size for place, size in seen.items() if place not in weights)


memory = pd.DataFrame(
    [
        (METHODS[m], s.segment, " + ".join(s.train), kept_for_backward(works[METHODS[m]], s.segment, s.train) / 1e6)
        for m in METHODS
        for s in lab.METHODS[m].stages
    ],
    columns=["calibration", "module", "trains", "kept for backward (MB)"],
)
memory.round(1)

# %% [markdown]
# ## Comparison
# Of this one run of each; what differs by a few tenths of a dB may differ the other way with another seed. *Equal steps*
# is the end of both runs. *Equal seconds* is the moment when the quicker of the two ended; the other's
# quality is read from its curve there.

# %%
runs = list(METHODS.values())
parts = {run: quality[quality.method == run] for run in runs}
common = min(part.seconds.max() for part in parts.values())
rows = []
for run, part in parts.items():
    own = records[records.run == run]
    rows.append(
        {
            "calibration": run,
            "steps": int((own.event == "step").sum()),
            "seconds": own.seconds.sum(),
            "peak (GB)": own.peak_bytes.max() / 1e9,
            "kept for backward (MB)": memory[memory.calibration == run]["kept for backward (MB)"].max(),
            "PSNR, equal steps (dB)": part.psnr_fp.iloc[-1],
            f"PSNR, equal seconds, {common:.0f} s (dB)": np.interp(common, part.seconds, part.psnr_fp),
        }
    )
comparison = pd.DataFrame(rows).set_index("calibration")
comparison.round(2).T

# %% [markdown]
# ## With seeds, and on other models
# One run is one draw: other pairs, another order of steps, another number of threads end elsewhere. `make stability` runs
# DQC, LET's untrained start (`let`) and the same with its biases corrected (`let+bias`), with five seeds, each with 64 crops
# of its own that are seen once; DQC, DQC with a finish end to end and the start also with 256; on the embedded model at
# t = 999 and at t = 249, and on one of other widths and latent channels, which the package's own command trains. *Spread* is the largest difference between two
# of a row's runs, *below start* how many of them end below LET's start from the same pairs.


# %%
def spread(frame, by):
    """Means, standard deviations and spreads of PSNR to full precision (dB) of the runs of a row."""
    told = {"PSNR to FP (dB)": ("psnr_fp", "mean"), "deviation": ("psnr_fp", "std"), "spread": ("psnr_fp", np.ptp)}
    return frame.groupby(by, sort=False).agg(**told, runs=("psnr_fp", "size"), cpu_seconds=("cpu_seconds", "mean"))


names = METHODS | {
    "passionsr+e2e": "DQC, then end to end",
    "let": "LET's start",
    "let+bias": "LET's start, biases corrected",
}
parts = [committed(f"{COMMITTED}{more}_runs") for more in ("", "_256")]
runs, table = None if any(part is None for part in parts) else pd.concat(parts, ignore_index=True), None
if runs is not None:
    drawn_from = ["pairs", "model", "recipe", "seed"]
    starts = runs[runs.method == "let"].set_index(drawn_from).psnr_fp
    runs["below"] = runs.psnr_fp < starts.loc[list(runs[drawn_from].itertuples(index=False))].to_numpy()
    row = ["pairs", "model", "recipe", "method"]
    table = spread(runs, row).assign(**{"below start": runs.groupby(row, sort=False).below.sum()})
table.rename(names).round(2) if table is not None else None

# %%
stable = None
if runs is not None:
    told = {name: ", ".join(map(str, runs[name].unique())) for name in ("pairs", "size", "epochs", "batch", "threads")}
    told["seeds"] = ", ".join(map(str, sorted(runs.seed.unique())))
    kinds = runs.method.map(lambda m: lab.METHODS[m].label) + runs.pairs.map({64: "", 256: ", 256 crops"})
    drawn = runs.assign(method=kinds, group=runs.model.str.split("/").str[-1] + "\n" + runs.recipe)
    heading = "DQC and what it starts from on three models: all runs"
    stable = plots.ablation(drawn, groups="group", heading=heading, width=plots.PAGE, caption=told)
    stable.axes[0].set_xlabel("model, recipe")
    plots.save(stable, "05_stability", FIGURES)
stable

# %% [markdown]
# Some of what differs between LET's starts is constant: what quantization adds to a layer's output is not 0 in the mean,
# how much it is depends on where nearly constant values fall between two points of a grid, and the one step amplifies it.
# `let+bias` measures it on 16 of the pairs and takes it off the biases, which costs little and trains nothing. What that
# and DQC gain over the start at equal seeds, with half of the 95 % interval, bold where it does not hold 0:

# %%
readme.shown("starts")

# %% [markdown]
# How much of a spread is in the pairs? Here all five seeds have the same 256 crops and differ in the order of steps alone:

# %%
order = committed(f"{COMMITTED}_order_runs")
spread(order, ["model", "recipe"]).round(2) if order is not None else None

# %% [markdown]
# With two threads sums are done in another order, and what differs in its last bits at first ends elsewhere. Runs of
# `passionsr` from 64 crops, and the difference that the threads make at equal seeds, in the mean and at most:

# %%
threads, both = committed(f"{COMMITTED}_threads_runs"), None
if threads is not None:
    both = spread(threads, ["model", "recipe"])
    apart = (
        threads.pivot(index=["model", "recipe", "seed"], columns="threads", values="psnr_fp").diff(axis=1).iloc[:, -1]
    )
    both = both.join(apart.abs().groupby(["model", "recipe"]).agg(**{"threads, mean": "mean", "threads, most": "max"}))
both.round(2) if both is not None else None

# %% [markdown]
# ## How rough quality is
# Why does the same calibration in another order, or on one more thread, end elsewhere? Here every calibrated parameter of
# the DQC above is off by a little: p becomes p (1 + size z), with z drawn from a normal distribution. At 0.0001 no boundary
# moves by a tenth of a step, but values near the middle of two points of a grid are rounded the other way, and Eq. 9
# amplifies what comes of that. A difference between two calibrations that is no larger says nothing about which is better.

# %%
works["DQC"].finish()  # if it was interrupted
rough = roughness(works["DQC"].q, tests)
rough.groupby("size").psnr_fp.agg(
    **{"PSNR to FP (dB)": "mean", "deviation": "std", "spread": np.ptp, "draws": "size"}
).round(3)

# %% [markdown]
# ## DQC or joint training, and how many pairs are enough
# Every method that trains, on the embedded model at W6A6, from ever more crops that are seen once (`make methods`): where it
# ends with three seeds, the largest difference of two in brackets; and from the most crops that it was given, what the last
# doubling brought and what DQC gains over it (means of the differences between equal seeds, half of the 95 % interval
# behind ±, bold where it does not hold 0).

# %%
readme.shown("budgets")

# %% [markdown]
# ## Your turn
# The bench calibrates one method at a time and can be stopped; its picture is `widgets.calibration_figure`, called
# below on DQC's own records (each step's batch, not all pairs as above).

# %%
dqc = records[records.run == "DQC"].drop(columns="run")
widgets.calibration_bench(pipe, pairs, lab.bundled("test", TESTS, TEST_SIZE), RECIPE, epochs=EPOCHS, records=dqc)

# %%
widgets.calibration_figure(dqc, RECIPE, "PassionSR", caption=caption)

# %% [markdown]
# ## What this showed
# DQC needs less memory for the same number of updates than joint training, and the loss of no module ends above where it
# started. What it gains or loses against joint training, and how certain that is, is in the table with seeds.

# %%
ends = dqc[dqc.event.isin(["start", "end"])].groupby("module", sort=False).loss.agg(["first", "last"])
assert (ends["last"] <= ends["first"]).all() and (ends["last"] < ends["first"]).any(), ends
kept = comparison["kept for backward (MB)"]
assert kept["DQC"] < kept["joint"], "DQC keeps as much for the backward pass as joint training"
quality_gained = quality.groupby("method").psnr_fp.agg(["first", "last"])
assert (quality_gained["last"] > quality_gained["first"]).all(), "A calibration ended below its start"
share = comparison.loc["DQC"] / comparison.loc["joint"]
print(f"DQC: {share['seconds']:.0%} of joint training's time, {share['kept for backward (MB)']:.0%} of its memory")
