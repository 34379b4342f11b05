# %% [markdown]
# # 02 · Where ranges live
#
# **The question.** Which layers, and which channels in them, make a one-step SR model hard to quantize; where along the
# network does the error arise, where does it collapse, and which few layers would one spare?
#
# **What you will see.** Every layer's input range, kurtosis and outliers in network order; one layer's channels; weights
# beside activations; signal to quantization noise (SQNR) of each layer alone and accumulated, with the first collapse
# named; a sensitivity ranking put back into a recipe, and the best recipe within a budget. About 90 seconds on two CPU
# cores; no download.
#
# Quantization here is **simulated** (fake quantization in floating point): it shows quality, not speed.

# %%
from fnmatch import fnmatch

import pandas as pd
import torch

import passionsr_lab as lab
from passionsr_lab import plots
from passionsr_lab.analysis.budget import budget_range, each_width
from passionsr_lab.analysis.observe import observing, weight_channels
from passionsr_lab.analysis.propagation import collapse, propagation
from passionsr_lab.analysis.sensitivity import keep_top, measure, sensitivity
from passionsr_lab.evaluation.tables import provenance
from passionsr_lab.imaging.psnr import psnr_rgb
from passionsr_lab.tools.notebooks import figures_folder
from passionsr_lab.widgets import budget_explorer, budget_figure, follow, layer_explorer, layer_figure

# %% tags=["parameters"]
MODEL = "tiny"
DEVICE = "cpu"
SIZE = 128  # HR pixels of the crops
RECIPE = "W4A4"  # for error propagation and sensitivity
METHOD = "let"  # calibration without training: ranges, and LET's start
BITS = 4  # of the grid drawn into histograms
FLOOR = 10.0  # dB; below it a layer's accumulated SQNR counts as collapsed
LIMIT = 6  # layers whose sensitivity is measured because their own SQNR is lowest
TRUNK = ("*.conv_in", "*.conv_out", "*quant_conv", "*samplers*", "*conv_shortcut")  # and by name
KEEP = 5  # layers spared at 8 bits
WIDTHS = (3, 4, 6, 8)  # bits that a layer may get under a budget
PERCENT = 30  # of the way from the least that these widths allow to the most: the budget shown
SEED = 0
FIGURES = figures_folder()

# %%
torch.manual_seed(SEED)
pipe = lab.load(MODEL).to(DEVICE)
calibration = [p._replace(lr=p.lr.to(DEVICE)) for p in lab.bundled("calibration", size=SIZE, seed=SEED)]
test = [p._replace(lr=p.lr.to(DEVICE)) for p in lab.bundled("test", size=SIZE, seed=SEED)]
pd.Series(provenance(MODEL, SEED, RECIPE) | {"device": DEVICE}, name="").to_frame()

# %% [markdown]
# ## Naive view: one range per layer
#
# `observing` records what enters every Conv2d, Linear and attention, in memory that does not grow with the images:
# ranges, moments and a histogram per layer. The number of a layer is its place in `analysis.layers.layer_numbers`: the
# same in every table and figure, for every recipe. An attention's q, k and v share that of its product.

# %%
with observing(pipe) as stats:
    for pair in calibration:
        pipe(pair.lr)
layers = stats.layers()
print(f"{len(layers)} places observed in {stats.bytes / 1e6:.1f} MB")
seen = {"model": MODEL, "width": "full precision", "pictures": f"{len(calibration)} of {SIZE} px", "seed": SEED}
fig = plots.layer_ranges(layers, "Input range of every layer", caption=seen)
plots.save(fig, "02_layer_ranges", FIGURES)
fig

# %% [markdown]
# A wide range alone is no problem: a grid stretches. The problem is a range set by few values. Kurtosis is 3 for a normal
# distribution; the share of values beyond 6 standard deviations is then 2e-9.

# %%
columns = ["number", "module", "layer", "channels", "low", "high", "std", "kurtosis", "outlier_share"]
worst = layers.nlargest(8, "kurtosis")[columns]
worst.style.hide(axis="index").format(precision=2).format("{:.2%}", subset="outlier_share")

# %% [markdown]
# ## Method: look into the channels
#
# The same layer, its values and its channels. A few channels set the range that one per-tensor quantizer has to span;
# the others get a handful of its values. (LET, notebook 04, moves that range into the weight.)

# %%
shown = str(worst.layer.iloc[0])
layer_explorer(stats, layer=shown, bits=BITS, caption=seen)

# %%
fig = layer_figure(stats, shown, bits=BITS, caption=seen)
plots.save(fig, "02_one_layer", FIGURES)
fig

# %% [markdown]
# ## Weights are tame beside activations
#
# An activation has one quantizer for all its channels; below, the share of its range that the median channel fills. A
# weight has one quantizer per output channel, so that the same share is 100 % there; and even with a single quantizer per
# tensor, as drawn, most weights would fill it better.


# %%
def fill(frame) -> float:
    """The median channel's range as a share of the whole tensor's."""
    return ((frame.high - frame.low) / (frame.high.max() - frame.low.min())).median()


plain = layers[layers.kind.isin(["Conv2d", "Linear"])].reset_index(drop=True)
filled = pd.DataFrame(
    [
        {"number": number, "module": module, "layer": name, "share": 100 * fill(frame), "of": kind}
        for number, module, name in zip(plain.number, plain.module, plain.layer.astype(str))
        for kind, frame in (
            ("activation, input channels", stats.channels(name)),
            ("weight, output channels", weight_channels(pipe, name)),
        )
    ]
)
heading = "How much of a tensor's range its median channel fills: activations against weights"
fig = plots.layer_curves(filled, "share", "of", "share of the range (%)", heading, caption=seen)
plots.save(fig, "02_fill", FIGURES)
fig

# %%
filled.groupby("of").share.describe()[["25%", "50%", "75%"]].round(0)

# %% [markdown]
# ## Where the error arises and where it collapses
#
# `propagation` compares each layer's output with its full-precision output: with this layer alone quantized (local),
# and with everything before it quantized too (accumulated). Test pictures, not the calibration ones.

# %%
q = lab.calibrated(pipe, RECIPE, METHOD, calibration)
noise = propagation(q, [pair.lr for pair in test])
first = collapse(noise, FLOOR)
heading = f"{RECIPE}, {METHOD.upper()} (simulated): noise of each layer alone, and with all before it"
used = {"model": MODEL, "method": METHOD, "width": RECIPE, "pairs": f"{len(calibration)} of {SIZE} px", "seed": SEED}
used["one"] = "run"
fig = plots.propagation(noise, FLOOR, heading=heading, caption=used | {"pictures": len(test)})
plots.save(fig, "02_propagation", FIGURES)
print(f"first layer whose accumulated SQNR is below {FLOOR:g} dB: {first}")
fig

# %%
gap = (noise.local_db - noise.accumulated_db).median()
print(f"what the median layer inherits lowers its SQNR by {gap:.1f} dB")
noise.nsmallest(6, "local_db").style.hide(axis="index").format(precision=1)

# %% [markdown]
# The attention products (names that end in an attention, not in a projection) lose most by themselves: softmax
# probabilities lie near 1/N with rare values near 1, and one grid from 0 to the largest leaves the rest a few values.
#
# ## Comparison: which layers to spare?
#
# Naive: those with the lowest SQNR of their own. `sensitivity` takes them as its cheap preselection (`limit`) and measures
# each on calibration pictures twice: it alone quantized, and it alone spared.

# %%
few = lab.bundled("calibration", 2, size=64, seed=SEED)
lowest = sensitivity(q, few, limit=LIMIT).sort_values("gain_db", ascending=False)
lowest.style.hide(axis="index").format(precision=2)

# %% [markdown]
# Little to gain: an attention or a residual block adds its output to a sum that is much larger, and its error drowns in it.
# The trunk has no such protection: everything passes through the first and last convolutions, the samplers and the
# shortcuts, and their inputs are not normalised. So we measure those:

# %%
low_bits = {name for name, bits in zip(noise.layer, map(q.recipe.bits, noise.layer)) if min(bits) < 8}
trunk = [name for name in noise.layer if name in low_bits and any(fnmatch(name, p) for p in TRUNK)]
records = pd.DataFrame(follow(measure(q, [pair.lr for pair in few], trunk), len(trunk), "layers measured"))
ranking = noise.merge(records, on="layer").sort_values("gain_db", ascending=False)
heading = f"What sparing one layer of the trunk brings, {RECIPE}"
fig = plots.sensitivity(ranking, heading=heading, caption=used | {"pictures": len(few)})
plots.save(fig, "02_sensitivity", FIGURES)
fig

# %% [markdown]
# Either ranking goes back into a recipe in one call, `keep_top`; the recipe makes a new pipeline. On test pictures:

# %%
recipes = {
    "all layers": lab.recipe(RECIPE),
    f"lowest SQNR: {KEEP} at 8 bits": keep_top(lab.recipe(RECIPE), lowest, KEEP),
    f"trunk: {KEEP} at 8 bits": keep_top(lab.recipe(RECIPE), ranking, KEEP),
}
targets, columns = [pipe(pair.lr) for pair in test], {}
for name, recipe in recipes.items():
    spared = lab.calibrated(pipe, recipe, METHOD, calibration)
    columns[name] = [psnr_rgb(spared(pair.lr), y) for pair, y in zip(test, targets)]
result = pd.DataFrame(columns, [pair.name for pair in test])
result.loc["mean"] = result.mean()
result.style.format(precision=2).set_caption(f"PSNR (dB) against full precision, {RECIPE}, simulated")

# %%
print("\n".join(name for name, _ in recipes[f"trunk: {KEEP} at 8 bits"].overrides[-KEEP:]))

# %% [markdown]
# ## Under a budget
#
# `width_errors` measures what each layer alone costs the picture at several widths; errors add up to first order, so that
# the best recipe within a budget is a knapsack, which is solved exactly. With a running kernel: choose the budget, see
# which layers get how many bits, and take the recipe away, as Python or JSON. The cell after it is the static twin.

# %%
places = len(WIDTHS) * len(noise)
errors = pd.DataFrame(follow(each_width(pipe, few[:1], WIDTHS, METHOD), places, "layers and widths", knobs="WIDTHS"))
budget_caption = used | {"width": ", ".join(map(str, WIDTHS)) + " bits", "pairs": f"1 of {few[0].hr.shape[-1]} px"}
budget_explorer(pipe, errors, percent=PERCENT, caption=budget_caption)

# %%
least, most = budget_range(pipe, errors)
fig = budget_figure(pipe, errors, least + PERCENT / 100 * (most - least), caption=budget_caption)
plots.save(fig, "02_budget", FIGURES)
fig

# %% [markdown]
# ## The claim
#
# Some layers have tails far heavier than a normal distribution's; weights fill their range better than activations;
# accumulated error collapses at a layer that can be named; a layer's own SQNR does not tell how much it matters; and
# sparing a few trunk layers, chosen on calibration pictures, helps on test pictures.

# %%
assert worst["kurtosis"].iloc[0] > 30, "the worst layer's tails are ten times heavier than normal"
assert first is not None and first in set(noise.layer)
assert (noise.local_db >= noise.accumulated_db).mean() > 0.5, "most layers inherit more error than they make"
plain, by_sqnr, by_effect = result.loc["mean"]
assert by_effect > plain, f"sparing {KEEP} trunk layers: {plain:.2f} dB to {by_effect:.2f} dB"
assert by_effect > by_sqnr, "the measured ranking beats the layers' own SQNR"
shares = filled.groupby("of").share.median()
assert shares["weight, output channels"] > shares["activation, input channels"]
