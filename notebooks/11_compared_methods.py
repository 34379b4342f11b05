# %% [markdown]
# # 11 · The compared methods: what each does to one layer
#
# **The question.** LSQ learns steps, Q-Diffusion learns which way to round, EfficientDM trains a low-rank update inside the
# integers, SVDQuant takes a low-rank part out of them. What does that look like in one layer, and where along a one-step
# network does each lose the picture?
#
# **What you will see.** The same layer of the UNet under each of the four, one picture each; then the error along the
# whole network, method by method, and what Eq. 9 makes of it at the model's timestep.
#
# **How long.** About two minutes on one core. No download. Calibrations are short and of one seed, so that nothing here
# ranks the methods; notebook 10 and the README's tables do.
#
# **What is simulated.** The low bits, computed in floating point.

# %%
import numpy as np
import pandas as pd
import torch

import passionsr_lab as lab
from passionsr_lab import plots
from passionsr_lab.analysis.observe import observing
from passionsr_lab.analysis.propagation import propagation
from passionsr_lab.calibration.loop import Calibration
from passionsr_lab.evaluation import tables
from passionsr_lab.imaging.psnr import psnr_rgb, psnr_y
from passionsr_lab.quantization.layer import mode
from passionsr_lab.tools.notebooks import figures_folder
from passionsr_lab.util.hooks import hooks
from passionsr_lab.widgets import follow

# %% tags=["parameters"]
MODEL = "tiny"  # or a folder or hub id that lab.load reads
RECIPE = "W4A4"
LAYER = "unet.mid_block.resnets.0.conv1"  # of the UNet, a convolution or linear
METHODS = ["maxmin", "lsq", "q-diffusion", "efficientdm", "svdquant", "passionsr"]
PAIRS, SIZE, EPOCHS, BATCH, SEED = 4, 64, 1, 4, 0  # short calibrations
LONGER = {"efficientdm": 8}  # epochs of a method whose update would not yet be seen
TESTS, TEST_SIZE = 4, 128  # test crops and their HR pixels
LARGER, SIZES, LARGE = "W8A8", (64, 128, 256), 2  # recipe, HR pixels and number of pictures that grow
SIDE = 48  # of the part of the weight, as a matrix, that maps show
FIGURES = figures_folder()

# %%
pd.Series(tables.provenance(MODEL, SEED, RECIPE) | {"device": "cpu"}, name="provenance").to_frame()

# %% [markdown]
# Every method calibrates the whole model; the layer is looked at when the UNet's turn comes, before anything in it is
# trained, and at the end.

# %%
pipe = lab.load(MODEL)
pairs, tests = lab.bundled("calibration", PAIRS, SIZE, SEED), lab.bundled("test", TESTS, TEST_SIZE)


@torch.no_grad()
def looked_at(layer):
    """The layer's integers, what they stand for, and the boundaries of its activation."""
    half = layer.frozen().halves[0]
    lower = float(half.act_zero * half.act_step)
    top = 2**layer.setting.act_bits - 1
    place = layer.residual_weight() / half.weight_step - half.weight_zero  # of the weight on the grid, in steps
    return {
        "codes": half.weight_codes, "step": half.weight_step.flatten(), "place": place,
        "bounds": (lower, lower + top * float(half.act_step)), "transformed": layer.transformed_weight(),
        "rest": layer.residual_weight(),
    }  # fmt: skip


def calibrated(method):
    """The calibrated model, and the layer before and after its training."""
    q = lab.quantize(pipe, RECIPE)
    work, before = Calibration(q, pairs, lab.METHODS[method], LONGER.get(method, EPOCHS), BATCH, SEED), None
    for record in work.run():
        if before is None and record["module"] == "unet" and record["event"] == "start":
            before = looked_at(q.layers[LAYER])
    after = looked_at(q.layers[LAYER])
    return q, before or after, after


models = {name: calibrated(name) for name in follow(METHODS, len(METHODS), "models", knobs="EPOCHS or PAIRS")}
label = {name: lab.METHODS[name].label for name in METHODS}
caption = {"model": MODEL, "recipe": RECIPE, "layer": LAYER}
caption |= {
    "pairs": f"{PAIRS} of {SIZE} px",
    "epochs": f"{EPOCHS}, of EfficientDM {LONGER['efficientdm']}",
    "seed": f"{SEED}, one run",
}
matrix = lambda t: t.flatten(1)[:SIDE, :SIDE].float().numpy()

# %% [markdown]
# ## LSQ: a step that is learned
# The grid of the activation at its start, at a percentile, and where the gradient of its step took it; below, by how
# much the steps of the weight's output channels moved.

# %%
q, before, after = models["lsq"]
with observing(q) as stats:
    for pair in tests:
        q(pair.lr)
values = stats.histogram(LAYER)
states = {"start": (*values, before["bounds"]), "learned": (*values, after["bounds"])}
lsq_figure = plots.histograms(
    states, q.layers[LAYER].setting.act_bits, heading="LSQ: the layer's input and the grid of its quantizer", caption=caption
)  # fmt: skip
plots.save(lsq_figure, "11_lsq", FIGURES)
lsq_figure

# %%
moved = (after["step"] / before["step"]).log2()
pd.Series({
    "activation's step, learned over start": np.subtract(*after["bounds"]) / np.subtract(*before["bounds"]),
    "weights' steps, learned over start: smallest": 2 ** moved.min().item(),
    "median": 2 ** moved.median().item(), "largest": 2 ** moved.max().item(),
}).round(3).to_frame("LSQ")  # fmt: skip

# %% [markdown]
# ## Q-Diffusion: which way to round (AdaRound)
# Left, how far every weight lies from the nearest point of its grid, in steps; right, where the learned rounding takes
# the other neighbour. With few updates it turns only near the middle between two points, where that is cheap, and not
# everywhere there: the sum over an output's inputs decides, not the single weight.

# %%
q, before, after = models["q-diffusion"]
top = 2 ** q.layers[LAYER].setting.weight_bits - 1
nearest = after["place"].round().clamp(0, top)
turned = (after["codes"] != nearest).float()
away = (after["place"] - nearest).abs().clamp(max=0.5)
rounding_figure = plots.maps(
    {"distance from the nearest point (steps)": matrix(away), "1 where rounded to the other side": matrix(turned)},
    "steps", "Q-Diffusion: the rounding of a part of the weight", caption=caption,
)  # fmt: skip
plots.save(rounding_figure, "11_q_diffusion", FIGURES)
rounding_figure

# %%
share = turned.mean().item()
distances = pd.DataFrame({"distance": away.flatten().numpy(), "turned": turned.flatten().numpy()})
by_distance = distances.groupby(pd.cut(distances.distance, [-1e-6, 0.1, 0.2, 0.3, 0.4, 0.5]), observed=True).turned.agg(
    ["mean", "size"]
)
by_distance.rename(columns={"mean": "part that turned", "size": "weights"}).round(3)

# %% [markdown]
# ## EfficientDM: a low-rank update inside the integers
# The update is added to the weight before it is rounded, so that nothing but other integers is left of it. It begins at
# the rounded weight: below half a step it moves nothing, and with few updates most of it is below. Left, by how many
# points the integers moved, in the output channels in which most did; right, the update itself in steps.

# %%
q, before, after = models["efficientdm"]
jumps = (after["codes"] - before["codes"]).abs()
update = (after["place"] - before["place"]).abs()
most = jumps.flatten(1).sum(1).argsort(descending=True, stable=True)
lora_figure = plots.maps(
    {"points that integers moved": matrix(jumps[most]), "the update (steps)": matrix(update[most])},
    "steps", "EfficientDM: what the LoRA does to a part of the weight", caption=caption,
)  # fmt: skip
plots.save(lora_figure, "11_efficientdm", FIGURES)
lora_figure

# %%
far = (update > 0.5).float().mean().item()
pd.Series({"integers that moved": (jumps > 0).float().mean().item(), "updates above half a step": far}).to_frame(
    "part of all"
).round(5)

# %% [markdown]
# ## SVDQuant: the largest directions stay in 16 bits
# Left, the weight after outliers of the input moved into it; right, what is left of it to quantize when the branch has
# taken its largest singular directions.

# %%
q, _, after = models["svdquant"]
energies = {name: after[name].square().sum().item() for name in ("transformed", "rest")}
svd_figure = plots.maps(
    {"the smoothed weight": matrix(after["transformed"].abs()), "without the branch's part": matrix(after["rest"].abs())},
    "magnitude", f"SVDQuant: a branch of rank {q.layers[LAYER].branch.rank} beside the weight", caption=caption,
)  # fmt: skip
plots.save(svd_figure, "11_svdquant", FIGURES)
svd_figure

# %% [markdown]
# ## Where each loses the picture
# The signal-to-noise ratio at every layer's output with everything before it quantized. Then Eq. 9: the error of the
# predicted noise is multiplied by $\sqrt{(1-\bar\alpha_T)/\bar\alpha_T}$ on its way to the clean latent. A multi-step
# sampler would correct a part of that in its next steps; here there are none.

# %%
frames = [propagation(q, [pair.lr for pair in tests]).assign(method=label[name]) for name, (q, _, _) in models.items()]
frame = pd.concat(frames, ignore_index=True)
layers_caption = {k: v for k, v in caption.items() if k != "layer"} | {"tests": f"{TESTS} of {TEST_SIZE} px"}
error_figure = plots.layer_curves(
    frame, "accumulated_db", "method", "accumulated SQNR (dB)", "The error along the network", caption=layers_caption
)
plots.save(error_figure, "11_propagation", FIGURES)
error_figure


# %%
@torch.no_grad()
def lost(q):
    """SQNR in dB of noise and clean latent of the UNet alone, and the PSNRs of the picture, means over tests."""
    alpha, rows = float(pipe.scheduler.alphas_cumprod[pipe.timestep]), []
    for pair in tests:
        z = pipe.encode(pipe.prepare(pair.lr[None]))  # the same for both: only the UNet's error is left
        latents = [model.denoise(z) for model in (pipe, q)]
        noises = [(z - alpha**0.5 * latent) / (1 - alpha) ** 0.5 for latent in latents]
        ratios = [10 * (a.square().sum() / (a - b).square().sum()).log10().item() for a, b in (noises, latents)]
        full, image = pipe(pair.lr), q(pair.lr)
        rows.append([*ratios, psnr_rgb(image, full), psnr_y(image, pair.hr)])
    return np.mean(rows, 0)


columns = ["UNet: SQNR of the noise", "of the clean latent", "PSNR to full precision", "PSNR-Y"]
table = pd.DataFrame({label[name]: lost(q) for name, (q, _, _) in models.items()}, index=columns).T
table.round(2)

# %% [markdown]
# ## On larger pictures
# Boundaries come from small crops, but pictures may be larger. In a channel that is nearly constant but for a few places a
# group normalization lifts these the further, the larger the picture is. So it is with the input of the last layer of the
# embedded model's UNet, in full precision: its largest value, the channel, and where in the picture it is.

# %%
places = []
for size in SIZES:
    with hooks() as add:
        add(pipe.unet.conv_out.register_forward_pre_hook, lambda _, args: places.append(args[0][0]))
        pipe(lab.bundled("test", 1, size)[0].lr)
places = [(x.max().item(), *map(int, np.unravel_index(x.argmax().item(), x.shape)), x.shape[-1]) for x in places]
told = ["largest", "channel", "row", "column", "columns in all"]
pd.DataFrame(places, index=pd.Index(SIZES, name="HR pixels"), columns=told).round(2)

# %% [markdown]
# A boundary cuts off what lies beyond it, and Eq. 9 multiplies what comes of that. LET's scale leaves such a channel room,
# since the largest of all channels sets the boundary; SVDQuant's searched scale makes channels alike. The largest value
# over the upper boundary, and what the layer's quantization costs there: PSNR to full precision, and the same with this
# layer in float. One short calibration each.


# %%
@torch.no_grad()
def grown(q, size):
    """The largest input of the UNet's last layer over its boundary, and PSNR to full precision, also with that layer in
    float; means over pictures of so many HR pixels."""
    last, rows = q.layers["unet.conv_out"], []
    top = float(last.act_quantizers[0].bounds(*last.input_ranges()[0])[1])
    for pair in lab.bundled("test", LARGE, size):
        with observing(q) as seen:
            image = q(pair.lr)
        largest = seen.layers(after=True).set_index("layer").high["unet.conv_out"]
        with mode(last, "float"):
            without = q(pair.lr)
        full = pipe(pair.lr)
        rows.append([largest / top, psnr_rgb(image, full), psnr_rgb(without, full)])
    return np.mean(rows, 0)


growth = {}
for name in ("let", "svdquant", "passionsr"):
    q = lab.calibrated(pipe, LARGER, name, pairs, epochs=EPOCHS, batch=BATCH, seed=SEED)
    growth |= {(lab.METHODS[name].label, size): grown(q, size) for size in SIZES}
larger = pd.DataFrame(growth, index=["largest over boundary", "PSNR to full precision", "last layer in float"]).T
larger.rename_axis(index=["method", "HR pixels"]).round(2)

# %%
plain = table.drop(label["svdquant"])  # which has a branch beside the integers
assert 0.01 < share < 0.5, "AdaRound turns some roundings, and not most"
assert by_distance["mean"].is_monotonic_increasing, "it turns more where two points are about as near"
assert (jumps > 0).any() and jumps.max() <= 2 ** q.layers[LAYER].setting.weight_bits
assert energies["rest"] < energies["transformed"], "the branch carries energy"
assert (table[columns[0]] > table[columns[1]]).all(), "Eq. 9 makes the error larger beside its signal"
assert (plain[columns[2]] >= plain[columns[2]][label["maxmin"]]).all(), "each is better than MaxMin"
cut = larger["last layer in float"] - larger["PSNR to full precision"]
assert cut[label["svdquant"], max(SIZES)] > cut[label["svdquant"], min(SIZES)] + 1, "what grows is cut off"
assert cut[label["svdquant"], max(SIZES)] > cut.drop(label["svdquant"], level=0).max() + 1, "and of SVDQuant most"
