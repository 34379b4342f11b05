# %% [markdown]
# # 01 · One-step super-resolution, and why one step is hard to quantize
#
# **The question.** A one-step diffusion model restores a picture with a single UNet call at *t* = 999. What are its
# three calls, what did PassionSR cut from it, and why does a small error in that one call hurt so much?
#
# **What you will see.** Three calls (encode, denoise, decode) on a photograph; Eq. 9 multiplying an error in the
# predicted noise by 14.6; the pruning of the prompt branch, measured. About 20 seconds on two CPU cores; no download.
#
# Everything here is full precision: nothing is quantized in this notebook, errors are added by hand.

# %%
import pandas as pd
import torch

import passionsr_lab as lab
from passionsr_lab import plots
from passionsr_lab.evaluation.tables import provenance
from passionsr_lab.imaging.pictures import upsample
from passionsr_lab.imaging.psnr import psnr_rgb, psnr_y
from passionsr_lab.tools.notebooks import figures_folder

# %% tags=["parameters"]
MODEL = "tiny"  # the embedded model, or a folder with a prompt branch
DEVICE = "cpu"
SIZE = 256  # HR pixels of the test crops
SHOWN = 0  # which test crop is drawn
BOX = (104, 112, 64, 48)  # x, y, width, height of the zoom, in HR pixels
TIMESTEPS = (99, 199, 299, 399, 499, 599, 699, 799, 899, 999)
VARIANTS = (499, 249, 1)  # timesteps for which the model has adapters; () for a model without
NOISE = 1e-3  # standard deviation of the error that is added to eps or to z
SNRS = (10, 15, 20, 25, 30, 35, 40, 45, 50)  # dB, of the predicted noise
SEED = 0
FIGURES = figures_folder()

# %%
torch.manual_seed(SEED)
full = lab.load(MODEL, prompt=True).to(DEVICE)  # tagger + text encoder + UNet + VAE, as OSEDiff
pairs = lab.bundled("test", size=SIZE, seed=SEED)
pairs = [p._replace(lr=p.lr.to(DEVICE), hr=p.hr.to(DEVICE)) for p in pairs]
pd.Series(provenance(MODEL, SEED, "full precision") | {"device": DEVICE}, name="").to_frame()

# %% [markdown]
# ## The model: three calls
#
# `encode` maps the bicubically enlarged LR picture to a latent $z_L$; the UNet predicts the noise
# $\epsilon = \epsilon_\theta(z_L; t, c)$ in it, once; Eq. 9 of PassionSR removes that noise,
#
# $$z_H = I(z_L) = \frac{z_L - \sqrt{1-\bar\alpha_t}\;\epsilon}{\sqrt{\bar\alpha_t}}, \qquad t = 999,$$
#
# and `decode` turns $z_H$ into the HR picture. `denoise` is the UNet and Eq. 9 together.

# %%
parts = {
    "tagger (in DAPE's place)": full.prompt.tagger,
    "text encoder": full.prompt.text_encoder,
    "UNet": full.unet,
    "VAE encoder": full.vae.encoder,
    "VAE decoder": full.vae.decoder,
}
million = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in parts.items()}
pd.DataFrame({"class": {n: type(p).__name__ for n, p in parts.items()}, "parameters (M)": million}).round(3)

# %%
pruned = full.prune()  # PassionSR-FP: the same weights, a constant embedding in the prompt branch's place
pair = pairs[SHOWN]
with torch.no_grad():
    x = pruned.prepare(pair.lr[None])
    z_low = pruned.encode(x)
    eps = pruned.noise(z_low)
    z_high = pruned.clean(z_low, eps)  # Eq. 9
    image = pruned.decode(z_high)
stages = {"enlarged LR, x": x, "z_L": z_low, "predicted noise": eps, "z_H": z_high, "decoded image": image}
rows = {name: (tuple(t.shape), t.mean().item(), t.std().item()) for name, t in stages.items()}
pd.DataFrame.from_dict(rows, "index", columns=["shape", "mean", "standard deviation"]).round(3)

# %% [markdown]
# ## Naive view: an error is an error
#
# If the denoiser were an ordinary layer, an error in $\epsilon$ would reach $z_H$ at about its own size. We add Gaussian
# noise of known size to $\epsilon$, or to $z_L$ inside Eq. 9, and measure what arrives. Other timesteps use the same
# UNet output: only Eq. 9's coefficients change with *t*.


# %%
def gain(t: int, where: str) -> float:
    """Size of the error in z_H over the size of the error that was added."""
    step = full.prune()
    step.timestep = t
    error = NOISE * torch.randn(eps.shape, generator=torch.Generator().manual_seed(SEED)).to(DEVICE)
    changed = step.clean(z_low, eps + error) if where == "predicted noise" else step.clean(z_low + error, eps)
    return ((changed - step.clean(z_low, eps)).std() / error.std()).item()


alphas = full.scheduler.alphas_cumprod.double()
rows = [
    {"t": t, "gain": value, "error in": where}
    for t in TIMESTEPS
    for where, value in (
        ("√((1 − ᾱ)/ᾱ), theory", ((1 - alphas[t]) / alphas[t]).sqrt().item()),
        ("predicted noise", gain(t, "predicted noise")),
        ("z_L", gain(t, "z_L")),
    )
]
gains = pd.DataFrame(rows)
caption = {"model": MODEL, "width": "full precision", "seed": SEED, "n": "1 picture"}
fig = plots.curves(
    gains, "t", "gain", "error in", ("timestep t of the single step", "error in z_H / error added"),
    f"Eq. 9 multiplies errors: {gain(full.timestep, 'predicted noise'):.1f} times at t = {full.timestep}",
    log=("y",), caption=caption,
)  # fmt: skip
plots.save(fig, "01_amplification", FIGURES)
fig

# %% [markdown]
# ## Method: what one step at *t* = 999 demands of the UNet
#
# A quantizer leaves noise that is a fixed number of dB below its signal, about 6 dB more for every bit. Below, the
# predicted noise carries an error at a given signal-to-noise ratio; the error passes through Eq. 9's factor of each
# timestep and through the real decoder. The picture's PSNR is taken against the error-free output. A multi-step
# sampler would take most of its steps at small *t*, and later steps would repair earlier ones; one step has neither.


# %%
@torch.no_grad()
def damage(t: int, snr: float) -> float:
    """PSNR (dB) of the picture when the predicted noise has this SNR and the step is taken at t."""
    error = (
        torch.randn(eps.shape, generator=torch.Generator().manual_seed(SEED)).to(DEVICE) * eps.std() * 10 ** (-snr / 20)
    )
    factor = ((1 - alphas[t]) / alphas[t]).sqrt().float()
    clean, noisy = (pruned.decode(z).div(2).add(0.5).clamp(0, 1)[0] for z in (z_high, z_high - factor * error))
    return psnr_rgb(noisy, clean)


steps = (TIMESTEPS[2], TIMESTEPS[4], full.timestep)
rows = [{"snr": s, "psnr": damage(t, s), "step": f"at t = {t}"} for t in steps for s in SNRS]
demand = pd.DataFrame(rows)
fig = plots.curves(
    demand, "snr", "psnr", "step",
    ("signal to noise of the predicted noise (dB)", "PSNR against error-free (dB)"),
    "One UNet error, through Eq. 9 at three timesteps", caption=caption,
)  # fmt: skip
plots.save(fig, "01_demand", FIGURES)
fig

# %% [markdown]
# The curves are one curve moved sideways: going from *t* = 499 to *t* = 999 costs about as many dB as the ratio of the two
# factors. Those dB have to come from the quantizer: this is why the one-step UNet needs more bits, or better ones.
#
# An error in $z_L$ (from a quantized encoder) also passes through the UNet, which may answer to it:

# %%
with torch.no_grad():
    error = NOISE * torch.randn(z_low.shape, generator=torch.Generator().manual_seed(SEED)).to(DEVICE)
    answered = ((pruned.denoise(z_low + error) - z_high).std() / error.std()).item()
print(f"error in z_L through Eq. 9 alone: x {gain(full.timestep, 'z_L'):.2f}")
print(f"error in z_L through UNet and Eq. 9: x {answered:.2f}")

# %% [markdown]
# ## The same model at other timesteps
#
# QArtSR asks which timestep quantizes best, and retrains the one-step model there before it quantizes anything. The
# embedded model has adapters for three more: a LoRA of the time embedding and the last layers anew, fitted by least
# squares, merged on loading (`python -m passionsr_lab train --timestep 249`). In full precision the others lose up to
# a tenth of a dB; what quantization makes of them is the question of `13_four_bits`.

# %%
variants = {f"t = {full.timestep}": pruned} | {f"t = {t}": lab.load(f"{MODEL}@{t}").to(DEVICE) for t in VARIANTS}
rows = {p.name: {name: psnr_y(v(p.lr), p.hr) for name, v in variants.items()} for p in pairs}
times = pd.DataFrame(rows).T
times.insert(0, "bicubic", [psnr_y(upsample(p.lr[None])[0], p.hr) for p in pairs])
times.loc["mean"] = times.mean()
times.style.format(precision=2).set_caption("PSNR-Y (dB) against HR")

# %%
pictures = {"HR": pair.hr, "bicubic": upsample(pair.lr[None])[0]} | {n: v(pair.lr) for n, v in variants.items()}
scores = {name: psnr_y(p, pair.hr) for name, p in pictures.items() if name != "HR"}
fig = plots.comparison(
    pictures, BOX, scores=scores, heading="One model at four timesteps: PSNR-Y of the whole picture", caption=caption
)
plots.save(fig, "01_timesteps", FIGURES)
fig

# %% [markdown]
# ## Comparison: the pruning step (PassionSR section 3.2)
#
# OSEDiff asks a tagger (DAPE) and a CLIP text encoder for a prompt. PassionSR-FP replaces both by one constant
# embedding, that of the empty prompt, *before* quantizing anything: in SD2.1 that removes 353 M of 1,303 M parameters
# (Table 3). The embedded model has a small branch of the same kind, so the cut can be measured.


# %%
def measured(pair) -> dict:
    """One row: both models against HR and against each other."""
    with torch.no_grad():
        prompt, ours, theirs = full.prompt.describe(pair.lr[None])[0], pruned(pair.lr), full(pair.lr)
    return {
        "picture": pair.name,
        "prompt": prompt,
        "bicubic": psnr_y(upsample(pair.lr[None])[0], pair.hr),
        "FP, with prompt": psnr_y(theirs, pair.hr),
        "PassionSR-FP": psnr_y(ours, pair.hr),
        "one against the other": psnr_y(ours, theirs),
    }


cut = pd.DataFrame([measured(p) for p in pairs]).set_index("picture")
cut.style.format(precision=2).set_caption("PSNR-Y (dB) against HR, and of the two models against each other")

# %% [markdown]
# The last column says how much the UNet listens to its prompt: at 60 dB the two pictures differ by a quarter of an 8-bit
# level (rms). Where it is higher still, the prompt does nothing, and cutting its branch is free; that is a property of
# this small model and of its training, and need not hold for OSEDiff.

# %%
removed = million["tagger (in DAPE's place)"] + million["text encoder"]
total = sum(sum(p.numel() for p in m.parameters()) for m in (full.prompt, full.unet, full.vae)) / 1e6
print(f"removed: {removed:.3f} M of {total:.3f} M parameters ({100 * removed / total:.1f} %)")

# %%
pictures = {
    "HR": pair.hr,
    "bicubic": upsample(pair.lr[None])[0],
    "FP, with prompt": full(pair.lr),
    "PassionSR-FP": pruned(pair.lr),
}
scores = {name: psnr_y(p, pair.hr) for name, p in pictures.items() if name != "HR"}
fig = plots.comparison(
    pictures, BOX, scores=scores, heading="The cut of the prompt branch: PSNR-Y of the whole picture", caption=caption
)
plots.save(fig, "01_pruning", FIGURES)
fig

# %% [markdown]
# ## The claim
#
# Eq. 9 multiplies an error in the predicted noise by $\sqrt{(1-\bar\alpha_t)/\bar\alpha_t}$, which is 14.6 on SD2.1's
# schedule at *t* = 999; this model restores a little less at smaller timesteps; and without its prompt branch it
# is as good as with it.

# %%
theory = gains[gains["error in"].str.contains("theory")].set_index("t").gain
added = gains[gains["error in"] == "predicted noise"].set_index("t").gain
assert ((added - theory).abs() < 0.01 * theory).all(), "Eq. 9 amplifies as its coefficient says"
if full.timestep == 999:
    assert 14.5 < gain(999, "predicted noise") < 14.7
lost = (cut["FP, with prompt"] - cut["PassionSR-FP"]).mean()
assert lost < 0.3, f"cutting the prompt branch costs {lost:.2f} dB of PSNR-Y"
worst = (times.loc["mean", f"t = {full.timestep}"] - times.loc["mean"].drop("bicubic")).max()
assert worst < 0.5, f"another timestep costs {worst:.2f} dB of PSNR-Y"
