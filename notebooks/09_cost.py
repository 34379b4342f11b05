# %% [markdown]
# # 09 · What it costs
#
# **The question.** How many parameters and operations does a one-step SR model have, where are they, and what is left of
# them at 8, 6 and 4 bits (the paper's Tables 1 and 3)?
#
# **What you will see.** Both tables counted anew from the full-size architecture, beside the printed figures; the exact
# count that also sees attention products, exceptions and the quantizers' own numbers; size against bits; where the time
# of a calibration goes. About 20 seconds on one CPU core; no weights, no download: everything runs on the meta device,
# where tensors have shapes and no values.
#
# Bits here are **theoretical**: a size is what the numbers take when packed; operations say nothing of seconds, which are
# those of calibrations, never of a simulated model at work.

# %%
from dataclasses import replace

import pandas as pd

import passionsr_lab as lab
from passionsr_lab import plots
from passionsr_lab.analysis.bitcost import paper_cost, recipe_cost
from passionsr_lab.analysis.cost import count
from passionsr_lab.analysis.paper import table1, table3
from passionsr_lab.bench.calibrate import step_ratios, whole_runs
from passionsr_lab.evaluation import tables
from passionsr_lab.fullsize.sd21 import architecture
from passionsr_lab.tools.notebooks import figures_folder

# %% tags=["parameters"]
MODEL = "sd21"  # the full size; or "tiny", or a model folder, of which only the configuration is read
SIZE = 512  # edge of the image that comes out
RECIPES = ("W8A8", "W6A6", "W4A4")
REPORTS = ("2026-11-30_calibrate_before", "2026-11-30_calibrate")  # of the time of calibrations
FIGURES = figures_folder()

# %%
pipe = architecture(MODEL)
frame = count(pipe, SIZE)
source = tables.provenance(MODEL, "none", ", ".join(RECIPES))
pd.Series(source | {"device": "meta"}, name="provenance").to_frame()

# %% [markdown]
# ## Table 1, counted
# The paper's tool counts convolutions, linears and LayerNorms. The prompt branch (DAPE, CLIP), which PassionSR-FP cuts
# away, is cited from the paper and marked so.

# %%
one = table1(architecture("sd21"))
printed = {
    "UNet": (865.785, 339.241), "VAE": (83.614, 1781.123), "DAPE": (160.335, 126.591), "CLIPEncoder": (193.055, 14.856),
    "Total": (1302.789, 2261.811),
}  # fmt: skip
for i, column in enumerate(("params_M", "MACs_G")):
    one[f"{column} printed"] = [printed[name][i] for name in one.component]
one["off by"] = [
    f"{100 * max(abs(r.params_M / p - 1), abs(r.MACs_G / m - 1)):.3f} %"
    for r, (p, m) in zip(one.itertuples(), printed.values())
]
one

# %% [markdown]
# ## Table 3, counted
# Parameters at bits / 32 each, operations at 2 · MACs · bits / 32. DiffBIR is cited; OSEDiff is counted with its prompt
# branch cited.

# %%
three = table3()
tables.to_csv(three, "09_table3", FIGURES, source)
tables.to_latex(
    three,
    "09_table3",
    {"params_M": "min", "ops_G": "min"},
    "Compression, counted from the architecture.",
    FIGURES,
    source,
)
three

# %% [markdown]
# ## Where it is
# The UNet holds the parameters, the VAE does the work: quantizing the UNet alone (PassionSR-U) saves most of the size and
# little of the time. This is the reason for PassionSR-UV.

# %%
parts = pd.DataFrame(
    {
        "parameters": frame.groupby("module", sort=False).parameters.sum() / frame.parameters.sum() * 100,
        "operations": frame.groupby("module", sort=False).macs.sum() / frame.macs.sum() * 100,
    }
).T.rename_axis("quantity")
caption = {"model": MODEL, "image": f"{SIZE} x {SIZE} px", "counted": "from the architecture"}
where = plots.shares(parts, "share (%)", "Parameters and operations by module", caption=caption)
plots.save(where, "09_modules", FIGURES)
where

# %%
names = {"conv": "convolutions", "linear": "linears", "qk": "attention products", "av": "attention products"}
kinds = frame.assign(kind=frame.kind.map(names).fillna("norms"), macs=frame.macs / 1e9)
kinds = kinds.pivot_table(index="module", columns="kind", values="macs", aggfunc="sum", sort=False)
heading = "What the operations are: the exact count"
work = plots.shares(kinds, "G multiply-accumulates per image", heading, caption=caption)
plots.save(work, "09_kinds", FIGURES)
work

# %% [markdown]
# ## The exact cost of a recipe
# Beyond the paper's convention: the layers kept at 8 bits, biases and norms at 32, two bounds per output channel and
# activation, one scale per input channel, and the attention products. The naive figure is bits / 32 of everything.

# %%
full = recipe_cost(frame, None)
rows = []
for name in ("W32A32", *RECIPES):
    for method, modules in (("U", ("unet",)), ("UV", lab.W8A8.modules)):
        recipe = None if name == "W32A32" else replace(lab.recipe(name), modules=modules)
        if recipe is None and method == "UV":
            continue
        exact, (params, ops) = recipe_cost(frame, recipe), paper_cost(frame, recipe)
        rows.append({
            "method": f"PassionSR-{method}" if recipe else "PassionSR-FP", "bits": name,
            "MB": exact["bytes"] / 1e6, "naive MB": params * 4, "smaller": full["bytes"] / exact["bytes"],
            "T bit operations": exact["bit_operations"] / 1e12,
            "fewer": full["bit_operations"] / exact["bit_operations"],
            "mean weight bits": exact["weight_bits"], "mean activation bits": exact["act_bits"],
        })  # fmt: skip
exact = pd.DataFrame(rows)
tables.to_csv(exact, "09_exact", FIGURES, source)
exact.round(2)

# %%
quantized = {"PassionSR-U": ("unet",), "PassionSR-UV": lab.W8A8.modules}
points = [
    (
        bits,
        name,
        100 * recipe_cost(frame, replace(lab.recipe(f"W{bits}A{bits}"), modules=modules))["bytes"] / full["bytes"],
    )
    for name, modules in quantized.items()
    for bits in range(2, 9)
] + [(bits, "naive: bits / 32", 100 * bits / 32) for bits in range(2, 9)]
size = plots.curves(
    pd.DataFrame(points, columns=["bits", "quantized", "size"]), "bits", "size", "quantized",
    ("bits", "size (% of full precision)"), "Size against bits", width=plots.PAGE, caption=caption,
)  # fmt: skip
plots.save(size, "09_size", FIGURES)
size

# %% [markdown]
# ## Where the time of a calibration goes
# Two committed reports of `passionsr-lab bench calibrate` (embedded model, 32 crops of 128 pixels seen four times, which is
# what `calibrate` does by default, PassionSR at W6A6, one thread of one machine), in torch's passes and in those that numba
# compiles: before and after a layer kept its arrays from step to step, the products of attention became one function,
# kernels walked channels-last tensors as they lie, and frozen weights were no longer kept. A calibration cannot be quicker
# than steps in float; the table has what its steps cost over those, in processor time.

# %%
spent = whole_runs(*REPORTS)
time = plots.shares(
    spent, "CPU seconds", "Where the time of a calibration goes",
    caption={"model": "tiny", "widths": "W6A6", "method": "passionsr", "n": "one run each"},
)  # fmt: skip
plots.save(time, "09_calibration", FIGURES)
time

# %%
step_ratios(REPORTS[-1]).round(2)

# %% [markdown]
# ## What this showed
# The counts are the paper's; the exact ones are a little larger, because scales, bounds, biases and exceptions count too.

# %%
for row in one.itertuples():
    p, m = printed[row.component]
    assert abs(row.params_M / p - 1) < 5e-4 and abs(row.MACs_G / m - 1) < 5e-4, row
assert three.params_M.tolist()[1:] == [1303, 949, 300, 246, 238, 178]
assert three.ops_G.tolist()[1:] == [4523, 4240, 3732, 3689, 1060, 795]
assert (exact["MB"] > exact["naive MB"])[1:].all(), exact
print(
    f"UV at W6A6: {exact.MB[4]:.0f} MB of {exact.MB[0]:.0f} MB; the paper's convention says {exact['naive MB'][4]:.0f}."
)
