# %% [markdown]
# # Tiles and colour
#
# **The question.** A large picture does not fit into memory at once. What do tiles change in it, how much must they
# overlap, and what do the colour fixes of OSEDiff's code (`adain`, `wavelet`) give back?
#
# **What you will see.** One photograph restored whole and in tiles: seams as a number and as maps, a sweep of tile size
# and overlap, the official scheme (encoder, UNet and decoder each in tiles of its own) beside whole paths in tiles; a
# quantized model in the tiles it was calibrated on, and in others; its colours with and without a fix; memory.
#
# **How long.** About a minute on one core.
#
# **What is simulated.** The low bits in the second half, computed in floating point. Tiles and memory are real.

# %%
import json
import subprocess
import sys

import pandas as pd
import torch

import passionsr_lab as lab
from passionsr_lab import plots
from passionsr_lab.evaluation.tables import provenance
from passionsr_lab.imaging.artefacts import colour_shift, seam_score
from passionsr_lab.imaging.colour import adain, wavelet
from passionsr_lab.imaging.pictures import upsample
from passionsr_lab.imaging.psnr import psnr_rgb, psnr_y
from passionsr_lab.imaging.tiling import Tiling, seams
from passionsr_lab.tools.notebooks import figures_folder

# %% tags=["parameters"]
MODEL = "tiny"  # or a folder or hub id that lab.load reads
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 256  # HR pixels of the picture
BOX = (80, 80, 96, 96)  # x, y, width, height of the zoom, in HR pixels
TILES = (8, 16, 32)  # edges in latent pixels; one is `pipe.factor` HR pixels
OVERLAPS = (0, 4, 8, 16)  # in latent pixels, up to half a tile; tiles begin where the UNet divides, at multiples of 4
SHOWN = 32  # the tile of the maps and of the quantized model
RECIPE, PAIRS = "W6A6", 6
MEMORY = (32, 48, 64, 80, 96)  # LR edges whose memory is measured
SEED = 1
FIGURES = figures_folder()

# %%
pipe = lab.load(MODEL).to(DEVICE)
pair = lab.bundled("test", count=1, size=SIZE, seed=SEED)[0]
whole = pipe(pair.lr, tiling=None)
pd.Series(provenance(MODEL, SEED, f"full precision, {RECIPE}") | {"device": DEVICE}, name="provenance").to_frame()

# %% [markdown]
# ## Naive: tiles side by side
# Every tile is restored as if it were a picture; nothing overlaps. The **seam score** is the jump across the tiles'
# borders over the jumps 8 and 16 pixels beside them. A picture's own edges count in it too, so it is divided by the score
# of the picture without tiles at the same lines: 1 means that the borders do not show.


# %%
def measured(tiling: Tiling) -> dict:
    """A picture in tiles: the picture, its seams, and how near it is to the one without tiles."""
    out = pipe(pair.lr, tiling)
    lines = seams(SIZE, SIZE, tiling, pipe.factor, pipe.multiple // pipe.factor)
    return {
        "picture": out,
        "seams": seam_score(out, *lines) / seam_score(whole, *lines),
        "PSNR to whole (dB)": psnr_rgb(out, whole),
        "PSNR-Y to HR (dB)": psnr_y(out, pair.hr),
    }


naive = measured(Tiling(SHOWN, 0))
pd.Series({k: v for k, v in naive.items() if k != "picture"}, name=f"tiles of {SHOWN}, no overlap").to_frame().round(2)

# %% [markdown]
# ## Method: overlap, and Gaussian weights
# Neighbours share a part, and each value is a mean of the tiles that cover it, weighted by a Gaussian of the distance to
# the tile's middle (variance 0.01 tile edges squared, as in OSEDiff's code). How much must they share?

# %%
runs = {(tile, n): measured(Tiling(tile, n)) for tile in TILES for n in OVERLAPS if n <= tile // 2}
rows = [
    {"tile": f"{tile} ({tile * pipe.factor} px)", "overlap": n} | {k: v for k, v in run.items() if k != "picture"}
    for (tile, n), run in runs.items()
]
sweep = pd.DataFrame(rows)
caption = {"model": MODEL, "width": "full precision", "n": f"1 picture of {SIZE} px", "seed": SEED}
sweep.set_index(["tile", "overlap"]).round(2)

# %%
fig = plots.curves(
    sweep, "overlap", "seams", "tile", ("overlap (latent pixels)", "seams, relative to no tiles"),
    "Seams against overlap, by the tile's edge in latents", caption=caption,
)  # fmt: skip
plots.save(fig, "08_seams", FIGURES)
fig

# %%
fig = plots.curves(
    sweep, "overlap", "PSNR to whole (dB)", "tile", ("overlap (latent pixels)", "PSNR to the whole picture (dB)"),
    "Nearness to no tiles, by the tile's edge", caption=caption,
)  # fmt: skip
plots.save(fig, "08_sweep", FIGURES)
fig

# %% [markdown]
# A small overlap ends the seams. What is left is of another kind: attention and GroupNorm see only the tile, so each tile
# has a tone of its own, and only a larger tile changes that.
#
# ## Comparison: the whole path tile by tile, or each module in tiles
# The official code cuts encoder, UNet and decoder each on its own. The decoder then normalizes by its tile's own
# statistics latents whose tone was settled in other tiles. The remedy is statistics shared by all tiles; here they come
# from a thumbnail (the official code averages them over the tiles of the VAE). Tiles that run the whole path need no such
# remedy here: the model was trained on crops, and each stage finds the statistics that it was trained with.

# %%
schemes = {
    "whole tiles": Tiling(SHOWN, SHOWN // 4),
    "whole tiles, shared norms": Tiling(SHOWN, SHOWN // 4, shared=True),
    "each module in tiles": Tiling(SHOWN, SHOWN // 2, stages=True),
    "each module in tiles, shared norms": Tiling(SHOWN, SHOWN // 2, stages=True, shared=True),
}
compared = {name: measured(tiling) for name, tiling in schemes.items()}
table = pd.DataFrame(compared).T.drop(columns="picture").astype(float)
table.round(2)

# %%
difference = lambda picture: (255 * (picture - whole)).abs().mean(0).cpu().numpy()
arrays = {"no overlap": difference(naive["picture"])}
arrays |= {
    name: difference(compared[name]["picture"])
    for name in ("whole tiles", "each module in tiles", "each module in tiles, shared norms")
}
fig = plots.maps(
    arrays,
    "8-bit levels",
    f"Difference to the picture without tiles; tiles of {SHOWN} latents",
    floor=0.5,
    caption=caption,
)
plots.save(fig, "08_maps", FIGURES)
fig

# %% [markdown]
# ## A quantized model: the tile it was calibrated on
# Ranges are those of activations in crops of one size. `q.tiling` is that size, and what `"auto"` takes for pictures that
# need tiles. Run in other tiles the same model meets other statistics.

# %%
q = lab.calibrated(pipe, RECIPE, "maxmin", lab.bundled("calibration", PAIRS, SHOWN * pipe.factor, 0))
rows, quantized = [], {}
for tile in TILES[1:]:
    full, low = runs[tile, 4]["picture"], q(pair.lr, Tiling(tile, 4))
    quantized[tile] = low
    shift = colour_shift(low, full)["mean"].abs().max()
    rows.append((tile, tile == q.tiling.tile, psnr_rgb(low, full), shift))
columns = [
    "tile",
    "calibrated on it",
    f"PSNR of {RECIPE} to full precision (dB)",
    "largest shift of a channel's mean (levels)",
]
pd.DataFrame(rows, columns=columns).round(2)

# %% [markdown]
# ## Colours, and their fixes
# MaxMin at few bits shifts colours. `adain` gives each channel the mean and standard deviation of the enlarged LR picture;
# `wavelet` takes everything that is coarser than about 32 pixels from it. A shift is in 8-bit levels, against the enlarged
# LR picture: of a channel's mean, and of its 1st and 99th percentile. Neither fix takes out the noise of low bits.

# %%
reference = upsample(pair.lr[None])[0]
FIXED = {"no fix": lambda x, y: x, "adain": adain, "wavelet": wavelet}  # as pipe(..., colour=fix) does it
unfixed = {"full precision": runs[SHOWN, 4]["picture"], RECIPE: quantized[SHOWN]}
pictures = {
    (bits, fix): function(x[None], reference[None])[0] for bits, x in unfixed.items() for fix, function in FIXED.items()
}
shifts = pd.concat({key: colour_shift(picture, reference) for key, picture in pictures.items()}, names=["bits", "fix"])
shifts.unstack().round(1)

# %%
zoomed = {"HR": pair.hr, "enlarged LR": reference} | {f"{bits}, {fix}": p for (bits, fix), p in pictures.items()}
scores = {name: f"{psnr_y(p, pair.hr):.2f} dB on Y" for name, p in zoomed.items() if name != "HR"}
heading = f"Colour fixes, in tiles of {SHOWN} latents"
fig = plots.comparison(
    zoomed, BOX, "HR", scores, heading, rows=2,
    caption=caption | {"width": f"full precision and {RECIPE}", "method": "MaxMin", "pairs": PAIRS},
)  # fmt: skip
plots.save(fig, "08_colour", FIGURES)
fig

# %% [markdown]
# ## Memory
# What restoring takes beside model and process, whole and in tiles, by the edge of a square LR picture: the most that a
# process of its own held. In tiles one row of tiles is held at a time; strips of the output leave as they are done.

# %%
MEASURE = """
import json, sys, torch
import passionsr_lab as lab
from passionsr_lab.imaging.tiling import Tiling
from passionsr_lab.util.memory import Peak

model, device, tile, edges = json.loads(sys.argv[1])
pipe, peaks = lab.load(model).to(device), []
with Peak(device) as before:
    pass
for tiling in (Tiling(tile), None):  # what takes more comes later: memory that is let go stays with the process
    for edge in edges:
        with Peak(device) as peak:
            for strip in pipe.strips(torch.rand(1, 3, edge, edge), tiling):
                del strip
        peaks.append((peak.bytes - before.bytes) / 2**20)
print(json.dumps(peaks))
"""
command = [sys.executable, "-c", MEASURE, json.dumps([MODEL, DEVICE, SHOWN, MEMORY])]
done = subprocess.run(command, capture_output=True, text=True, check=True)
pictures_by = [(name, edge) for name in (f"tiles of {SHOWN} latents", "whole") for edge in MEMORY]
rows = [{"picture": name, "edge": edge, "MiB": mib} for (name, edge), mib in zip(pictures_by, json.loads(done.stdout))]
memory = pd.DataFrame(rows)
fig = plots.curves(
    memory, "edge", "MiB", "picture", ("edge of the LR picture (pixels)", "working memory (MiB)"),
    "Memory beside the output, whole and in tiles", caption={"model": MODEL, "width": "full precision", "device": DEVICE, "one": "run each"},
)  # fmt: skip
plots.save(fig, "08_memory", FIGURES)
fig

# %% [markdown]
# ## What this showed
# Overlap ends seams; tiles that take the whole path are nearer to the picture without tiles than modules that are each cut
# into tiles with norms of their own; `adain` brings the mean colours back; and memory no longer follows the picture.

# %%
quarter = compared["whole tiles"]
assert naive["seams"] > 1.3 * quarter["seams"], (naive["seams"], quarter["seams"])
near = table["PSNR to whole (dB)"]
assert near["whole tiles"] > near["each module in tiles"]
assert near["each module in tiles, shared norms"] > near["each module in tiles"]
means = shifts["mean"].abs().groupby(level=["bits", "fix"]).max()
for bits in (RECIPE, "full precision"):  # not to nothing: values are clamped to [0, 1] afterwards
    assert means[bits, "adain"] < 0.25 * means[bits, "no fix"], means
spent = memory.set_index(["picture", "edge"]).MiB
in_tiles, at_once = spent[f"tiles of {SHOWN} latents"], spent["whole"]
assert in_tiles[MEMORY[-1]] < 0.6 * at_once[MEMORY[-1]], spent
print(f"seams {naive['seams']:.2f} without overlap, {quarter['seams']:.2f} with a quarter of a tile")
