# %% [markdown]
# # Ablation: MaxMin, LBQ, LBQ + LET, and DQC
#
# **The question.** What does each part of PassionSR contribute (the paper's Table 4)? Learned boundaries (LBQ, Eq. 3),
# the equivalent transformation (LET, Eqs. 4 and 5), distributed calibration (DQC, Eqs. 8 to 10).
#
# **What you will see.** A small grid run live, at one width and with one seed; then the whole table, all methods at
# W8A8, W6A6 and W4A4 with three seeds and rates chosen on tuning pictures, out of `figures/methods_runs.csv`.
#
# **How long.** The live grid takes two to three minutes on two cores and says how much is left; what the store holds
# already (from `00`) takes seconds. The whole table takes much longer and is not computed here: `make methods`
# measures it with all other methods (`10`), and goes on where it was when it is interrupted.
#
# **What is simulated.** The low bits. Seconds and peak memory are those of calibrating in floating point.

# %%
import pandas as pd

import passionsr_lab as lab
from passionsr_lab import plots, widgets
from passionsr_lab.evaluation import tables
from passionsr_lab.evaluation.sweep import differences, summary
from passionsr_lab.tools.notebooks import committed, figures_folder

# %% tags=["parameters"]
MODEL = "tiny"  # or a folder or hub id that lab.load reads
METHODS = {"maxmin": "MaxMin", "let": "LET's start", "lbq": "LBQ", "lbq+let": "LBQ + LET"}
METHODS |= {"passionsr-strict": "LBQ + LET + strict DQC", "passionsr": "LBQ + LET + DQC"}
RECIPE, SEED = "W6A6", 0  # of the live grid
EPOCHS, BATCH, PAIRS, SIZE = 4, 4, 16, 64  # as in `00`: the same models, from one store
TEST_PAIRS, TEST_SIZE = 8, 128
COMMITTED = "methods", "methods_published"  # figures/NAME_runs.csv: every run
FIGURES = figures_folder()

# %%
pd.Series(tables.provenance(MODEL, SEED, RECIPE) | {"device": "cpu"}, name="provenance").to_frame()

# %% [markdown]
# ## A small grid, live
# A grid is a DataFrame with one row per run; `lab.sweep` runs its rows, here one by one, on any
# `concurrent.futures` executor if it is given one, and from the store what has been run before. MaxMin is the naive
# method; the joint methods (LBQ, LBQ + LET) train everything on the final image. DQC makes as many updates of modules
# in sum (to within the rounding of epochs), fewer of the encoder and more of the decoder, which also makes good what
# the two before it did.
# DQC comes twice: *strict* is the paper to the letter, where stage 1 trains LET alone and the boundaries follow the
# moving range; in the library's `passionsr` they learn in stage 1 too, then alone in stage 2. *LET's start* trains
# nothing: it is what the three below it begin with.

# %%
configurations = lab.grid(
    model=[MODEL], recipe=[RECIPE], method=METHODS, seed=[SEED], epochs=[EPOCHS], batch=[BATCH], pairs=[PAIRS],
    size=[SIZE], test_pairs=[TEST_PAIRS], test_size=[TEST_SIZE],
)  # fmt: skip
configurations

# %%
rows = range(len(configurations))
updates = [sum(s.epochs * (3 if s.segment == "all" else 1) for s in lab.METHODS[m].stages) for m in METHODS]
costs = [3 + EPOCHS * n for n in updates]  # of each run: ranges and scores count like three epochs of one module
runs = widgets.follow(rows, len(rows), "runs", costs=costs, knobs="EPOCHS or PAIRS")
live = pd.concat([lab.sweep(configurations.iloc[[i]]) for i in runs])
live["method"] = pd.Categorical(live.method.map(METHODS), list(METHODS.values()))
columns = {
    "psnr_fp": "PSNR to full precision (dB)", "psnr_y": "PSNR-Y to HR (dB)", "ssim_y": "SSIM-Y", "seconds": "seconds",
}  # fmt: skip
print(f"Full precision: PSNR-Y {live.psnr_y_full.iloc[0]:.2f} dB, SSIM-Y {live.ssim_y_full.iloc[0]:.3f}")
live.set_index("method")[list(columns)].rename(columns=columns).round(3)

# %%
caption = {"model": MODEL, "pairs": f"{PAIRS} of {SIZE} px", "epochs": EPOCHS, "batch": BATCH, "seed": SEED}
caption |= {"one run": "each", "from the store": "as in 00", "tests": f"{TEST_PAIRS} of {TEST_SIZE} px"}
live_figure = plots.ablation(live, heading=f"Methods at {RECIPE}, live", caption=caption)
plots.save(live_figure, "ablation_live", FIGURES)
live_figure

# %% [markdown]
# PSNR against the full-precision output is the sensitive number: against HR, a few dB of quantization noise hide behind
# what the small model does not restore anyway.
#
# ## The whole table
# The same methods and the official procedure, three widths, three seeds, on test pictures that no calibration saw; as
# many steps as above, from 64 crops that each step sees once instead of 16 that it sees four times. Learning rates are
# 0.3, 1, 3 or 10 times those of above, whichever was best on tuning pictures (`figures/tuning.csv`); the official
# procedure has the released code's, and was run at W6A6.

# %%
table, tables_of_runs = None, [t for t in (committed(f"{name}_runs") for name in COMMITTED) if t is not None]
if not tables_of_runs:
    print(f"There is no figures/{COMMITTED[0]}_runs.csv yet: `make methods` makes it.")
else:
    names = METHODS | {"official": "official procedure"}
    runs = pd.concat(tables_of_runs).loc[lambda t: t.method.isin(names)]
    runs["method"] = pd.Categorical(runs.method.map(names), list(names.values()))
    runs["recipe"] = pd.Categorical(runs.recipe, runs.recipe.unique())
    runs = runs.sort_values(["recipe", "method", "seed"]).astype({"recipe": str, "method": str})
    table = summary(runs)
    settings = ["model", "pairs", "size", "epochs", "batch", "seed", "test_pairs", "test_size"]
    settings += ["passionsr_lab", "torch", "diffusers"]
    source = {name: ", ".join(map(str, sorted(runs[name].unique()))) for name in settings}
    told = {name: source[name] for name in settings[:6]}
pd.Series(source, name="provenance of the table").to_frame() if table is not None else None

# %%
if table is not None:
    best = {"psnr_y": "max", "ssim_y": "max", "psnr_fp": "max"}
    wanted = ["recipe", "method", *best, "psnr_fp_std", "cpu_seconds", "peak_gb"]
    headers = {
        "psnr_y": "PSNR-Y (dB)", "ssim_y": "SSIM-Y", "psnr_fp": "PSNR to FP (dB)", "cpu_seconds": "CPU (s)",
        "peak_gb": "peak (GB)",
    }  # fmt: skip
    caption = "Ablation on pictures that were not calibrated on; mean and standard deviation over three seeds."
    tables.to_latex(
        table[wanted], "ablation", best, caption, FIGURES, source, within="recipe", spread={"psnr_fp": "psnr_fp_std"},
        digits={"ssim_y": 3, "cpu_seconds": 0}, headers=headers,
    )  # fmt: skip
table[wanted].round(3) if table is not None else None

# %%
if table is not None:
    whole = plots.ablation(runs, heading="Methods at three widths, on the embedded model", caption=told)
    plots.save(whole, "ablation", FIGURES)
whole if table is not None else None

# %% [markdown]
# Each row less the one above it, and DQC less joint training: means of the differences between equal seeds, with half of
# their 95 % intervals.

# %%
if table is not None:
    steps = [*zip(METHODS.values(), [*METHODS.values()][1:]), ("LBQ + LET", "LBQ + LET + DQC")]
    gaps = differences(runs).set_index(["other", "method"]).loc[steps].reset_index()
    gaps = gaps.assign(step=gaps.method + " over " + gaps.other).pivot(
        index="step", columns="recipe", values=["difference", "half_width"]
    )
gaps.round(2) if table is not None else None

# %% [markdown]
# ## Any row again, or another
# With a running kernel: a row of the live table, seed and all, or any widths, modules, method and budget. Models that were
# made stand below each other with their difference to the first; the line moves between the pictures of any two, or shows
# their difference. *Deploy* adds the same model in integers, with its seconds.

# %%
pairs = lab.bundled("calibration", PAIRS, SIZE, SEED)
tests = lab.bundled("test", TEST_PAIRS, TEST_SIZE, SEED)
widgets.calibration_bench(
    lab.load(MODEL), pairs, tests, RECIPE, epochs=EPOCHS, batch=BATCH, seed=SEED, rows=configurations
)

# %% [markdown]
# ## What this showed
# LBQ over MaxMin, LBQ + LET over LBQ: each adds at every width. At 6 and 4 bits LET's untrained start alone is above LBQ.
# DQC and joint training (LBQ + LET) make equal updates; at 8 bits joint training ends half a dB nearer to full precision, at
# 6 and 4 bits three seeds do not tell them apart; the paper's DQC is 1 dB behind at 6 bits. `05` follows both in time and
# takes their modules apart: joint training may let errors of its modules cancel each other, DQC leads each to its own
# full-precision output. Boundaries that learn in stage 1 (`passionsr` against strict DQC) bring nothing for sure
# from so few crops; `10` has the same at equal cost.
#
# DQC's division of epochs was chosen for an earlier model by looking at these same test photographs, so differences of a
# few tenths of a dB between methods with LET are not to be relied on.

# %%
fidelity = live.set_index("method").psnr_fp
assert fidelity["MaxMin"] < fidelity["LBQ"] < fidelity["LBQ + LET"], fidelity.to_dict()
assert fidelity["LBQ + LET + DQC"] > fidelity["LBQ"], fidelity.to_dict()
if table is not None:
    whole_table = table.pivot_table(index="recipe", columns="method", values="psnr_fp", sort=False)
    low = whole_table.reindex(["W6A6", "W4A4"])
    assert (low["MaxMin"] < low["LBQ"]).all() and (low["LBQ"] < low["LBQ + LET"]).all(), low
    eight, full = table[table.recipe == "W8A8"], table[table.method == "full precision"].psnr_y.iloc[0]
    assert (eight[eight.method == "LBQ + LET + DQC"].psnr_y > 0.985 * full).all(), eight
print(" < ".join(f"{name} {db:.2f} dB" for name, db in fidelity.sort_values().items()))
