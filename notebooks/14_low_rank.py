# %% [markdown]
# # 14 · Low rank: what stays in 16 bits
#
# **The question.** Three methods keep a low-rank part of every weight in 16 bits beside the quantized rest: SVDQuant,
# QuantVSR and QArtSR. How much rank does each layer get, what does the branch carry, and is it worth its bytes?
#
# **What you will see.** The ranks of every layer under three rules at a similar cost; the singular values of a weight and
# how the error of rounding falls with the rank; then the three methods side by side at 4 bits, short runs of one seed.
#
# **How long.** About 80 seconds on one core. No download.
#
# **What is simulated.** The low bits, computed in floating point; branches are counted with 16 bits.

# %%
import numpy as np
import pandas as pd
import torch

import passionsr_lab as lab
from passionsr_lab import plots, widgets
from passionsr_lab.analysis.bitcost import recipe_cost
from passionsr_lab.analysis.cost import count
from passionsr_lab.analysis.layers import branch_ranks, layer_table
from passionsr_lab.calibration.lowrank import low_rank
from passionsr_lab.evaluation import tables
from passionsr_lab.imaging.psnr import psnr_rgb, psnr_y
from passionsr_lab.quantization.layer import QuantLayer
from passionsr_lab.quantization.quantizer import fake_quantize
from passionsr_lab.tools.notebooks import figures_folder
from passionsr_lab.util.names import MODULES

# %% tags=["parameters"]
MODEL = "tiny"  # or a folder or hub id that lab.load reads
RECIPE = "W4A4"
SHARE = 1 / 20  # of a layer's or a module's weights: what the branches hold, about, under every rule
LAYER = "unet.mid_block.resnets.0.conv1"  # whose weight is taken apart
RANKS, SMALL = [0, 1, 2, 4, 8, 16, 32], 4  # and the rank that the closing cell looks at
PAIRS, SIZE, EPOCHS, BATCH, SEED = 4, 64, 1, 4, 0  # short calibrations
TESTS, TEST_SIZE = 4, 128  # test crops and their HR pixels
FIGURES = figures_folder()

# %%
pd.Series(tables.provenance(MODEL, SEED, RECIPE) | {"device": "cpu"}, name="provenance").to_frame()

# %% [markdown]
# ## Ranks per layer
# SVDQuant and QArtSR give every layer the same share of its smaller side. QuantVSR looks at the input: in the released
# vote a sample whose spatial deviation is in the upper quarter of all adds one to a rank. Under the budget, our
# default for it, the layers of a module bid for the next singular direction with its energy times the complexity of
# the input, per number that is stored.

# %%
pipe = lab.load(MODEL)
pairs, tests = lab.bundled("calibration", PAIRS, SIZE, SEED), lab.bundled("test", TESTS, TEST_SIZE)
frame = count(pipe, TEST_SIZE)


def untrained(method, **options):
    """A method's start at the recipe, without its stages."""
    found = lab.METHODS[method].with_options(**options)
    found = lab.Method(found.name, found.label, found.source, found.slots)
    q = lab.quantize(pipe, RECIPE)
    lab.calibrate(q, pairs, found, quiet=True)
    return q


starts = {
    "share of the width": untrained("qartsr", branch=1 / 32, lora=0.0),
    "vote": untrained("quantvsr", rule="vote"),
    "budget": untrained("quantvsr", budget=SHARE),
}
ranks = pd.DataFrame({rule: branch_ranks(q) for rule, q in starts.items()}).fillna(0).astype(int)
labels = layer_table(starts["budget"]).set_index("layer")[["number", "module"]]
ranks = labels.join(ranks, how="right")
ranks.groupby("module")[list(starts)].agg(["min", "mean", "max"]).reindex(MODULES).round(1)

# %%
curve = ranks.reset_index(names="layer").melt(["number", "module", "layer"], list(starts), "rule", "rank")
caption = {"model": MODEL, "recipe": RECIPE, "pairs": f"{PAIRS} of {SIZE} px", "seed": f"{SEED}, one run"}
rank_figure = plots.layer_curves(
    curve, "rank", "rule", "rank of the branch", "Ranks of the 16-bit branches", caption=caption
)
plots.save(rank_figure, "14_ranks", FIGURES)
rank_figure

# %% [markdown]
# ## What a branch carries
# The largest singular directions of a weight hold more of its energy than their share. With them goes some of its range,
# so that what is left has smaller steps, by less with each further direction: without its structure the rest is noise
# with tails, and its smallest and largest value come closer slowly. Below, for one layer, the energy that is left and the error of rounding
# what is left, against the rank, both as parts of those without a branch; and what the branch weighs beside the weight.


# %%
def carried(weight, bits):
    """For every rank: energy left, error of rounding it, and bytes of branch over bytes of the weight."""
    matrix, found = weight.flatten(1), []
    for rank in RANKS:
        up, down = low_rank(matrix, rank)
        rest = matrix - (up @ down).float()
        error = fake_quantize(rest, rest.amin(1, True), rest.amax(1, True), bits) - rest
        heavier = 16 * rank * sum(matrix.shape) / (bits * matrix.numel())
        found.append((rank, rest.square().sum().item(), error.square().sum().item(), heavier))
    return pd.DataFrame(found, columns=["rank", "energy left", "error of rounding", "branch bytes"])


layer = starts["budget"].layers[LAYER]
table = carried(layer.layer.weight, layer.setting.weight_bits)
for column in ("energy left", "error of rounding"):
    table[column] /= table[column].iloc[0]
table.set_index("rank").round(3)

# %%
long = table.melt(["rank"], ["energy left", "error of rounding"], "quantity", "part")
weight_figure = plots.curves(
    long, "rank", "part", "quantity", ("rank of the branch", "part of that without a branch"),
    f"What is left of {LAYER}", caption={"model": MODEL, "weight bits": layer.setting.weight_bits, "n": "1 weight, no data"},
)  # fmt: skip
plots.save(weight_figure, "14_weight", FIGURES)
weight_figure

# %% [markdown]
# An activation's error does not pass through the branch: its input is not quantized. So a branch relieves both sides,
# which a table of the layers' output errors shows: the error with the branch as a part of that without one, on the
# inputs of the calibration pairs, before anything is trained.


# %%
@torch.no_grad()
def output_errors(q):
    """The squared error of every layer's output on the first pair, over the squared output."""
    found, hooks = {}, []

    def compare(one, args, out):
        exact = one.layer(args[0])
        found.setdefault(one.name, float((out - exact).square().mean() / exact.square().mean()))

    for one in q.layers.values():
        if isinstance(one, QuantLayer):
            hooks.append(one.register_forward_hook(compare))
    q.restore(q.prepare(pairs[0].lr[None]))
    for hook in hooks:
        hook.remove()
    return found


without = untrained("qartsr", branch=0.0, lora=0.0)
errors = pd.DataFrame({"without": output_errors(without), "with": output_errors(starts["share of the width"])})
relief = (errors["with"] / errors["without"]).groupby(ranks.module).median()
relief.rename("median error with a branch / without").reindex(MODULES).round(3).to_frame()

# %% [markdown]
# ## The three methods at 4 bits
# LET's start is the naive row. SVDQuant trains nothing, but searches its smoothing and fits branch and rounded rest in
# turns; QuantVSR trains branch and boundaries with the residual, forward; QArtSR also trains smoothing and a LoRA, in
# reversed order. One run each at few steps: the order of the last two says little.

# %%
methods = {
    "let": lab.METHODS["let"],
    "svdquant": lab.METHODS["svdquant"].with_options(share=1 / 32, candidates=4, rounds=5),
    "quantvsr": lab.METHODS["quantvsr"].with_options(budget=SHARE),
    "qartsr": lab.METHODS["qartsr"],
}
full, rows = [pipe(pair.lr) for pair in tests], []
models = {}
for name, method in widgets.follow(methods.items(), len(methods), "models", costs=[1, 4, 8, 12], knobs="EPOCHS"):
    q = lab.quantize(pipe, RECIPE)
    records = lab.calibrate(q, pairs, method, epochs=EPOCHS, batch=BATCH, seed=SEED, quiet=True)
    images, found = [q(pair.lr) for pair in tests], branch_ranks(q)
    plain, ours = recipe_cost(frame, q.recipe), recipe_cost(frame, q.recipe, found)
    rows.append({
        "method": method.label, "recipe": RECIPE, "psnr_fp": np.mean([psnr_rgb(a, b) for a, b in zip(images, full)]),
        "psnr_y": np.mean([psnr_y(a, p.hr) for a, p in zip(images, tests)]),
        "steps": int((records.event == "step").sum()), "cpu_seconds": q.history["cost"]["cpu_seconds"],
        "more bytes (%)": 100 * (ours["bytes"] / plain["bytes"] - 1),
        "more bit operations (%)": 100 * (ours["bit_operations"] / plain["bit_operations"] - 1),
    })  # fmt: skip
    models[name] = q
runs = pd.DataFrame(rows)
runs.set_index("method").drop(columns="recipe").round(2)

# %%
caption |= {"epochs": EPOCHS, "batch": BATCH, "tests": f"{TESTS} of {TEST_SIZE} px"}
method_figure = plots.ablation(runs, heading=f"Three branches at {RECIPE}, short runs", caption=caption)
plots.save(method_figure, "14_methods", FIGURES)
method_figure

# %% [markdown]
# ## What this showed
# The first few directions lower a weight's rounding error; each further one brings less and weighs as much, four times its
# numbers at 4 bits and sixteen times their operations. What a branch does beyond that is to carry inputs
# that are not rounded. Which layers get a branch depends on the rule more than on the method. `13` has the whole
# comparison.

# %%
at = table.set_index("rank")
least = at["error of rounding"]
first, further = (least[0] - least[SMALL]) / SMALL, (least[SMALL] - least[RANKS[-1]]) / (RANKS[-1] - SMALL)
assert least[SMALL] < 0.97 and first > 2 * further, at
assert errors["with"].median() < errors["without"].median(), "branches relieve the layers"
reached = runs.set_index("method").psnr_fp
assert reached["QArtSR"] > reached["LET"] and reached["QuantVSR"] > reached["LET"], reached.to_dict()
print(", ".join(f"{name} {db:.1f} dB" for name, db in reached.sort_values().items()))
