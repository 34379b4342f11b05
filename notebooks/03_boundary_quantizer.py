# %% [markdown]
# # 03 · The learnable boundary quantizer (LBQ)
#
# **The question.** A uniform quantizer is two boundaries and a number of bits. Where should the boundaries lie, and can
# gradient descent find the place although rounding has no gradient?
#
# **What you will see.** Eq. 3 as a staircase with its gradients; clipping against rounding on a real activation; the
# error over all pairs of boundaries; boundaries learned by gradient descent; integer against real zero point; 2 to
# 8 bits, learned on calibration pictures and measured on test pictures. About 30 seconds on two CPU cores; no download.
#
# Quantization here is **simulated** (fake quantization in floating point).

# %%
import numpy as np
import pandas as pd
import torch

import passionsr_lab as lab
from passionsr_lab import plots
from passionsr_lab.analysis.observe import layer_input
from passionsr_lab.evaluation.tables import provenance
from passionsr_lab.quantization.quantizer import BoundaryQuantizer, fake_quantize
from passionsr_lab.tools.notebooks import figures_folder
from passionsr_lab.widgets.boundaries import best_boundaries, boundary_explorer, boundary_figure, sample

# %% tags=["parameters"]
MODEL = "tiny"
LAYER = "unet.mid_block.attentions.0.proj_out"  # any Conv2d or Linear
ONE_SIDED = "vae.decoder.up_blocks.2.resnets.0.conv1"  # one that follows a SiLU
BITS = 4
ALL_BITS = (2, 3, 4, 5, 6, 7, 8)
ZERO_POINT = "integer"  # or "real", Eq. 3 to the letter
STEPS = 100  # of gradient descent
RATE = 0.01  # of Adam, relative to the range: one step moves a boundary by about 1 % of it
VALUES = 2**15  # of the activation that are used
SIZE, COUNT = 128, 8  # HR pixels and number of the crops of each split
SEED = 0
FIGURES = figures_folder()

# %%
torch.manual_seed(SEED)
pipe = lab.load(MODEL)
pd.Series(provenance(MODEL, SEED, f"{BITS} bits, {ZERO_POINT} zero point"), name="").to_frame()

# %% [markdown]
# ## Eq. 3: a staircase between two boundaries
#
# With boundaries $l < u$ and $b$ bits the step is $\Delta = (u - l)/(2^b - 1)$ and
#
# $$Q(x) = \Delta \cdot \mathrm{round}\!\left(\frac{\mathrm{clip}(x, l, u) - l}{\Delta}\right) + l .$$
#
# Backwards the rounding counts as the identity (straight through): an input inside passes its gradient on, one outside
# gives it to the boundary that clips it. Inside, a boundary still gets the rounding error's share, because $\Delta$ moves.

# %%
fig = plots.quantizer_curve(3, -0.4, 1.1, ZERO_POINT, caption="Eq. 3 itself: no model, no data")
plots.save(fig, "03_staircase", FIGURES)
fig

# %% [markdown]
# ## Naive: MaxMin on a real activation
#
# MaxMin puts the boundaries at minimum and maximum: nothing is clipped, and a few large values make every step coarse.
# Below, one layer's input for calibration pictures (to learn on) and for test pictures (to measure on).


# %%
def values(layer: str, split: str) -> torch.Tensor:
    """The layer's input for the pictures of a split, evenly thinned out to VALUES numbers."""
    pairs = lab.bundled(split, COUNT, SIZE, SEED)
    x = torch.cat([layer_input(pipe, layer, pair.lr).flatten() for pair in pairs])
    return x[:: max(1, len(x) // VALUES)]


x, x_test = values(LAYER, "calibration"), values(LAYER, "test")
low, high = x.min(), x.max()
inner = x.quantile(torch.tensor([0.001, 0.999])).tolist()
print(f"{low:.3g} to {high:.3g}, but 99.8 % of the values from {inner[0]:.3g} to {inner[1]:.3g}")
caption = {"model": MODEL, "layer": LAYER, "n": f"{len(x)} values of {COUNT} crops of {SIZE} px", "seed": SEED}
fig = boundary_figure(x, bits=BITS, zero_point=ZERO_POINT, name=LAYER, caption=caption)
plots.save(fig, "03_maxmin", FIGURES)
fig

# %% [markdown]
# Drag the boundaries: clipping noise falls as the upper one moves out, rounding noise grows with the step. The buttons go
# to MaxMin and to the best pair. The cell after it is the same picture from the plain function, at a boundary of our choice.

# %%
boundary_explorer(x, bits=BITS, zero_point=ZERO_POINT, name=LAYER, caption=caption)

# %%
boundary_figure(x, float(low) / 2, float(high) / 2, BITS, ZERO_POINT, LAYER, caption)

# %% [markdown]
# ## Is the straight-through gradient of any use?
#
# The error's true dependence on a boundary is jagged. Its slope over a stretch of 4 % of the range, against the
# gradient that autograd gives at the point in its middle:


# %%
def error(upper: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the activation for this upper boundary."""
    return (fake_quantize(x, low, upper, BITS, ZERO_POINT) - x).square().mean()


rows = []
for share in np.linspace(0.1, 1.0, 46):
    upper = (low + share * (high - low)).detach().requires_grad_()
    reach = 0.02 * (high - low)
    slope = (error(upper + reach) - error(upper - reach)) / (2 * reach)
    gradient = torch.autograd.grad(error(upper), upper)[0]
    rows += [{"upper": upper.item(), "slope": slope.item(), "by": "finite difference"}]
    rows += [{"upper": upper.item(), "slope": gradient.item(), "by": "autograd, straight through"}]
slopes = pd.DataFrame(rows)
fig = plots.curves(
    slopes, "upper", "slope", "by", ("upper boundary", "slope of the mean squared error"),
    f"Straight-through gradient against the error's true slope, {BITS} bits", caption=caption,
)  # fmt: skip
plots.save(fig, "03_gradient", FIGURES)
fig

# %% [markdown]
# ## Method: learn the two boundaries
#
# `BoundaryQuantizer` holds the boundaries as fractions of the natural range, so that one rate suits every layer. Here
# they learn this activation's squared error; in calibration they learn the module's loss (Eqs. 8 and 10, notebook 05).


# %%
def learn(x, bits: int, zero_point: str, shape: tuple = ()) -> tuple[BoundaryQuantizer, pd.DataFrame]:
    """A quantizer trained on values x (per row where shape says so), and its record per step."""
    quantizer, rows = BoundaryQuantizer(bits, shape, zero_point), []
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, 0.05 * RATE)
    for step in range(STEPS):
        loss = (quantizer(x, *ends(x, shape)) - x).square().mean()
        lower, upper = (b.mean().item() for b in quantizer.bounds(*ends(x, shape)))
        db = -10 * np.log10(loss.item() / x.square().mean().item())
        rows.append({"step": step, "sqnr": db, "lower": lower, "upper": upper})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return quantizer, pd.DataFrame(rows)


def ends(x, shape: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimum and maximum: of all, or of every row."""
    return (x.amin(1, True), x.amax(1, True)) if shape else (x.min(), x.max())


@torch.no_grad()
def sqnr(quantizer: BoundaryQuantizer, x, low, high) -> float:
    """Signal to quantization noise in dB, with boundaries relative to the calibration values' range."""
    noise = (quantizer(x, low, high) - x).square().mean()
    return 10 * torch.log10(x.square().mean() / noise).item()


quantizer, record = learn(x, BITS, ZERO_POINT)
learning = caption | {"method": "LBQ", "steps": STEPS, "one": "run"}
best_pair = best_boundaries(sample(x), BITS, ZERO_POINT)
way = record.assign(**dict(zip(("best lower", "best upper"), best_pair)))
way = way.melt("step", ["upper", "best upper", "best lower", "lower"], "boundary", "value")
heading = (
    f"Two boundaries on their way from MaxMin, {BITS} bits: {record.sqnr.iloc[0]:.1f} to {record.sqnr.max():.1f} dB"
)
fig = plots.curves(way, "step", "value", "boundary", ("step", "boundary"), heading, caption=learning)
plots.save(fig, "03_learning", FIGURES)
fig

# %% [markdown]
# Where they went, on the surface of all pairs (brighter is better):

# %%
learned = tuple(b.item() for b in quantizer.bounds(low, high))
width = float(high - low)
lowers = np.linspace(float(low), float(low) + 0.45 * width, 32)
uppers = np.linspace(float(high) - 0.45 * width, float(high), 32)
surface = plots.error_grid(x, lowers, uppers, BITS, ZERO_POINT)
fig = plots.error_surface(
    lowers, uppers, surface, {"MaxMin": (float(low), float(high)), "LBQ": learned},
    heading=f"{LAYER}: quality against the boundaries, {BITS} bits", caption=learning,
)  # fmt: skip
plots.save(fig, "03_surface", FIGURES)
fig

# %% [markdown]
# ## Comparison: 2 to 8 bits, on test pictures
#
# The integer zero point moves the grid by less than half a step so that 0 lies on it, which integer arithmetic needs
# (a padded 0 must mean 0). The real one is Eq. 3 to the letter.

# %%
rows = []
for bits in ALL_BITS:
    score = sqnr(BoundaryQuantizer(bits), x_test, low, high)
    rows.append({"bits": bits, "method": "MaxMin", "sqnr": score})
    for zero_point in ("integer", "real"):
        score = sqnr(learn(x, bits, zero_point)[0], x_test, low, high)
        rows.append({"bits": bits, "method": f"LBQ, {zero_point} zero point", "sqnr": score})
frame = pd.DataFrame(rows)
fig = plots.curves(
    frame, "bits", "sqnr", "method", ("bits", "signal to quantization noise (dB)"),
    "MaxMin against LBQ on one layer's input, test pictures (simulated)", caption=caption | {"steps": STEPS, "one": "run each"},
)  # fmt: skip
plots.save(fig, "03_bits", FIGURES)
fig

# %%
table = frame.pivot(index="bits", columns="method", values="sqnr")
table.style.format(precision=2).highlight_max(axis=1, props="font-weight: bold")

# %% [markdown]
# The gain is largest where the grid has few values, and shrinks as rounding becomes small beside clipping. What
# clipping the calibration pictures' outliers costs on other pictures is why it may vanish at 8 bits.
#
# ## Where zero matters: an input that follows a SiLU
#
# SiLU gives values from -0.28 upwards, most of them near 0. A grid without 0 moves all of those by a part of a step;
# with few bits that costs more than the freedom of a real offset can bring. The best pair is found by search.

# %%
y = values(ONE_SIDED, "calibration")
s, rows = sample(y), []
for bits in (2, 3, 4, 6, 8):
    row = {"bits": bits, "MaxMin": sqnr(BoundaryQuantizer(bits), y, y.min(), y.max())}
    for zero_point in ("integer", "real"):
        row[f"learned, {zero_point}"] = learn(y, bits, zero_point)[1].sqnr.max()
        best = best_boundaries(s, bits, zero_point)
        row[f"best, {zero_point}"] = plots.error_grid(y, [best[0]], [best[1]], bits, zero_point).item()
    rows.append(row)
one_sided = pd.DataFrame(rows).set_index("bits")
one_sided.style.format(precision=2).set_caption(f"SQNR (dB), {ONE_SIDED}, calibration pictures")

# %% [markdown]
# "Learned" is the best point on the way: here descent is not sure to end well, because one step of 1 % of this lopsided
# range can be more than all that lies below 0. The calibration guards against that: it takes back a stage whose loss
# ends above its start (notebook 05).
#
# ## Weights
#
# A weight has one pair of boundaries per output channel: the same class with another shape. Again the best on the way.

# %%
weight = pipe.get_submodule(LAYER).weight.detach().flatten(1)  # (Co, Ci x taps)
rows = {bits: learn(weight, bits, "integer", (len(weight), 1))[1].sqnr for bits in (2, 3, 4, 6)}
weights = pd.DataFrame({bits: {"MaxMin": r.iloc[0], "LBQ": r.max()} for bits, r in rows.items()}).T
weights.rename_axis("bits").style.format(precision=2).set_caption(f"SQNR (dB) of the weight of {LAYER}")

# %% [markdown]
# ## The claim
#
# Gradient descent through the straight-through estimator finds boundaries close to the best there are, and they beat
# MaxMin on pictures that were not learned from, most at few bits.

# %%
best_sqnr = plots.error_grid(x, [best_pair[0]], [best_pair[1]], BITS, ZERO_POINT).item()
assert record.sqnr.iloc[-1] > best_sqnr - 0.5, f"learned {record.sqnr.iloc[-1]:.2f} dB, best {best_sqnr:.2f} dB"
gain = table["LBQ, integer zero point"] - table["MaxMin"]
assert gain.loc[:BITS].min() > 0.5, f"learning helps at {BITS} bits and below, on test pictures"
assert gain.iloc[:2].mean() > gain.iloc[-2:].mean() > -1, "most at few bits"
assert (weights.MaxMin - 0.05 <= weights.LBQ).all()
