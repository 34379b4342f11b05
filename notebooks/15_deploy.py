# %% [markdown]
# # 15 · It really runs in integers
#
# **The question.** A fake-quantized model is slower and bigger than before. What is left of a calibrated model when its
# weights are packed to their bits and its layers multiply whole numbers: is it smaller, is it the same, is it faster?
#
# **What you will see.** What became of every layer (integers, constant, float and why), what its files take, how far its
# pictures are from the simulated ones, one picture with the difference, and the seconds on the machine that runs this.
#
# **How long.** About a minute on one CPU core; seconds once the store holds the calibrated model (`00` and `06` show it
# too).
#
# Two words: **simulated** is the calibrated model in floating point, for which no time is printed; **deployed** is the
# same model in integers. Weights of fewer than 8 bits are stored as such and computed in 8-bit containers.

# %%
import tempfile

import pandas as pd
import torch

import passionsr_lab as lab
from passionsr_lab import plots
from passionsr_lab.analysis.layers import layer_numbers
from passionsr_lab.cli.deploy import summary
from passionsr_lab.evaluation.tables import provenance
from passionsr_lab.imaging.pairs import named
from passionsr_lab.imaging.psnr import psnr_rgb, psnr_y
from passionsr_lab.pages.compare import Comparison, seconds
from passionsr_lab.tools.notebooks import figures_folder
from passionsr_lab.util.machine import processor

# %% tags=["parameters"]
MODEL = "tiny"  # or a folder or hub id that lab.load reads
RECIPE, METHOD = "W6A6", "passionsr"
PAIRS, SIZE = 16, 64  # calibration crops and their HR pixels
EPOCHS, BATCH, SEED = 4, 4, 0  # as in `00` and `06`, so that all show the same calibrated model, from one store
PICTURE, BOX = "chelsea_0", (60, 36, 48, 48)  # x, y, width, height in pixels of the original
TEST_SIZE, ROUNDS = 128, 5
BACKEND = "openvino"  # or "onnxruntime"
FIGURES = figures_folder()

# %%
cpu = processor()
where = {"processor": cpu.name, "its vector instructions": ", ".join(cpu.flags or ["unknown"]), "engine": BACKEND}
pd.Series(provenance(MODEL, SEED, RECIPE) | where, name="provenance").to_frame()

# %% [markdown]
# ## Naive: the simulation
# The calibrated model computes in float and rounds as it goes: it takes the memory of full precision, and more time.

# %%
pipe = lab.load(MODEL)
pairs = lab.bundled("calibration", PAIRS, SIZE, SEED)
q = lab.calibrated(pipe, RECIPE, METHOD, pairs, epochs=EPOCHS, batch=BATCH, seed=SEED)

# %% [markdown]
# ## Method: fold, pack, run
# What is constant in one step is computed once and gone: the timestep's embedding and what every ResNet block makes of
# it, keys and values of the prompt. LET's scales go into norms and projections where no other layer reads them, and into
# the quantize step elsewhere. A weight whose whole numbers need a ninth bit for the sign is moved, channel by channel,
# and what is missing is added exactly.

# %%
folder = tempfile.mkdtemp()
report = lab.deploy(q, folder, backend=BACKEND)
rows = pd.DataFrame(report["rows"])
rows.groupby(["module", "kind", "runs", "let"], sort=False).size().rename("layers").reset_index()

# %%
rows.insert(0, "number", rows.layer.map(layer_numbers(pipe)).astype("Int64"))
rows[["number", "layer", "runs", "weight_bits", "act_bits", "let", "why"]]

# %%
told = summary(report)
size = {
    "full precision, float32": told["float32_bytes"],
    "packed whole numbers": told["codes_bytes"],
    "other numbers (steps, biases, norms, constants)": told["constants_bytes"],
    "all files": told["bytes"],
}
pd.DataFrame({"bytes": size}).assign(share=lambda t: (100 * t.bytes / told["float32_bytes"]).round(1))

# %% [markdown]
# On a processor without VNNI two products of 8-bit factors are added in 16 bits, and large sums would be cut off in
# silence. Layers that this could reach run in float there, with the same results.

# %%
deployed = lab.load_deployed(folder)
left = deployed.report["here"]["in_float"]
print(f"{len(left)} of {len(rows)} layers run in float on this processor: {', '.join(left) or 'none'}")

# %% [markdown]
# ## Comparison: the same pictures
# Layer by layer the sums of whole numbers are the reference's to the last bit (the tests prove it). End to end a value
# at half a step rounds either way, and such a flip spreads: *the simulation itself* is about as far from itself when the
# input moves by a millionth. So the yardstick is not zero, but that distance.

# %%
tests = named(lab.bundled("test", size=TEST_SIZE), [PICTURE, "astronaut_0", "motorcycle_left_0"])
outputs = {
    name: {"full precision": pipe(p.lr), "simulated": q(p.lr), "deployed": deployed(p.lr)} for name, p in tests.items()
}
again = {
    name: min(psnr_rgb(q(pair.lr * (1 + part)), outputs[name]["simulated"]) for part in (1e-6, -1e-6, 3e-6))
    for name, pair in tests.items()
}
parity = pd.DataFrame(
    {
        name: {
            "deployed to simulated (dB)": psnr_rgb(found["deployed"], found["simulated"]),
            "simulated to itself, input moved by a millionth (dB)": again[name],
            "simulated to full precision (dB)": psnr_rgb(found["simulated"], found["full precision"]),
            "PSNR-Y to HR, simulated": psnr_y(found["simulated"], tests[name].hr),
            "PSNR-Y to HR, deployed": psnr_y(found["deployed"], tests[name].hr),
        }
        for name, found in outputs.items()
    }
)
parity.round(2)

# %%
found, pair = outputs[PICTURE], tests[PICTURE]
difference = (8 * (found["deployed"] - found["simulated"]) + 0.5).clamp(0, 1)
images = {"HR": pair.hr, **found, "difference x 8": difference}
shown = {name: psnr_rgb(image, found["simulated"]) for name, image in images.items() if name in found}
scores = {name: f"{db:.1f} dB" for name, db in shown.items()} | {"simulated": "PSNR to this"}
caption = {"model": MODEL, "method": METHOD, "bits": RECIPE, "pairs": f"{PAIRS} of {SIZE} px", "epochs": EPOCHS}
caption |= {"seed": SEED, "one": "run", "n": f"1 picture of {TEST_SIZE} px", "engine": BACKEND}
heading = "Simulated and deployed: PSNR to the simulated picture"
figure = plots.comparison(images, BOX, scores=scores, heading=heading, caption=caption)
plots.save(figure, "15_deploy", FIGURES)
figure

# %% [markdown]
# ## Seconds
# On this machine and this number of threads: of the deployed model, and of full precision as diffusers runs it;
# `bench deploy` measures it beside the fastest float32 route. The simulated model has none.

# %%
for name, model in (("full precision", pipe), ("deployed", deployed)):
    took = seconds(model, pair.lr, ROUNDS)
    print(f"{name}: {took:.3f} s for {TEST_SIZE} x {TEST_SIZE} pixels, {torch.get_num_threads()} threads")

# %% [markdown]
# A line to move between any two of the pictures:

# %%
Comparison.of({"full precision": pipe, RECIPE: q, f"{RECIPE} in integers": deployed}, pair.lr, pair.hr)

# %% [markdown]
# ## The claim
# Smaller on disk, in integers, and as near to what was calibrated as the simulation is to itself.

# %%
bits = sum(int(width) * count for width, count in told["bits"].items())
assert 8 * told["codes_bytes"] < 1.001 * bits + 8 * len(rows), "weights take their bits"
assert told["bytes"] < 0.5 * told["float32_bytes"] and told["runs"]["integers"] > 0
near = parity.loc["deployed to simulated (dB)"].min()
assert near > parity.loc["simulated to itself, input moved by a millionth (dB)"].min() - 3
change = parity.loc["PSNR-Y to HR, deployed"] - parity.loc["PSNR-Y to HR, simulated"]
assert abs(change.mean()) < 0.05
