# %% [markdown]
# # Tour: a picture in, ×4 out, and what few bits do to it
#
# **The question.** A one-step diffusion model super-resolves a photograph with a single UNet evaluation (OSEDiff). Can
# its weights and activations be cut to 6 or 4 bits without losing the picture?
#
# **What you will see.** One photograph ×4 in full precision; the same after naive quantization (MaxMin: every range
# from minimum to maximum); the same after PassionSR (CVPR 2025): learned boundaries (LBQ, Eq. 3), an equivalent
# transformation of activations and weights (LET, Eqs. 4 and 5), calibrated module by module (DQC, Eqs. 8 to 10). Then
# the loss curves that made the difference, and a bench on which to try other bits and methods.
#
# **How long.** Under three minutes on two cores, with the knobs as they are; half a minute once the store holds the
# calibrated models. The model is small and comes with the package; nothing is downloaded.
#
# **What is simulated.** Low bits are simulated in floating point ("fake quantization"): pictures and errors are those
# of a low-bit model, speed and memory are not.

# %%
import numpy as np
import pandas as pd
import torch

import passionsr_lab as lab
from passionsr_lab import plots, widgets
from passionsr_lab.evaluation.tables import provenance
from passionsr_lab.imaging.pictures import upsample
from passionsr_lab.imaging.psnr import psnr_rgb
from passionsr_lab.tools.notebooks import figures_folder

# %% tags=["parameters"]
MODEL = "tiny"  # or a folder or hub id that lab.load reads
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RECIPES = ["W6A6", "W4A4"]  # bits of weights and activations
METHODS = {"maxmin": "MaxMin", "passionsr": "PassionSR"}  # name in the library: name in the figures
PAIRS, SIZE = 16, 64  # calibration crops and their HR pixels
EPOCHS, BATCH, SEED = 4, 4, 0  # as in `06`, so that both show the same calibrated models, from one store
TEST_SIZE = 256  # HR pixels of the test crops
PICTURE, BOX = 1, (128, 68, 64, 64)  # the test picture that is shown; x, y, width, height of the enlarged part
FIGURES = figures_folder()

# %%
pd.Series(provenance(MODEL, SEED, ", ".join(RECIPES)) | {"device": DEVICE}, name="provenance").to_frame()

# %% [markdown]
# ## A picture in, ×4 out
# `lab.load` returns the pipeline of the paper's section 3.1: VAE encoder, one UNet step at $t = 999$, VAE decoder, with
# a constant prompt embedding (PassionSR-FP). A tensor `(3, h, w)` or a PIL image goes in, the same kind comes out, ×4.
# The test photographs are never used for calibration.

# %%
pipe = lab.load(MODEL).to(DEVICE)
tests = lab.bundled("test", size=TEST_SIZE)
full = [pipe(pair.lr) for pair in tests]
name, lr, original = tests[PICTURE]
pictures = {"HR": original, "LR": lr, "bicubic": upsample(lr[None])[0], "full precision": full[PICTURE]}
plots.comparison(
    pictures, BOX, heading=f"{name}: ×4 in one step, in full precision", width=1.4 * plots.COLUMN,
    caption={"model": MODEL, "width": "full precision", "n": "1 picture"},
)  # fmt: skip

# %% [markdown]
# ## Naive: ranges from minimum to maximum. Method: PassionSR
# Both are calibrated on the same crops of *other* photographs. MaxMin only looks at the ranges. PassionSR learns: first
# LET, then the boundaries, in the encoder, the UNet and the decoder in turn, each on the quantized output of what
# precedes it. The calibration needs no HR images: its targets are the full-precision model's own latents and image.
# `lab.calibrated` keeps what it makes in a store; every notebook that asks for the same takes it from there.

# %%
calibration = lab.bundled("calibration", PAIRS, SIZE, SEED)
options = {"epochs": EPOCHS, "batch": BATCH, "seed": SEED}
asked = [(recipe, method) for recipe in RECIPES for method in METHODS]
costs = [1 + 9 * bool(lab.METHODS[method].stages) for _, method in asked]
models = {
    (recipe, METHODS[method]): lab.calibrated(pipe, recipe, method, calibration, **options)
    for recipe, method in widgets.follow(asked, len(asked), "models", costs=costs, knobs="EPOCHS or PAIRS")
}
caption = {"model": MODEL, "pairs": f"{PAIRS} of {SIZE} px", "epochs": EPOCHS, "batch": BATCH, "seed": SEED}
caption |= {"one run": "each", "from the store": "as in 06"}
records = {key: lab.records(q) for key, q in models.items()}
outputs = {key: [q(pair.lr) for pair in tests] for key, q in models.items()}

# %% [markdown]
# ## Comparison
# PSNR against the full-precision output says what quantization did; PSNR and SSIM on Y against HR say what a viewer
# gets, and also contain the model's own limits.

# %%
hr = [pair.hr for pair in tests]
rows = []
for (recipe, label), images in {("W32A32", "full precision"): full, **outputs}.items():
    scores = lab.score(images, hr).groupby("metric").value.mean()
    fidelity = np.mean([psnr_rgb(a, b) for a, b in zip(images, full)]) if images is not full else np.nan
    row = {"bits": recipe, "method": label, "PSNR to full precision (dB)": fidelity}
    rows.append(row | {"PSNR-Y (dB)": scores["psnr_y"], "SSIM-Y": scores["ssim_y"]})
table = pd.DataFrame(rows).set_index(["bits", "method"]).round(3)
table

# %%
quantized = {f"{label} {recipe}": images[PICTURE] for (recipe, label), images in outputs.items()}
scores = {label: f"{psnr_rgb(image, full[PICTURE]):.1f} dB to FP" for label, image in quantized.items()}
scores["full precision"] = "FP, PSNR to this"
heading = f"{name}: naive and calibrated quantization, PSNR against full precision (FP)"
side_by_side = plots.comparison(pictures | quantized, BOX, "HR", scores, heading, rows=2, caption=caption)
plots.save(side_by_side, "tour_comparison", FIGURES)
side_by_side

# %% [markdown]
# ## The loss curve that made the difference
# Mean squared error of each module's output against full precision: $z_L$ after the encoder (Eq. 8), $z_H$ after the
# UNet and Eq. 9 (Eq. 10), the image after the decoder. At $t = 999$ Eq. 9 multiplies the UNet's error by
# $\sqrt{(1-\bar\alpha)/\bar\alpha} = 14.6$: the UNet's loss is the largest of the three. A cross marks a stage whose
# steps together raised the loss over all pairs: it goes back along its way until the loss is below where it began.

# %%
recipe = RECIPES[-1]
loss = widgets.calibration_figure(records[recipe, "PassionSR"], recipe, "PassionSR", caption=caption)
plots.save(loss, "tour_loss", FIGURES)
loss

# %% [markdown]
# ## Your turn
# With a running kernel: choose bits and method, press *Calibrate*, watch the curves move; *Stop* ends after the present
# step and leaves a model that works in `bench.quantized`; *Deploy* makes integers of it and times those. Models that were
# made stand in a table, and a line can be moved between their pictures. Below it, such a line for the pictures above.
# The picture in the bench is `widgets.calibration_figure`, as in the cell above; that of the slider is `plots.split`,
# as in the last figure here.

# %%
bench = widgets.calibration_bench(
    pipe, calibration, tests, recipe, epochs=EPOCHS, batch=BATCH, records=records[recipe, "PassionSR"]
)
bench

# %%
versions = {label: image for label, image in (pictures | quantized).items() if label != "LR"}
left, right = (f"{label} {RECIPES[0]}" for label in METHODS.values())
widgets.Comparison(versions, left, right, quality=90)

# %%
plots.split(versions[left], versions[right], names=(left, right), caption=caption)

# %% [markdown]
# ## What this showed
# At equal bits and on pictures it never saw, calibration brings the output several dB closer to full precision than
# the naive ranges do. `01` to `04` take the method apart; `05` asks what DQC costs and gains; `06` is the ablation over
# three seeds.

# %%
gain = table["PSNR to full precision (dB)"].unstack("method")
gain = (gain["PassionSR"] - gain["MaxMin"]).dropna()
ends = pd.concat([records[r, "PassionSR"] for r in RECIPES]).query("event == 'end'")
assert (gain > 2).all(), f"PassionSR is not 2 dB over MaxMin everywhere: {gain.to_dict()}"
assert np.isfinite(ends.loss).all() and (ends.loss < ends["first"]).any(), "No stage of DQC lowered its loss"
print("PassionSR over MaxMin:", ", ".join(f"{bits} {db:+.1f} dB" for bits, db in gain.items()))
