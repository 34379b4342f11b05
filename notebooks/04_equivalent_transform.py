# %% [markdown]
# # 04 · The learnable equivalent transformation (LET)
#
# **The question.** A few channels set the range of a whole activation. Can their range be moved into the weight, which
# has a quantizer for every output channel, without changing the float output at all?
#
# **What you will see.** The scale and shift of Eqs. 4 to 7 on one layer, with a knob; exactness to 1e-5 on every layer,
# and the border error of the way that is not exact; activations before and after (Figure 7); what folds into
# neighbouring layers for free and what does not; 6 and 4 bits. About 60 seconds on two CPU cores; no download.
#
# Quantization here is **simulated** (fake quantization in floating point). LET is shown at its start (SmoothQuant's
# formula); notebook 05 trains it.

# %%
from copy import deepcopy
from fnmatch import fnmatch

import pandas as pd
import torch
import torch.nn.functional as F

import passionsr_lab as lab
from passionsr_lab import plots
from passionsr_lab.analysis.layers import scale_factors
from passionsr_lab.analysis.observe import layer_input, observing
from passionsr_lab.evaluation.tables import provenance
from passionsr_lab.imaging.psnr import psnr_rgb
from passionsr_lab.quantization.layer import QuantLayer, mode
from passionsr_lab.tools.notebooks import figures_folder
from passionsr_lab.widgets import layer_explorer, layer_figure, let_explorer, let_figure
from passionsr_lab.widgets.let import let_errors

# %% tags=["parameters"]
MODEL = "tiny"
LAYER = "vae.decoder.up_blocks.2.resnets.0.conv1"  # any Conv2d with zero padding
ALPHA = 0.5  # LET's start: scale = amax|x|^ALPHA / amax|w|^(1 - ALPHA)
BITS = 4
RECIPES = ("W6A6", "W4A4")
SIZE = 128  # HR pixels of the crops
TEST_SIZE = 192
BOX = (64, 48, 48, 36)  # x, y, width, height of the zoom, in HR pixels
SEED = 0
FIGURES = figures_folder()

# %%
torch.manual_seed(SEED)
pipe = lab.load(MODEL)
calibration = lab.bundled("calibration", size=SIZE, seed=SEED)
test = lab.bundled("test", size=TEST_SIZE, seed=SEED)
pd.Series(provenance(MODEL, SEED, ", ".join(RECIPES)), name="").to_frame()

# %% [markdown]
# ## One layer: move range from the activation into the weight
#
# With a scale $s_i$ and a shift $\delta_i$ for every input channel (Eqs. 4 to 7)
#
# $$X W + B = \underbrace{\frac{X - \delta}{s}}_{\tilde X}\;\underbrace{s\,W}_{\tilde W} + \underbrace{B + \delta W}_{\tilde B} .$$
#
# A large $s_i$ shrinks channel $i$ of the activation and stretches the weight's. `ALPHA` says who takes how much: 0 looks
# at the weight alone, 1 flattens the activation completely.

# %%
layer, x = pipe.get_submodule(LAYER), layer_input(pipe, LAYER, calibration[0].lr)
alpha_caption = {"model": MODEL, "method": "LET's start", "width": f"{BITS} bits", "n": f"1 picture of {SIZE} px"}
alpha_caption |= {"seed": SEED, "one": "run"}
let_explorer(layer, x, ALPHA, BITS, LAYER, alpha_caption)

# %%
fig = let_figure(layer, x, ALPHA, BITS, LAYER, caption=alpha_caption)
plots.save(fig, "04_alpha", FIGURES)
fig

# %%
alphas = {"MaxMin (no LET)": None, f"alpha = {ALPHA}": ALPHA}
frame = pd.DataFrame({name: let_errors(layer, x, alpha, BITS) for name, alpha in alphas.items()}).T
frame.style.format(precision=1).set_caption(f"SQNR (dB) of this layer's output, {BITS} bits")

# %% [markdown]
# ## Naive: fold the shift into the bias
#
# For a convolution with zero padding the equation above is wrong at the border. After the shift, a padded 0 stands for
# the value $\delta$, not for 0; folding $\delta W$ into the bias assumes that every tap sees a shifted value. `passionsr_lab`
# pads first, with real zeros, and transforms then: the padding becomes $-\delta / s$, and one bias is exact everywhere.


# %%
def both_ways(layer, x, scale, shift) -> dict[str, torch.Tensor]:
    """Largest error over the output channels per pixel (H, W), of the naive and the exact order."""
    layer, x = deepcopy(layer).double(), x.double()
    scale, shift = (t.double().view(1, -1, 1, 1) for t in (scale, shift))
    weight = layer.weight * scale
    bias = layer.bias + F.conv2d(shift, layer.weight.sum((2, 3), keepdim=True)).flatten()
    margin = [p for p in reversed(layer.padding) for _ in range(2)]
    inputs = {
        "naive: transform, then pad with 0": F.pad((x - shift) / scale, margin),
        "exact: pad with 0, then transform": (F.pad(x, margin) - shift) / scale,
    }
    y, outputs = layer(x), {n: F.conv2d(t, weight, bias, layer.stride) for n, t in inputs.items()}
    return {name: (out - y).abs().amax(1)[0] / y.abs().max() for name, out in outputs.items()}


channels = x.transpose(0, 1).flatten(1)  # (C, n)
scale = torch.rand(len(channels)).add(0.5)
shift = (channels.amin(1) + channels.amax(1)) / 2  # the middle of each channel's range
with torch.no_grad():
    errors = both_ways(layer, x, scale, shift)
corner = {name: e[:32, :32].numpy() for name, e in errors.items()}
heading = "Upper left corner of the output: LET with a shift, two orders"
caption = {"model": MODEL, "layer": LAYER, "width": "float64", "n": "1 picture", "seed": SEED}
fig = plots.maps(corner, "error / largest output", heading, floor=1e-16, width=plots.COLUMN, caption=caption)
plots.save(fig, "04_border", FIGURES)
fig

# %%
naive, exact = errors.values()
rows = [(e[0].max().item(), e[2:-2, 2:-2].max().item()) for e in (naive, exact)]
pd.DataFrame(rows, list(errors), ["border", "interior"]).map("{:.0e}".format)

# %% [markdown]
# ## The float output of every layer is unchanged
#
# Every quantized layer of the network, with LET started on the calibration pictures and with the shift at the middle of
# each channel's range, without rounding anything: the transformed input times the transformed weight against the layer
# itself, on a test picture.

# %%
let = lab.METHODS["let"].with_options(alpha=ALPHA, beta=1 - ALPHA)
centred = lab.calibrated(pipe, "W8A8", let.with_options(centre=True), calibration)
differences = {}


def compare(layer: QuantLayer, args, y) -> None:
    """Adds the layer's largest relative difference."""
    other = layer.operate(layer.transformed_input(args[0]), layer.transformed_weight(), layer.bias())
    differences[layer.name] = ((other - y).abs().max() / y.abs().max()).item()


layers = [m for m in centred.layers.values() if isinstance(m, QuantLayer)]
handles = [m.register_forward_hook(compare) for m in layers]
with mode(centred, "float"), torch.no_grad():
    centred(test[0].lr)
for handle in handles:
    handle.remove()
worst = max(differences, key=differences.get)
print(f"{len(differences)} layers, largest relative difference {differences[worst]:.1e} in {worst}")

# %% [markdown]
# ## Figure 7: scale factors, and activations before and after
#
# W4A4 with LET's start; the values are those of the full-precision network on test pictures, before LET and as the
# quantizers see them.

# %%
q = lab.calibrated(pipe, RECIPES[-1], let, calibration)
with observing(q) as stats, mode(q, "float"):
    for pair in test[:2]:
        q(pair.lr)
caption = {"model": MODEL, "method": "LET's start", "width": RECIPES[-1]}
caption |= {"pairs": f"{len(calibration)} of {SIZE} px", "seed": SEED, "one": "run"}
fig = plots.scales(scale_factors(q), caption=caption)
plots.save(fig, "04_scales", FIGURES)
fig

# %%
before, after = stats.channels(), stats.channels(after=True)
caption["pictures"] = f"2 of the test, {TEST_SIZE} px"
fig = plots.activations(before, after, caption=caption)
plots.save(fig, "04_activations", FIGURES)
fig

# %%
layer_explorer(stats, q, LAYER, caption=caption)

# %%
fig = layer_figure(stats, LAYER, q, caption=caption)
plots.save(fig, "04_one_layer", FIGURES)
fig

# %% [markdown]
# ## What folds away, and what does not
#
# "No extra cost" (section 3.3.2) holds where $1/s$ can be absorbed by the layer before. It cannot pass a SiLU or a
# softmax: $\mathrm{SiLU}(x/s) \neq \mathrm{SiLU}(x)/s$. There one multiplication per value remains, which an integer
# engine can fuse into the quantize step. The shift costs nothing where the bias takes it, given padding with $-\delta/s$.
# The scales of the attention products fold too: that of q and k into `to_q` and `to_k`, that of v into `to_v` and
# `to_out`. By the layers' names, which are those of diffusers:

# %%
FOLDS = {  # the first pattern that matches a layer's name
    "*.attn2.to_[kv]": "into the constant prompt embedding",
    "*.attn2.to_q": "into the LayerNorm",
    "*.transformer_blocks.*.to_[qkv]": "into the LayerNorm, if q, k and v share one scale",
    "vae.*.attentions.*.to_[qkv]": "into the GroupNorm, if q, k and v share one scale",
    "*.to_out.0": "into the rows of to_v",
    "*.ff.net.0.proj": "into the LayerNorm",
    "*.ff.net.2": "into the value half of the GEGLU projection",
    "*.proj_in": "into the GroupNorm",
    "*.time_emb*": "into a constant: one timestep",
    "*.time_embedding.*": "into a constant: one timestep",
    "vae.quant_conv": "into the rows of the convolution before it",
    "vae.decoder.conv_in": "into the rows of the convolution before it",
    "*.resnets.*.conv[12]": "stays: SiLU before it",
    "*.conv_out": "stays: SiLU before it",
    "*": "stays: its input is a sum, a concatenation or a picture",
}
names = [m.name for m in layers]
where = {name: next(text for pattern, text in FOLDS.items() if fnmatch(name, pattern)) for name in names}
weights = {m.name: m.layer.weight.numel() for m in layers}
folded = pd.DataFrame({"LET's scale goes": where, "weights": weights}).groupby("LET's scale goes", sort=False)
table = folded.weights.agg(layers="count", weights="sum").sort_values("weights", ascending=False)
table["% of weights"] = (100 * table.weights / table.weights.sum()).round(1)
table

# %%
stays = table[table.index.str.startswith("stays")]
print(f"{stays.layers.sum()} of {table.layers.sum()} layers keep a multiplication per value:")
print(f"they hold {100 * stays.weights.sum() / table.weights.sum():.0f} % of the weights")

# %% [markdown]
# ## Comparison: MaxMin against LET's start
#
# Nothing is trained in either: ranges from the calibration pictures, and LET's formula. PSNR against the full-precision
# output, on test pictures.

# %%
targets = [pipe(pair.lr) for pair in test]
rows, pictures = [], {"full precision": targets[0]}
for name in RECIPES:
    for method, label in (("maxmin", "MaxMin"), (let, "LET")):
        low_bits = lab.calibrated(pipe, name, method, calibration)
        outputs = [low_bits(pair.lr) for pair in test]
        pictures[f"{label}, {name}"] = outputs[0]
        rows += [(name, label, p.name, psnr_rgb(*ys)) for p, *ys in zip(test, outputs, targets)]
scores = pd.DataFrame(rows, columns=["recipe", "method", "picture", "psnr"])
result = scores.pivot_table(index=["recipe", "method"], columns="picture", values="psnr", sort=False)
result["mean"] = result.mean(axis=1)
result.style.format(precision=2).set_caption("PSNR (dB) against full precision, simulated")

# %% [markdown]
# Below about 20 dB the pictures are broken, and PSNR no longer ranks them: MaxMin at 6 bits may score no better than at 4.

# %%
heading = "MaxMin against LET's start (simulated): PSNR to full precision"
caption = {"model": MODEL, "pairs": f"{len(calibration)} of {SIZE} px", "seed": SEED, "one": "run each"}
fig = plots.comparison(pictures, BOX, "full precision", heading=heading, caption=caption)
plots.save(fig, "04_pictures", FIGURES)
fig

# %% [markdown]
# ## The claim
#
# LET changes no float output, borders included, which folding the shift into the bias does not achieve; it evens out the
# channels; and at 6 and 4 bits it helps before anything is trained. At 4 bits that alone does not save the picture.

# %%
assert max(differences.values()) < 1e-5, "every layer's float output is unchanged"
assert exact.max() < 1e-12 < 1e-4 < naive[0].max(), "the naive order fails at the border"
assert naive[2:-2, 2:-2].max() < 1e-12, "and only there"
mean = scores.groupby(["recipe", "method"]).psnr.mean()
for name in RECIPES:
    assert mean[name, "LET"] > mean[name, "MaxMin"] + 1, f"LET helps at {name}"
