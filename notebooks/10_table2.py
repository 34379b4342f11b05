# %% [markdown]
# # 10 · The big table
#
# **The question.** How good is each method at each width, by every metric of the protocol (the paper's Table 2)?
#
# **What you will see.** The table of data sets × bits × methods, each metric with its bootstrap confidence interval; the
# paper's numbers beside ours where the same cell exists; one sentence for each metric that cannot be had here. Then all
# methods with three seeds, tuned alike, from committed runs. About 70 seconds on one CPU core, less once the store holds
# the models; no download.
#
# **A full run.** `python -m passionsr_lab table2 --model MODEL --datasets RealSR,DRealSR,DIV2K_val --out DIR`, with
# `PASSIONSR_DATA` set to the folder that holds the data sets. It may be killed at any point; the same command goes on
# and ends with the same bytes. Low bits are **simulated**.

# %%
import tempfile

import pandas as pd

import passionsr_lab as lab
from passionsr_lab import plots
from passionsr_lab.evaluation import table2, tables
from passionsr_lab.evaluation.scores import summary
from passionsr_lab.tools import readme
from passionsr_lab.tools.notebooks import committed, figures_folder
from passionsr_lab.widgets import follow

# %% tags=["parameters"]
MODEL = "tiny"  # or a folder or hub id that lab.load reads
DATASETS = ("bundled",)  # or RealSR, DRealSR, DIV2K_val below $PASSIONSR_DATA, or NAME=FOLDER
BITS = ("W8A8", "W6A6")
METHODS = ("FP", "PassionSR-FP", "maxmin", "passionsr")  # and any that lab.register has added
PROTOCOL = "offline"  # needs no weights; "passionsr" is the paper's, "osediff" another
METRICS = ("psnr_y", "ssim_y", "fsim", "vif", "gmsd", "nlpd")  # None: all of the protocol; MS-SSIM wants 176 pixels
DRAWN = {"psnr_y": "PSNR-Y (dB)", "ssim_y": "SSIM-Y", "fsim": "FSIM", "gmsd": "GMSD (less is better)"}
COUNT, CROP = 8, 128  # test pairs and their HR pixels; None, None: all, whole
PAIRS, SIZE, EPOCHS, BATCH = 16, 64, 4, 4  # of the calibration; as in `00` and `06`: the same models
SEED = 0
OUT = None  # a folder keeps the tables; None: a temporary one
FIGURES = figures_folder()

# %%
plan = table2.Plan(
    MODEL, DATASETS, BITS, METHODS, PROTOCOL, METRICS, COUNT, CROP, pairs=PAIRS, size=SIZE, epochs=EPOCHS, batch=BATCH,
    seed=SEED,
)  # fmt: skip
temporary = tempfile.TemporaryDirectory()
out = OUT or temporary.name
pd.Series(tables.provenance(MODEL, SEED, ", ".join(BITS)) | {"device": "cpu", "protocol": PROTOCOL}, name="").to_frame()

# %% [markdown]
# ## Filling the table
# One pipeline per row, cell by cell. MaxMin is the naive row: ranges as they were observed, nothing learned. FP keeps the
# prompt branch; PassionSR-FP is the model that is quantized.

# %%
*_, last = follow(table2.run(plan, out), len(plan.pipelines) * len(plan.datasets) + 1, "cells")
print("\n".join(last["notes"]) or "Every metric of the plan was measured.")

# %% [markdown]
# ## The table
# Means over the pictures. Where a data set is one of the paper's, a column headed "paper" stands beside each metric.

# %%
table = tables.read_table(f"{out}/table2.csv")
best = {"PSNR": "max", "SSIM": "max", "FSIM": "max", "VIF": "max", "GMSD": "min", "NLPD": "min"}
best = {head: way for head, way in best.items() if head in table}
source = tables.provenance(MODEL, SEED, ", ".join(BITS))
tables.to_csv(table, "10_table2", FIGURES, source)
shown = table.assign(data=table.dataset + ", " + table.bits)[["data", "method", *table.columns[3:]]]
tables.to_latex(
    shown, "10_table2", best, "A short run; low bits are simulated.", FIGURES, source, within="data",
    digits={head: 4 for head in best if head != "PSNR"},
)  # fmt: skip
table.round(4)

# %% [markdown]
# ## With its uncertainty
# The interval of a mean over few pictures is wide, because pictures differ; the difference of two methods on the same
# pictures is known much better. Both are below: the means with their 95 % bootstrap intervals, and the paired
# differences to full precision, and of PassionSR and MaxMin.

# %%
scores = tables.read_table(f"{out}/table2_images.csv")
means = summary(scores)
caption = {"model": MODEL, "pairs": f"{PAIRS} of {SIZE} px", "epochs": EPOCHS, "batch": BATCH, "seed": SEED}
caption |= {"one run": "each", "pictures": f"{COUNT or 'all'} of {CROP or 'any'} px"}
figure = plots.intervals(
    means[means.metric.isin(DRAWN)],
    labels=DRAWN,
    heading=f"Quality on {', '.join(DATASETS)}, 95 % intervals",
    caption=caption,
)
plots.save(figure, "10_intervals", FIGURES)
figure

# %%
each = ["dataset", "metric", "name"]
full = scores[scores.method == "PassionSR-FP"][[*each, "value"]]
lost = scores[~scores.method.isin(["FP", "PassionSR-FP"])].merge(full, on=each, suffixes=("", "_full"))
lost = lost.assign(value=lost.value - lost.value_full).drop(columns="value_full")
figure = plots.intervals(
    summary(lost[lost.metric.isin(DRAWN)]),
    labels=DRAWN,
    heading=f"What low bits cost on {', '.join(DATASETS)}: differences to full precision, 95 % intervals",
    caption=caption,
)
plots.save(figure, "10_differences", FIGURES)
figure

# %%
values = scores[scores.metric == "psnr_y"].pivot_table(
    index=["dataset", "bits", "name"], columns="method", values="value"
)
gain = (values.PassionSR - values.MaxMin).dropna().rename("value").reset_index()
gain = summary(gain.assign(metric="PassionSR - MaxMin, PSNR-Y (dB)", note=""))
gain.drop(columns="note").round(3)

# %% [markdown]
# ## The whole table
# `make table2` and `make table2_whole`: from 64 crops that are seen once (Q-Diffusion: 16, four times), with rates chosen on
# tuning pictures, one seed; eight bundled pictures and RealSR's 100 test pictures, centre crops of 128 pixels, and every
# fourth whole, 512 pixels. PSNR-Y / FSIM; the files have every metric. Why SVDQuant loses with size is in `11`.

# %%
readme.shown("table2")

# %%
readme.shown("whole")

# %%
means = committed("table2_whole_means")  # with the intervals
if means is not None:
    told = {"model": "tiny", "pairs": "64 of 64 px, Q-Diffusion's 16", "one run": "each", "pictures": "25 of 512 px"}
    heading = "Quality on RealSR's whole pictures, 95 % intervals over pictures"
    figure = plots.intervals(means[means.metric.isin(DRAWN)], labels=DRAWN, heading=heading, caption=told)
    plots.save(figure, "10_whole", FIGURES)
figure if means is not None else None

# %% [markdown]
# ## Every method, tuned alike
# What is above is one seed. `make methods` gives all methods the same effort: learning rates
# of every method that trains are 0.3, 1, 3 or 10 times its own, and on past either end while the best is there, whichever
# is best on tuning pictures in the mean over the three widths; then three seeds, from 64 crops (Q-Diffusion, whose blocks
# take long, from 16 that it sees four times), on test pictures. *Published* rows and the official procedure have the rates
# and starts of papers and code, untuned, at W6A6. Below: PSNR to full precision on the tuning pictures in the mean over the
# widths, the factor that was chosen, and what all runs of the choice cost together.

# %%
labels = {m.name: m.label for m in lab.METHODS.values()}
TUNINGS = "tuning", "tuning_q_diffusion"
RUNS = "methods", "methods_q_diffusion", "methods_published", "methods_256", "methods_512", "methods_1024"
tuning = [committed(name) for name in TUNINGS]
runs = [committed(f"{name}_runs") for name in RUNS]
have = all(table is not None for table in (*tuning, *runs))
if not have:
    print("There are no figures/methods_runs.csv and its like yet: `make methods` makes them.")
else:
    tuning = pd.concat(tuning).assign(method=lambda t: t.method.map(labels))
    tried = tuning.pivot_table(index="method", columns="rates", values="psnr_fp", sort=False).round(2)
    tried["chosen"] = tuning[tuning.chosen].groupby("method").rates.first()
    tried["CPU s, all runs"] = tuning.groupby("method").cpu_seconds.sum().round()
tried if have else None

# %% [markdown]
# PSNR to full precision (mean and standard deviation over the seeds), PSNR-Y to HR, and what a calibration costs, mean
# over the widths. A 16-bit branch (SVDQuant) costs operations and bytes that the others do not need.

# %%
readme.shown("methods")

# %% [markdown]
# Differences between equal seeds, half of the 95 % interval behind ±; bold where it does not hold 0.

# %%
readme.shown("methods gaps")

# %% [markdown]
# And against cost, at W6A6: every run, also from 256 to 1024 crops with the same rates.

# %%
if have:
    at = pd.concat(runs).loc[lambda t: t.recipe.eq("W6A6") & t.method.isin(labels)].replace({"method": labels})
    told = {name: ", ".join(map(str, sorted(at[name].unique()))) for name in ("model", "pairs", "size", "batch")}
    told["seeds"] = ", ".join(map(str, sorted(at.seed.unique())))
    axes = ("CPU seconds of a calibration", "PSNR to full precision (dB)")
    looks = {"log": ["x"], "joined": False, "width": plots.PAGE, "caption": told}
    figure = plots.curves(at, "cpu_seconds", "psnr_fp", "method", axes, "Quality against cost at W6A6", **looks)
    plots.save(figure, "10_cost", FIGURES)
figure if have else None

# %% [markdown]
# ## At equal cost
# The same methods once more with the same rates, each with as many crops, seen once, as it can have for the CPU seconds
# that `passionsr` takes from 64 (what trains nothing has 64; `figures/methods_cost_runs.csv`). Q-Diffusion, which costs more
# from 16 crops already, is not here.

# %%
readme.shown("equal cost")

# %%
equal = committed("methods_cost_runs")
if equal is not None:
    equal = equal.replace({"method": labels})
    settings = ("model", "size", "epochs", "batch", "compiled", "threads", "torch", "instructions")
    told = {name: ", ".join(map(str, sorted(equal[name].unique()))) for name in settings}
    heading = "Every method for the CPU seconds of PassionSR from 64 crops"
    figure = plots.ablation(equal, heading=heading, width=plots.PAGE, caption=told)
    plots.save(figure, "10_equal_cost", FIGURES)
figure if equal is not None else None

# %%
readme.shown("equal cost gaps")

# %% [markdown]
# ## What this showed
# Calibration wins back most of what low bits cost; the paired interval says whether it did so on these pictures.

# %%
point = table.set_index(["bits", "method"]).PSNR
full = point["W32A32", "PassionSR-FP"]
assert point["W8A8", "PassionSR"] > point["W6A6", "MaxMin"], point.to_dict()
assert full - point["W6A6", "PassionSR"] < full - point["W6A6", "MaxMin"], point.to_dict()
assert table[["PSNR", "SSIM"]].notna().all().all()
print(
    f"At W6A6 MaxMin is {full - point['W6A6', 'MaxMin']:.2f} dB below full precision, PassionSR "
    f"{full - point['W6A6', 'PassionSR']:.2f} dB."
)
