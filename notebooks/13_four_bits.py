# %% [markdown]
# # 13 · Four bits, three, two: QArtSR stage by stage
#
# **The question.** PassionSR's boundaries and scales are not enough at 4 bits. What does QArtSR (Zhu et al., arXiv
# 2503.05584) add, what does each of its stages contribute, what does it cost, and why does it want another timestep?
#
# **What you will see.** The error of the quantized latent against the timestep, with the two laws that could explain it.
# Then QArtSR at 4, 3 and 2 bits, its stages one after another, with pictures and cost. Then the whole comparison, all
# methods from 4 to 2 bits with three seeds, as it is kept in `figures/low_bits.csv`.
#
# **How long.** About 80 seconds on one core. No download. The whole comparison takes hours and is not computed here:
# `make lowbits`, which goes on where it was when it is interrupted.
#
# **What is simulated.** The low bits, computed in floating point. The 16-bit branch is counted as what it is: 16 bits.

# %%
import numpy as np
import pandas as pd
import torch

import passionsr_lab as lab
from passionsr_lab import plots, widgets
from passionsr_lab.analysis.bitcost import recipe_cost
from passionsr_lab.analysis.cost import count
from passionsr_lab.analysis.layers import branch_ranks
from passionsr_lab.calibration.loop import Calibration
from passionsr_lab.evaluation import tables
from passionsr_lab.evaluation.sweep import differences
from passionsr_lab.imaging.pictures import upsample
from passionsr_lab.imaging.psnr import psnr_rgb, psnr_y
from passionsr_lab.methods import qartsr
from passionsr_lab.tools import readme
from passionsr_lab.tools.notebooks import checkout, committed, figures_folder
from passionsr_lab.util.files import read_json

# %% tags=["parameters"]
MODEL = "tiny"  # or a folder or hub id that lab.load reads
TIMESTEPS = [999, 499, 249, 1]  # of the embedded model's variants; those that there are not are left out
LATENT_RECIPE = "W8A8"  # of the UNet alone, for the error of the latent
RECIPES = ["W4A4", "W3A3", "W2A2"]
PAIRS, SIZE, EPOCHS, BATCH, SEED = 4, 64, 1, 4, 0  # short: 12 steps of RPQ and 6 of ET at each width
TESTS, TEST_SIZE = 4, 128  # test crops and their HR pixels
PICTURE, BOX = "chelsea_0", (32, 32, 64, 64)  # the test crop that is shown, and where
COMMITTED, MIXED = "low_bits", "mixed"  # figures/NAME.csv (means over seeds) and NAME_runs.csv (every run)
AT_TIMES, FITTED = "timesteps", "timesteps_refit"  # figures/NAME_runs.csv, two methods at every timestep
REFIT = "build/refit@998"  # the model of the second
BASES = {"mixed 4": "W4A4", "mixed 2": "W2A2"}  # figures/mixed_4.json, mixed_2.json, and what each stands beside
ORDER = ["mixed 4", "W4A4", "W3A3", "mixed 2", "W2A2"]
FIGURES = figures_folder()

# %%
pd.Series(tables.provenance(MODEL, SEED, ", ".join(RECIPES)) | {"device": "cpu"}, name="provenance").to_frame()

# %% [markdown]
# ## The timestep (TRQ)
# Eq. 9 divides by $\sqrt{\bar\alpha_T}$: the error of the predicted noise comes back times
# $\sqrt{(1-\bar\alpha_T)/\bar\alpha_T}$, 14.6 at T = 999 and 0.04 at T = 1. QArtSR therefore retrains the one-step model at
# a smaller T before it is quantized, and states that the error of the latent goes as $\sqrt{1-\bar\alpha_T}$, without the
# denominator. Both laws begin here at the error at the first timestep. What is measured: the standard deviation of
# $z_H$ quantized minus $z_H$ in full precision on test pictures, when only the UNet is quantized, with LET's start.

# %%
pairs, tests = lab.bundled("calibration", PAIRS, SIZE, SEED), lab.bundled("test", TESTS, TEST_SIZE)
labels = {m.name: m.label for m in lab.METHODS.values()}


def variant(timestep):
    """The embedded model at a timestep, or None where there is no such variant."""
    try:
        return lab.tiny(timestep=timestep)
    except ValueError:
        return None


@torch.no_grad()
def latent_error(pipe):
    """All errors of z_H on the test pictures."""
    q = lab.quantize(pipe, LATENT_RECIPE, ("unet",))
    lab.calibrate(q, pairs, "let", quiet=True)
    latents = [pipe.encode(pipe.prepare(pair.lr[None])) for pair in tests]
    return torch.cat([(q.denoise(z) - pipe.denoise(z)).flatten() for z in latents])


variants = {t: v for t in TIMESTEPS if MODEL == "tiny" and (v := variant(t)) is not None} or {999: lab.load(MODEL)}
errors, full_psnr = {}, {}
for timestep, pipe in variants.items():
    errors[timestep] = latent_error(pipe)
    full_psnr[timestep] = np.mean([psnr_y(pipe(pair.lr), pair.hr) for pair in tests])
alpha = {t: float(v.scheduler.alphas_cumprod[t]) for t, v in variants.items()}
first = next(iter(variants))
size = {t: float(e.std()) for t, e in errors.items()}
laws = {
    "sqrt(1 - a)": lambda a: (1 - a) ** 0.5,
    "sqrt((1 - a) / a)": lambda a: ((1 - a) / a) ** 0.5,
}
timesteps = pd.DataFrame(
    {"T": list(variants), "PSNR-Y in full precision": full_psnr.values(), "measured": size.values()}
)
for name, law in laws.items():
    timesteps[name] = [size[first] * law(alpha[t]) / law(alpha[first]) for t in variants]
timesteps.set_index("T").round(4)

# %%
curve = timesteps.melt(["T"], ["measured", *laws], "law", "error")
caption = {"model": MODEL, "UNet": LATENT_RECIPE, "method": "LET's start", "tests": f"{TESTS} of {TEST_SIZE} px"}
caption |= {"pairs": f"{PAIRS} of {SIZE} px", "seed": f"{SEED}, one run"}
law_figure = plots.curves(
    curve, "T", "error", "law", ("timestep T", "std of the latent's error"), "Error of the latent against the timestep",
    log=("y",), caption=caption,
)  # fmt: skip
plots.save(law_figure, "13_timestep", FIGURES)
law_figure

# %%
reach = max(float(e.abs().max()) for e in errors.values())
edges = np.linspace(-reach, reach, 81)
states = {f"T = {t}": (edges, np.histogram(e.numpy(), edges)[0], None) for t, e in errors.items()}
error_figure = plots.histograms(states, heading="Error of the latent z_H", caption=caption)
plots.save(error_figure, "13_latent_error", FIGURES)
error_figure

# %% [markdown]
# What that is worth in pictures: LET's untrained start and PassionSR from 64 crops at every timestep, three seeds (`make
# timesteps`). PSNR (dB) of the images to those of the same model in full precision, and by how much each timestep is above
# T = 999 at equal seeds, with its 95 % interval. The variants' last layers were fitted to photographs, those of T = 999 were
# trained. So that the timestep is not taken for the fit, the same was fitted at T = 998, which is T = 999 to a network:
# *fitted alike*.

# %%
ALIKE = "T = 999, fitted alike"
by_time, files = None, [committed(f"{name}_runs") for name in (AT_TIMES, FITTED)] if MODEL == "tiny" else [None]
if all(file is not None for file in files):
    names = {"tiny": "T = 999", REFIT: ALIKE} | {f"tiny@{t}": f"T = {t}" for t in (499, 249, 1)}
    at_times = pd.concat(files, ignore_index=True).replace({"model": names, "method": labels})
    keys = ["method", "recipe"]
    order = [name for name in names.values() if name in set(at_times.model)]
    by_time = {"PSNR to full precision": at_times.pivot_table("psnr_fp", keys, "model", sort=False)[order].round(1)}
    swapped = at_times.rename(columns={"model": "method", "method": "model"})  # differences of models, in every method
    for other in ("T = 999", ALIKE):
        first = swapped.sort_values("method", key=lambda column, other=other: column != other, kind="stable")
        more = differences(first)
        more = more[more.other == other].rename(columns={"model": "method", "method": "model"})
        more["gain"] = [f"{d:.1f} ± {h:.1f}" for d, h in zip(more.difference, more.half_width)]
        gains = more.pivot_table("gain", keys, "model", aggfunc="first", sort=False)
        by_time[f"over {other}"] = gains.reindex(by_time["PSNR to full precision"].index)[
            [name for name in order[1:] if name in gains]
        ]
    by_time = pd.concat(by_time, axis=1)
by_time

# %% [markdown]
# ## Stage by stage
# The quantizer: a smoothing scale per channel, a LoRA that ends inside the integers, and beside them a low-rank branch in
# 16 bits. *Start* is that quantizer with nothing trained. *RPQ* takes the modules from the last to the first, each behind
# full precision and before what is quantized already. *ET* trains all together on the image. One run at each width gives
# all rows; the steps are few, so that this is a demonstration and not the best that the method reaches.

# %%
pipe = lab.load(MODEL)
full = [pipe(pair.lr) for pair in tests]
frame = count(pipe, TEST_SIZE)
rows, models = [], {}


def measured(q, recipe, stage):
    """A row of the table: what the quantized model gives now."""
    images = [q(pair.lr) for pair in tests]
    fp = np.mean([psnr_rgb(a, b) for a, b in zip(images, full)])
    return {
        "recipe": recipe,
        "method": stage,
        "psnr_fp": fp,
        "psnr_y": np.mean([psnr_y(a, p.hr) for a, p in zip(images, tests)]),
    }


def staged(recipe):
    """Calibrates, and measures at the start, after RPQ and after ET."""
    q = lab.quantize(pipe, recipe)
    work = Calibration(q, pairs, qartsr.METHOD, EPOCHS, BATCH, SEED)
    for record in work.run():
        place = record["module"], record["event"]
        stage = {("decoder", "start"): "start", ("encoder", "end"): "RPQ", ("all", "end"): "RPQ + ET"}.get(place)
        if stage is not None:
            rows.append(measured(q, recipe, stage))
        yield record
    models[recipe] = q


total = Calibration(lab.quantize(pipe, RECIPES[0]), pairs, qartsr.METHOD, EPOCHS, BATCH).total * len(RECIPES)
for _ in widgets.follow((r for recipe in RECIPES for r in staged(recipe)), total, "steps", knobs="EPOCHS or RECIPES"):
    pass
stages = pd.DataFrame(rows)
stages.pivot(index="recipe", columns="method", values=["psnr_fp", "psnr_y"]).reindex(RECIPES).round(2)

# %%
caption = {"model": MODEL, "method": "QArtSR", "pairs": f"{PAIRS} of {SIZE} px", "epochs": EPOCHS, "batch": BATCH}
caption |= {"seed": f"{SEED}, one run", "tests": f"{TESTS} of {TEST_SIZE} px"}
stage_figure = plots.ablation(stages, heading="QArtSR stage by stage", caption=caption)
plots.save(stage_figure, "13_stages", FIGURES)
stage_figure

# %%
shown = next(pair for pair in tests if pair.name == PICTURE)
pictures = {
    "HR": shown.hr,
    "bicubic": upsample(shown.lr[None], pipe.upscale)[0].clamp(0, 1),
    "full precision": pipe(shown.lr),
}
pictures |= {recipe: models[recipe](shown.lr) for recipe in RECIPES}
heading = "QArtSR at few bits, short calibration"
crops = plots.comparison(pictures, BOX, "HR", heading=heading, caption=caption | {"picture": PICTURE})
plots.save(crops, "13_pictures", FIGURES)
crops

# %% [markdown]
# ## What it costs
# Bytes and bit operations, exceptions, norms, bounds and branch included; the last columns are what the branch adds to
# the same recipe without one. At 2 bits each number of the branch weighs as much as eight weights.

# %%
cost = []
for recipe, q in models.items():
    ranks = branch_ranks(q)
    plain, ours = recipe_cost(frame, q.recipe), recipe_cost(frame, q.recipe, ranks)
    cost.append({
        "recipe": recipe, "MB": ours["bytes"] / 1e6, "G bit operations": ours["bit_operations"] / 1e9,
        "branch, % more bytes": 100 * (ours["bytes"] / plain["bytes"] - 1),
        "branch, % more operations": 100 * (ours["bit_operations"] / plain["bit_operations"] - 1),
        "mean rank": np.mean(list(ranks.values())),
    })  # fmt: skip
cost = pd.DataFrame(cost).set_index("recipe")
cost.round(2)


# %% [markdown]
# ## All methods, and bits where they bring most
# `make lowbits` measures it on pictures that no calibration saw, three seeds each, from 64 crops that are seen once
# (Q-Diffusion: 16, four times), with rates that were chosen on tuning pictures; `10` has 8 and 6 bits.


# %%
parts = [committed(f"{COMMITTED}_runs"), committed(f"{COMMITTED}_q_diffusion_runs")]
runs = None if any(part is None for part in parts) else pd.concat(parts, ignore_index=True)
if runs is None:
    print(f"There is no figures/{COMMITTED}.csv yet: `make lowbits` makes it.")
else:
    print(f"Full precision: PSNR-Y {runs.psnr_y_full.mean():.2f} dB; seeds {sorted(map(int, runs.seed.unique()))}")
readme.shown("low bits")

# %% [markdown]
# A recipe need not give every layer the same bits. *mixed 4* and *mixed 2* were chosen by `passionsr-lab mixed`, on
# calibration pictures: bits for each layer, so that the errors that layers cause alone add up to least within a budget of
# bit operations (`analysis.budget`, an integer program; `make mixed` has the budgets). Their price for a picture of 512
# pixels between those of equal widths, also with the 16-bit branch of our `best`; and what they bring each method: the
# difference to W4A4 and W2A2 with equal seeds and its 95 % interval.

# %%
files = {name: checkout() / "figures" / f"{name.replace(' ', '_')}.json" for name in BASES}
mixed = {name: lab.Recipe.from_dict(read_json(file)) for name, file in files.items() if file.is_file()}
mixed = mixed if MODEL == "tiny" else {}
prices, large = [], count(pipe, 512)
for name in ORDER if mixed else []:
    r = mixed.get(name) or lab.recipe(name)
    q = lab.quantize(pipe, r)
    bits = pd.Series([r.bits(layer)[0] for layer in q.layers]).value_counts().sort_index()
    price = recipe_cost(large, r)
    lab.METHODS["best"].slots.install(q)
    ours = recipe_cost(large, r, branch_ranks(q))
    prices.append({
        "recipe": name, "MB": price["bytes"] / 1e6, "T bit operations": price["bit_operations"] / 1e12,
        "MB, best": ours["bytes"] / 1e6, "T bit operations, best": ours["bit_operations"] / 1e12,
        "bits of a weight": price["weight_bits"], "of an activation": price["act_bits"],
        "layers": ", ".join(f"{n} at {b}" for b, n in bits.items()),
    })  # fmt: skip
pd.DataFrame(prices).set_index("recipe").round(2) if prices else None

# %%
gained, runs_mixed = [], committed(f"{MIXED}_runs")
for name, base in BASES.items() if runs_mixed is not None else ():
    own = runs_mixed[runs_mixed.recipe.isin((name, base))].replace({"method": labels})
    means = own.pivot_table(["psnr_fp", "psnr_y"], "method", "recipe", sort=False)[["psnr_fp", "psnr_y"]]
    means.columns = [f"{score}, {'mixed' if recipe == name else 'equal'}" for score, recipe in means.columns]
    more = differences(own.rename(columns={"recipe": "method", "method": "recipe"}))  # of recipes, in every method
    more = means.join(more.set_index("recipe")[["difference", "half_width", "seeds"]])
    gained.append(pd.concat({f"{name} over {base}": more}))
pd.concat(gained).round(2) if gained else None

# %% [markdown]
# Differences between methods with equal seeds, half of the 95 % interval behind ±, bold where it does not hold 0.

# %%
readme.shown("low bits gaps")

# %%
whole = None
if runs is not None:
    told = {k: ", ".join(map(str, runs[k].unique())) for k in ("model", "pairs", "size", "epochs", "batch")}
    told["seeds"] = ", ".join(map(str, sorted(runs.seed.unique())))
    lines = runs if runs_mixed is None else pd.concat([runs, runs_mixed]).drop_duplicates(["recipe", "method", "seed"])
    lines = lines.replace({"method": labels}).sort_values("recipe", key=lambda r: r.map(ORDER.index), kind="stable")
    whole = plots.ablation(lines, heading="Every method and recipe", width=plots.PAGE, caption=told)
    plots.save(whole, "13_low_bits", FIGURES)
whole

# %% [markdown]
# ## What this showed
# Training RPQ brings the 4-bit model out of the noise that its untrained start leaves, and ET, which sees the image, goes
# on from there; the closing cell asserts the sum of both. What the error of the latent does with the timestep is printed
# below: the law whose prediction is nearer, on a logarithmic scale, over the timesteps that this model has.
#
# For the embedded model it halves from T = 999 to 499 and stays there, so neither law holds for it; but QArtSR's advice
# does where it is certain: away from T = 999 LET's start ends nearer to full precision at 6 and 4 bits, and PassionSR at T =
# 499 at 6. Its variants keep what the model at T = 999 computes and say it otherwise in the last layers, whose own errors
# Eq. 9 no longer multiplies. That is the timestep's doing: at 6 and 4 bits T = 999 with its last layers fitted alike is not
# told apart from T = 999.

# %%
reached = stages.pivot(index="recipe", columns="method", values="psnr_fp")
gain = (reached["RPQ + ET"] - reached["start"]).reindex(RECIPES)
assert gain[RECIPES[0]] > 0.5, f"RPQ and ET gain less than 0.5 dB at {RECIPES[0]}: {gain.to_dict()}"
assert (cost["branch, % more bytes"].diff().dropna() > 0).all(), "the fewer bits, the more a branch weighs"
print("RPQ and ET gain " + ", ".join(f"{g:.1f} dB at {r}" for r, g in gain.items()))
if len(variants) > 1:
    off = {n: np.abs(np.log(timesteps[n] / timesteps.measured)).mean() for n in laws}
    nearer = min(off, key=off.get)
    print(
        f"Nearer to the error of the latent: {nearer} (mean factor off: "
        + ", ".join(f"{n} {np.exp(v):.2f}" for n, v in off.items())
        + ")"
    )
