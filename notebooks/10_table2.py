# %% [markdown]
# # 10 · The big table
#
# **The question.** How good is each method at each width, by every metric of the protocol (the paper's Table 2)?
#
# **What you will see.** The table of data sets × bits × methods, each metric with its bootstrap confidence interval; the
# paper's numbers beside ours where the same cell exists; one sentence for each metric that cannot be had here. About 70
# seconds on one CPU core, less once the store holds the models; no download.
#
# **A full run.** `python -m passionsr_lab table2 --model MODEL --datasets RealSR,DRealSR,DIV2K_val --out DIR`, with
# `PASSIONSR_DATA` set to the folder that holds the data sets. It may be killed at any point; the same command goes on
# and ends with the same bytes. Low bits are **simulated**.

# %%
import tempfile

import pandas as pd

from passionsr_lab import plots
from passionsr_lab.evaluation import table2, tables
from passionsr_lab.evaluation.scores import summary
from passionsr_lab.tools.notebooks import figures_folder
from passionsr_lab.widgets import follow

# %% tags=["parameters"]
MODEL = "tiny"  # or a folder or hub id that lab.load reads
DATASETS = ("bundled",)  # or RealSR, DRealSR, DIV2K_val below $PASSIONSR_DATA, or NAME=FOLDER
BITS = ("W8A8", "W6A6")
METHODS = ("FP", "PassionSR-FP", "maxmin", "passionsr")  # and any that lab.register has added
PROTOCOL = "passionsr"  # the paper's; "osediff" is the other
METRICS = ("psnr_y", "ssim_y")  # None: all that the protocol has, if their weights can be had
COUNT, CROP = 8, 128  # test pairs and their HR pixels; None, None: all, whole
PAIRS, SIZE, EPOCHS, BATCH = 16, 64, 4, 4  # of the calibration; as in `00`, `06` and `07`: the same models
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
best = {c: "max" for c in ("PSNR", "SSIM") if c in table}
source = tables.provenance(MODEL, SEED, ", ".join(BITS))
tables.to_csv(table, "10_table2", FIGURES, source)
shown = table.assign(data=table.dataset + ", " + table.bits)[["data", "method", *table.columns[3:]]]
tables.to_latex(
    shown, "10_table2", best, "A short run; low bits are simulated.", FIGURES, source, within="data",
    digits={"SSIM": 4},
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
    means,
    labels={"psnr_y": "PSNR-Y (dB)", "ssim_y": "SSIM-Y"},
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
    summary(lost),
    labels={"psnr_y": "PSNR-Y less that of full precision (dB)", "ssim_y": "SSIM-Y less that of full precision"},
    heading=f"What low bits cost on {', '.join(DATASETS)}: paired differences, 95 % intervals",
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
