# %% [markdown]
# # Visual comparison
#
# **The question.** What do the decibels look like? The paper's Figures 2 and 6 put crops of all methods side by side.
#
# **What you will see.** Test photographs with a box drawn in them, and what is in the box: the original, the input,
# full precision, and every method at W6A6 and W4A4; maps of their errors on one scale; then a line to move between any
# two versions of a picture. The boxes are knobs, in pixels of the original, so that every figure can be made again.
#
# **How long.** Six to eight minutes on one core, and half a minute once the store holds the models; the cell that
# calibrates says how much is left.
#
# **What is simulated.** The low bits: these are the pictures that a low-bit model makes, computed in floating point.

# %%
import pandas as pd
import torch

import passionsr_lab as lab
from passionsr_lab import plots, widgets
from passionsr_lab.evaluation.tables import provenance
from passionsr_lab.imaging.pairs import named
from passionsr_lab.imaging.pictures import upsample
from passionsr_lab.imaging.psnr import psnr_rgb, psnr_y
from passionsr_lab.tools.notebooks import committed, figures_folder

# %% tags=["parameters"]
MODEL = "tiny"  # or a folder or hub id that lab.load reads
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RECIPES = ["W6A6", "W4A4"]
METHODS = {"maxmin": "MaxMin", "lsq": "LSQ", "q-diffusion": "Q-Diffusion", "efficientdm": "EfficientDM"}
METHODS |= {"svdquant": "SVDQuant", "passionsr": "PassionSR"}
TUNED = "tuning", "tuning_q_diffusion"  # figures/NAME.csv: learning rates of the embedded model
PAIRS, SIZE = 16, 64  # calibration crops and their HR pixels
LONG = {"q-diffusion": 30}  # what takes much longer than the others' 10, for the progress bar
EPOCHS, BATCH, SEED = 4, 4, 0
TEST_SIZE = 256  # HR pixels of the test crops; the boxes belong to this size
BOXES = {  # test picture: x, y, width, height
    "chelsea_0": (128, 68, 64, 64),
    "motorcycle_left_0": (24, 64, 80, 80),
    "astronaut_0": (108, 108, 64, 64),
}
FIGURES = figures_folder()

# %%
pd.Series(provenance(MODEL, SEED, ", ".join(RECIPES)) | {"device": DEVICE}, name="provenance").to_frame()

# %% [markdown]
# ## Naive: full precision and MaxMin. Methods: the paper's opponents, SVDQuant and PassionSR
# All are calibrated on the same crops of other photographs, those that train with the learning rates that were best on
# tuning pictures (`make methods`). `11` says what each does, `06` what PassionSR's parts bring, `10` which method is better
# and by how much. SVDQuant keeps a 16-bit branch beside every layer, which costs operations that the others do not need.

# %%
pipe = lab.load(MODEL).to(DEVICE)
tests = named(lab.bundled("test", size=TEST_SIZE), BOXES)
full = {name: pipe(pair.lr) for name, pair in tests.items()}
calibration = lab.bundled("calibration", PAIRS, SIZE, SEED)
options = {"epochs": EPOCHS, "batch": BATCH, "seed": SEED}
asked = [(recipe, method) for recipe in RECIPES for method in METHODS]
costs = [LONG.get(method, 1 + 9 * bool(lab.METHODS[method].stages)) for _, method in asked]
tables = [committed(name) for name in TUNED if MODEL == "tiny"]
rates = {r.method: r.rates for t in tables if t is not None for r in t[t.chosen].itertuples()}
models = {}
for recipe, method in widgets.follow(asked, len(asked), "models", costs=costs, knobs="EPOCHS or PAIRS"):
    tuned = lab.METHODS[method].faster(rates.get(method, 1))
    models[recipe, METHODS[method]] = lab.calibrated(pipe, recipe, tuned, calibration, **options)
caption = {"model": MODEL, "pairs": f"{PAIRS} of {SIZE} px", "epochs": EPOCHS, "batch": BATCH, "seed": SEED}
caption |= {"one run": "each", "rates": "tuned" if rates else "untuned"}
outputs = {key: {name: q(pair.lr) for name, pair in tests.items()} for key, q in models.items()}

# %%
rows = [
    (name, recipe, label, psnr_rgb(images[name], full[name]), psnr_y(images[name], tests[name].hr))
    for name in BOXES
    for (recipe, label), images in outputs.items()
]
scores = pd.DataFrame(rows, columns=["picture", "bits", "method", "PSNR to full precision (dB)", "PSNR-Y to HR (dB)"])
scores.pivot(index=["bits", "method"], columns="picture", values="PSNR to full precision (dB)").reindex(outputs).round(
    2
)


# %% [markdown]
# ## Comparison
# The number under a crop is the PSNR of the *whole* picture against the full-precision output (FP). What MaxMin leaves
# at 6 bits is coloured noise: at $t = 999$ Eq. 9 multiplies the UNet's error by 14.6, and the decoder paints an error in
# a latent channel as colour. The figures of all pictures at both widths are saved as `figures/visual_*`; three follow.


# %%
def comparison(name, recipe):
    """One photograph, all methods at one width."""
    lr = tests[name].lr
    pictures = {"HR": tests[name].hr, "LR": lr, "bicubic": upsample(lr[None])[0], "full precision": full[name]}
    pictures |= {label: images[name] for (bits, label), images in outputs.items() if bits == recipe}
    numbers = {k: f"{psnr_rgb(x, full[name]):.1f} dB to FP" for k, x in pictures.items() if k in METHODS.values()}
    numbers["full precision"] = "FP, PSNR to this"
    heading = f"{name}, ×4: all methods at {recipe}"
    return plots.comparison(pictures, BOXES[name], "HR", numbers, heading, rows=2, caption=caption)


figures = {(name, recipe): comparison(name, recipe) for name in BOXES for recipe in RECIPES}
for (name, recipe), figure in figures.items():
    plots.save(figure, f"visual_{name}_{recipe}", FIGURES)
first, second = list(BOXES)[:2]
figures[first, RECIPES[0]]

# %%
figures[first, RECIPES[-1]]

# %%
figures[second, RECIPES[0]]

# %% [markdown]
# ## Where the errors are
# How far each pixel is from full precision, the mean of |R|, |G| and |B|: all methods on one logarithmic scale.

# %%
away = {
    label: (images[first] - full[first]).abs().mean(0).cpu().numpy()
    for (recipe, label), images in outputs.items()
    if recipe == RECIPES[0]
}
heading = f"{first}: distance of every pixel to full precision at {RECIPES[0]}"
errors = plots.maps(away, "distance (of 1)", heading, floor=0.003, caption=caption)
plots.save(errors, "07_errors", FIGURES)
errors

# %% [markdown]
# ## A line between two pictures
# With a running kernel, choose what is left and right of the line and move it with the mouse or the arrow keys. The
# picture is `plots.split`, called in the next cell. LR is shown with its pixels as blocks.

# %%
blocks = tests[first].lr.repeat_interleave(4, 1).repeat_interleave(4, 2)
versions = {"HR": tests[first].hr, "LR": blocks, "full precision": full[first]}
versions |= {f"{label} {recipe}": images[first] for (recipe, label), images in outputs.items()}
left, right = f"MaxMin {RECIPES[0]}", f"PassionSR {RECIPES[0]}"
widgets.Comparison(versions, left, right, quality=35)

# %%
plots.split(versions[left], versions[right], names=(left, right), caption=caption)

# %% [markdown]
# ## What this showed
# On every picture and at both widths PassionSR is nearer to full precision than MaxMin.

# %%
reached = scores.set_index(["picture", "bits", "method"])["PSNR to full precision (dB)"].unstack("method")
assert (reached["PassionSR"] > reached["MaxMin"]).all(), reached
print(f"PassionSR over MaxMin: {(reached['PassionSR'] - reached['MaxMin']).min():.1f} dB or more on every picture")
