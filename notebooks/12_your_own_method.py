# %% [markdown]
# # 12 · A method of your own
#
# **The question.** How much is there to write to try an idea that the library does not have, and to see it beside
# PassionSR and the others in every table and figure?
#
# **What you will see.** Three things to write, in one cell of under 60 lines: a quantizer that begins at percentiles
# instead of minimum and maximum, a learned offset of the weights' rounding, and the stages that train them. Then the
# method runs against MaxMin, LET and PassionSR, with three seeds.
#
# **How long.** Two to three minutes on one core; under a minute once the store holds the models. No download.
#
# **What is simulated.** The low bits, computed in floating point.

# %%
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

import passionsr_lab as lab
from passionsr_lab import plots, widgets
from passionsr_lab.evaluation.tables import provenance
from passionsr_lab.imaging.psnr import psnr_rgb
from passionsr_lab.quantization.filling import LET
from passionsr_lab.quantization.layer import QuantLayer
from passionsr_lab.quantization.quantizer import QUANTIZERS, Quantizer
from passionsr_lab.quantization.slots import Slot
from passionsr_lab.tools.notebooks import figures_folder

# %% tags=["parameters"]
MODEL = "tiny"  # or a folder or hub id that lab.load reads
RECIPE = "W4A4"
OTHERS = ["maxmin", "let", "passionsr"]
WEIGHTS, ACTIVATIONS = 0.999, 0.99  # the percentiles, as parts of 1, at which the own method begins
RATES = {"transform": 3e-2, "clip": 2e-2, "offset": 5e-2}  # of Adam: log scale; part of the range; step of the grid
PAIRS, SIZE, EPOCHS, BATCH = 8, 64, 2, 2  # of all methods' calibrations
SEEDS = [0, 1, 2]
TESTS, TEST_SIZE = 4, 128  # test crops and their HR pixels
FIGURES = figures_folder()

# %%
pd.Series(provenance(MODEL, ", ".join(map(str, SEEDS)), RECIPE) | {"device": "cpu"}, name="provenance").to_frame()

# %% [markdown]
# ## Three things to write
#
# 1. **What fills a slot.** A quantized layer is
#    $y = \mathrm{op}(Q_a(T x),\ Q_w(T W + \Delta)) + \mathrm{branch}(T x) + b$; quantizers, `transform`, `rounding`,
#    `delta`, `branch` and `alignment` are slots. What fills one is a `Slot`: its parameters, and a `tag` by which a stage
#    finds them. A `Quantizer` says where its boundaries lie in the natural range of what it quantizes; a rounding says
#    which point of the grid each weight goes to.
# 2. **How slots are filled.** A frozen dataclass that inherits from `Slots` (quantizers only) or `LET` (a transform
#    too): `fill` puts things in, `start` sets them from what was observed. Its fields are the method's options.
# 3. **The stages**, as data: what is trained, where, for how long, on which inputs, with which losses.
#
# `lab.register` adds the method to the table of methods. The idea here: clipping a few per mille of the weights makes
# every step finer, and where a weight goes (up or down) need not be decided at the middle between two points. Below, the
# weights of a channel share a learned offset, and activations begin at a percentile of their channels' extremes, because
# only these are kept while a model is observed.


# %%
class Percentile(Quantizer):
    """Between learned parts of the natural range, which begin at a percentile of the values."""

    tag = "clip"

    def __init__(self, bits, shape=(), zero_point="integer"):
        super().__init__(bits, shape, zero_point)
        self.part = nn.Parameter(torch.ones(2, *shape))

    @torch.no_grad()
    def start(self, x, low, high, percentile=1.0):
        rows = x.reshape(*self.shape[:1], -1)
        for i, (share, end) in enumerate(((1 - percentile, low), (percentile, high))):
            self.part[i] = (rows.quantile(share, -1).view(self.shape) / end).nan_to_num(1.0).clamp(0.1, 1.0)

    def bounds(self, low, high):
        return low * self.part[0], high * self.part[1]


class Offset(Slot):
    """Rounds weights to the grid after adding a learned offset, in steps, to those of each output channel."""

    tag = "offset"

    def __init__(self, shape):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(shape))

    def forward(self, weight, step, base, bits):
        code = (weight - base) / step + self.offset
        return base + step * (code + (code.round() - code).detach()).clamp(0, 2**bits - 1)  # straight through


@dataclass(frozen=True)
class Clipping(LET):
    quantizer: str = "percentile"
    weights: float = WEIGHTS
    activations: float = ACTIVATIONS

    def fill(self, layer):
        super().fill(layer)
        if isinstance(layer, QuantLayer):
            offsets = (Offset(q.shape) for q in layer.weight_quantizers)
            layer.rounding = nn.ModuleList(offsets).to(layer.layer.weight.device)

    def start(self, layer):
        super().start(layer)
        if isinstance(layer, QuantLayer):
            halves = layer.weight_halves(layer.residual_weight())
            for quantizer, half, ends in zip(layer.weight_quantizers, halves, layer.weight_ranges(halves)):
                quantizer.start(half, *ends, self.weights)
            extremes = layer.transform(torch.stack(layer.range.require(layer.name)), -1).split(layer.sizes, -1)
            for quantizer, half, ends in zip(layer.act_quantizers, extremes, layer.input_ranges()):
                quantizer.start(half, *ends, self.activations)


QUANTIZERS["percentile"] = Percentile
STAGES = (lab.Stage("all", ("transform", "clip")), lab.Stage("all", ("offset",)))
OWN = lab.register(lab.Method("own", "clipping + offsets", "this notebook", Clipping(), STAGES, rates=RATES))

# %% [markdown]
# ## Naive, the library's methods, and the own one
# `lab.calibrated` makes each model once and keeps it; a method of one's own has another key as soon as its cell is
# edited. All are calibrated on the same pairs, drawn anew for each seed, and measured on the same test crops of other
# photographs. These settings are short ones, the same for all; `06` has the library's methods at the usual ones.

# %%
pipe = lab.load(MODEL)
tests = lab.bundled("test", TESTS, TEST_SIZE)
full = [pipe(pair.lr) for pair in tests]
asked = [(method, seed) for method in (*OTHERS, OWN.name) for seed in SEEDS]
costs = [2 + 6 * bool(lab.METHODS[method].stages) for method, _ in asked]
rows, models = [], {}
for method, seed in widgets.follow(asked, len(asked), "models", costs=costs, knobs="EPOCHS or PAIRS"):
    pairs = lab.bundled("calibration", PAIRS, SIZE, seed)
    q = lab.calibrated(pipe, RECIPE, method, pairs, epochs=EPOCHS, batch=BATCH, seed=seed)
    psnr = sum(psnr_rgb(q(pair.lr), y) for pair, y in zip(tests, full)) / TESTS
    seconds = q.history["cost"]["cpu_seconds"] if lab.METHODS[method].stages else 0.0
    rows.append((lab.METHODS[method].label, RECIPE, seed, psnr, seconds))
    models[method, seed] = q
runs = pd.DataFrame(rows, columns=["method", "recipe", "seed", "psnr_fp", "seconds"])
table = runs.groupby("method", sort=False).agg(mean=("psnr_fp", "mean"), std=("psnr_fp", "std"), s=("seconds", "mean"))
table.round(2).rename(columns={"mean": "PSNR to full precision (dB)", "std": "± over seeds", "s": "CPU seconds"})

# %%
caption = {"model": MODEL, "pairs": f"{PAIRS} of {SIZE} px", "epochs": EPOCHS, "batch": BATCH}
caption |= {"seeds": ", ".join(map(str, SEEDS)), "tests": f"{TESTS} of {TEST_SIZE} px"}
figure = plots.ablation(runs, heading=f"A method of one's own beside the others, {RECIPE}", caption=caption)
plots.save(figure, "12_own_method", FIGURES)
figure

# %% [markdown]
# ## What was learned
# What each stage gained on the calibration pairs, and whether the line search took some of it back; how far the
# boundaries of activations and weights were pulled in, and how far the rounding was moved.

# %%
q = models[OWN.name, SEEDS[0]]
ends = lab.records(q).query("event == 'end'")
ends[["stage", "first", "loss", "step_length"]]

# %%
layers = [layer for layer in q.layers.values() if isinstance(layer, QuantLayer)]
learned = {
    "part of an activation's range": torch.cat([layer.act_quantizers[0].part.flatten() for layer in layers]),
    "part of a weight's range": torch.cat([layer.weight_quantizers[0].part.flatten() for layer in layers]),
    "offset (steps)": torch.cat([layer.rounding[0].offset.flatten() for layer in layers]),
}
quantiles = torch.tensor([0.01, 0.25, 0.5, 0.75, 0.99])
pd.DataFrame({name: x.quantile(quantiles).numpy() for name, x in learned.items()}, quantiles.tolist()).round(3)

# %% [markdown]
# ## Everywhere else
# From here on in this process "own" is a method like the others: in `lab.sweep`, in `table2.Plan`, in the bench's menu,
# for `lab.save` and `lab.load`. Commands know the methods of the process that they run in; one that is to be there for
# `passionsr-lab calibrate --method` is a file in `passionsr_lab/methods/` and a line in the table beside it, or is
# registered first: `python -c "import own; from passionsr_lab.cli.main import main; main()" calibrate --method own ...`

# %%
bench = widgets.calibration_bench(
    pipe, pairs, tests, RECIPE, OWN.name, epochs=EPOCHS, batch=BATCH, records=lab.records(q)
)
bench

# %%
widgets.calibration_figure(lab.records(q), RECIPE, OWN.label, caption=caption | {"seeds": f"{SEEDS[0]}, one run"})

# %% [markdown]
# ## What this showed
# One cell makes a method; that it is better than naive ranges holds for every seed. Whether it is better than the
# others is what the table says, at these short settings.

# %%
reached = runs.pivot(index="seed", columns="method", values="psnr_fp")
gain = reached[OWN.label] - reached["MaxMin"]
assert (gain > 2).all(), f"not 2 dB over MaxMin with every seed: {gain.to_dict()}"
print(f"{OWN.label} over MaxMin: {gain.min():.1f} dB or more with every seed")
