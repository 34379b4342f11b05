"""Figures: the data drawn are the data given, nothing overlaps, colours are stable, bytes are the same twice."""

import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot, rcParams, style
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

import passionsr_lab as lab
from passionsr_lab import plots
from passionsr_lab.analysis.propagation import collapse
from passionsr_lab.plots.base import METADATA
from passionsr_lab.plots.canvas import paper
from passionsr_lab.plots.colours import INK, PALETTE, method_look
from passionsr_lab.plots.texts import END
from passionsr_lab.quantization.quantizer import fake_quantize

rng = np.random.default_rng(0)
MODULES = ("encoder", "unet", "decoder")
LAYERS = [(m, f"{m}.blocks.{i}.attentions.0.ff.net.{i}") for m, n in zip(MODULES, (7, 20, 9)) for i in range(n)]
CHANNELS = pd.DataFrame([(*names, i) for names in LAYERS for i in range(8)], columns=["module", "layer", "channel"])
CHANNELS["layer"] = pd.Categorical(CHANNELS.layer, [n for _, n in LAYERS], ordered=True)  # as observe gives them
CHANNELS["scale"], CHANNELS["high"] = rng.lognormal(size=(2, len(CHANNELS)))
CHANNELS["low"] = -CHANNELS.high / 3
FLAT = CHANNELS.assign(low=-1.0, high=1.0)
ONE, RANGES = CHANNELS[CHANNELS.layer == LAYERS[3][1]], CHANNELS.drop_duplicates("layer")
NOISE = pd.DataFrame(LAYERS, columns=["module", "layer"]).assign(
    local_db=np.linspace(40, 25, 36), accumulated_db=np.linspace(38, 2, 36), gain_db=rng.normal(size=36)
)
EDGES = np.linspace(-3, 5, 41)
COUNTS = np.round(1000 * np.exp(-(((EDGES[1:] + EDGES[:-1]) / 2) ** 2)))
HR = rng.random((64, 96, 3))
PICTURES, BOX = {"HR": HR, "LR": HR[::4, ::4], "MaxMin": HR * 0.8, "PassionSR, strict": HR * 0.99}, (20, 12, 24, 16)
CAPTION = {"model": "tiny", "method": "PassionSR", "widths": "W4A4", "pairs": 16, "steps": 120, "seeds": "0, 1, 2"}
SHARES = pd.DataFrame({"encoder": [34, 8.5], "unet": [866, 216], "decoder": [3.5, np.nan]}, ["W32A32", "W8A8"])
LABELS = ("MaxMin", "LBQ", "LBQ + LET", "PassionSR, strict stages", "PassionSR")
RUNS = [(m, f"W{b}A{b}", s, 20 + 3 * i + b + s / 2) for i, m in enumerate(LABELS) for b in (8, 6, 4) for s in range(3)]
ABLATION = pd.DataFrame(RUNS, columns=["method", "recipe", "seed", "psnr_fp"])
MEANS = [(m, b, k, 25 + i) for i, m in enumerate(LABELS) for b in ("W8A8", "W6A6") for k in ("psnr_y", "ssim_y")]
INTERVALS = pd.DataFrame(MEANS, columns=["method", "bits", "metric", "mean"])
INTERVALS = INTERVALS.assign(low=INTERVALS["mean"] - 1, high=INTERVALS["mean"] + 2)
TIMES = [(m, s, t + s / 3, 20 + k * t + s) for k, m in enumerate(LABELS[2::2]) for s in range(3) for t in range(9)]
TIMES = pd.DataFrame(TIMES, columns=["method", "seed", "seconds", "psnr_fp"])
BITS = [(b, m, 6 * b) for m in ("MaxMin", "LBQ, integer zero point", "LBQ, real") for b in range(2, 9)]
BITS = pd.DataFrame(BITS, columns=["bits", "method", "db"])
SWEEP = pd.DataFrame({"upper": [1.0, 5], "clipping_db": [-9.0, -120], "rounding_db": [-20.0, -15], "total_db": -12.0})
ALPHA = pd.DataFrame({"alpha": [0, 1], "activation_db": [20.0, 25], "weight_db": [30.0, 20], "both_db": [19.0, 18]})
STATE = (EDGES, COUNTS, (-1, 2))
LONG = "A long heading that takes more than one line: " + LAYERS[3][1]


def records(run="PassionSR", modules=MODULES, steps=40, step_length=1.0):
    rows = []
    for module, stage in ((m, s) for m in modules for s in ("transform", "bounds")):
        rows.append(("start", module, stage, 0, 0.02, 1.0))
        rows += [("step", module, stage, i + 1, 0.02 * 0.97**i * (1 + i % 3), 1.0) for i in range(steps)]
        rows.append(("end", module, stage, steps, 0.006, step_length))
    frame = pd.DataFrame(rows, columns=["event", "module", "stage", "step", "loss", "step_length"])
    return frame.assign(of=steps, run=run)


FIGURES = {
    "ablation": (plots.ablation, ABLATION),
    "ablation, one seed": (plots.ablation, ABLATION[ABLATION.seed == 0]),
    "activations of the model": (plots.activations, CHANNELS, CHANNELS.assign(low=-1.0, high=CHANNELS.high**0.2)),
    "activations of a layer": (plots.activations, ONE, ONE),
    "boundaries": (plots.boundary_panels, EDGES, COUNTS, (-3, 5), (-2, 3), SWEEP, -18.0, 3, "integer", LONG),
    "channel ranges": (plots.channel_ranges, ONE, (-0.5, 0.5), LONG),
    "comparison": (plots.comparison, PICTURES, BOX),
    "comparison in a column": (plots.comparison, PICTURES, BOX, None, None, LONG, plots.COLUMN),
    "curves": (plots.curves, BITS, "bits", "db", "method", ("bits", "signal to quantization noise (dB)"), LONG),
    "curves of seeds": (plots.curves, ABLATION, "recipe", "psnr_fp", "method"),
    "curves, many": (plots.curves, NOISE.head(9).assign(x=1.0), "x", "local_db", "layer", ("", ""), "", ("x",), 1.1),
    "histogram": (plots.histogram, *STATE, 4),
    "histograms": (plots.histograms, {"before": (EDGES, COUNTS, None), "after": (EDGES / 2, COUNTS, (-1, 1))}, 6),
    "intervals": (plots.intervals, INTERVALS),
    "layer": (plots.layer_panels, {"before LET": (*STATE, ONE), "after LET": (EDGES / 3, COUNTS, (-1, 1), ONE)}, 4),
    "layer curves": (plots.layer_curves, ABLATION.assign(layer=ABLATION.recipe), "psnr_fp", "method", "dB", LONG),
    "layer ranges": (plots.layer_ranges, RANGES),
    "loss": (plots.loss_curves, pd.concat([records(), records("LBQ + LET", ("all",), step_length=0.0)])),
    "loss of one module": (plots.loss_curves, records(modules=("unet",)).drop(columns="run")),
    "loss over all pairs": (plots.loss_curves, records(step_length=0.5), LONG, 1),
    "maps": (plots.maps, {"naive: shift, then pad": np.eye(9), "exact": np.zeros((9, 9))}, "error", LONG, 1e-9, 3.25),
    "propagation": (plots.propagation, NOISE),
    "quality": (plots.quality_over_time, TIMES.assign(updates=TIMES.seconds // 1)),
    "quantizer": (plots.quantizer_curve, 3, -0.4, 1.1),
    "scale": (plots.scale_panels, ONE, ONE, ALPHA, 0.5, "LET with alpha = 0.5"),
    "scales": (plots.scales, CHANNELS),
    "sensitivity": (plots.sensitivity, NOISE),
    "sensitivity, low": (plots.sensitivity, NOISE, "local_db", "low", 5),
    "shares": (plots.shares, SHARES, "parameters (M)"),
    "widths": (plots.widths, pd.DataFrame({"budget": [3, 4], "predicted_db": [20, 30.0]}), NOISE.assign(bits=4), 3.5),
    "split": (plots.split, HR, HR / 2, 0.4, ("HR", "MaxMin W4A4")),
    "surface": (plots.error_surface, [-2, -1], [1, 2, 3], np.arange(6.0).reshape(2, 3), {"MaxMin": (-2, 3)}),
}


def made(name, **options):
    draw, *arguments = FIGURES[name]
    return draw(*arguments, **options)


def texts(fig):
    """All that is written; labels of ticks outside an axis' limits exist but are not drawn."""
    axes = [axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis, *(child.xaxis for child in ax.child_axes))]
    labels = {t for axis in axes for t in (*axis.get_ticklabels(), *axis.get_ticklabels(minor=True))}
    shown = {
        t for axis in axes if axis.axes.axison for tick in axis._update_ticks() for t in (tick.label1, tick.label2)
    }
    found = [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip()]
    return [t for t in found if t not in labels or t in shown]


def check_texts(fig):
    """Nothing that is written overlaps, is cut off, or is too small to read, and no legend lies over axes."""
    fig.draw_without_rendering()
    boxes = [(text, text.get_window_extent().padded(-1)) for text in texts(fig)]
    for i, (text, box) in enumerate(boxes):
        assert text.get_fontsize() >= 6
        assert box.x0 > -2 and box.x1 < fig.bbox.width + 2 and box.y0 > -2 and box.y1 < fig.bbox.height + 2, text
        assert not [other for other, place in boxes[:i] if box.overlaps(place)], text
    for legend in fig.legends:
        assert not any(legend.get_window_extent().overlaps(ax.get_window_extent()) for ax in fig.axes)
    assert fig.get_suptitle() and fig.texts[-1].get_text().replace("\xa0", " ").startswith("model tiny · method")


@pytest.mark.parametrize("name", FIGURES)
def test_texts_are_apart_and_a_second_run_writes_the_same_bytes(name, tmp_path):
    first, second = made(name, caption=CAPTION), made(name, caption=CAPTION)
    with paper():
        check_texts(first)
    shown = second._repr_png_()  # having been shown makes no difference
    pdf, again = (plots.save(fig, "figure", tmp_path, ("pdf",))[0].read_bytes() for fig in (first, second))
    assert pdf == again and shown == first._repr_png_() and not pyplot.get_fignums()
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+)", pdf)
    assert [float(v) / 72 for v in box.groups()] == pytest.approx(list(first.get_size_inches()), abs=1e-3)
    assert first.get_figwidth() in (plots.COLUMN, plots.PAGE) == (3.25, 6.875)
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf


def test_a_caption_moves_nothing_on_paper():
    for name in ("ablation", "surface", "comparison"):
        plain, captioned = made(name), made(name, caption="Of the tiny model")
        extra = captioned.get_figheight() - plain.get_figheight()
        for a, b in zip(plain.axes, captioned.axes, strict=True):
            places = [ax.get_position().extents * np.tile(ax.figure.get_size_inches(), 2) for ax in (a, b)]
            assert places[1] - places[0] == pytest.approx([0, extra, 0, extra], abs=1e-6) and extra > 0.1


SCRIPT = """
import sys
from passionsr_lab import plots
import passionsr_lab.evaluation.tables
assert not {"matplotlib", "seaborn"} & {*sys.modules}
import pandas, matplotlib
if sys.argv[2] == "2":
    matplotlib.rcParams.update({"font.size": 30, "axes.facecolor": "red", "pdf.compression": 0})
before = dict(matplotlib.rcParams)
frame = pandas.DataFrame({"method": list("aabb"), "recipe": "W6A6", "psnr_fp": [1.0, 2, 3, 5]})
plots.save(plots.ablation(frame), "figure", sys.argv[1], ("pdf", "png", "svg"))
assert dict(matplotlib.rcParams) == before
"""


def test_another_process_with_other_settings_writes_the_same_bytes(tmp_path):
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": f"{seed}00000000"}
        subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / seed, seed], check=True, env=environment)
    for suffix in METADATA:
        first, second = ((tmp_path / seed / f"figure.{suffix}").read_bytes() for seed in "12")
        assert first == second and not re.search(rb"CreationDate|ModDate|dc:date", first)


def test_a_failed_save_leaves_the_old_file(tmp_path):
    fig, path = made("histogram"), tmp_path / "figure.png"
    path.write_bytes(b"old")
    fig.add_axes((0, 0, 1, 1)).set_xlabel("$\\broken$")
    for formats, message in ((("png",), "broken"), (("png", "jpg"), "not 'jpg'")):
        with pytest.raises(ValueError, match=message):
            plots.save(fig, "figure", tmp_path, formats)
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"] and path.read_bytes() == b"old"


def test_a_method_has_its_colour_whatever_else_is_drawn():
    for i, method in enumerate(lab.METHODS.values()):
        assert plots.method_colour(method.label) == plots.method_colour(method.name) == PALETTE[i % len(PALETTE)]
    assert plots.method_colour("PassionSR, then end to end, 256 crops") == plots.method_colour("passionsr+e2e")
    assert plots.method_colour("PassionSR, 256 crops") == plots.method_colour("passionsr")
    for labels in (LABELS, LABELS[2:], LABELS[::-2]):
        named = plots.ablation(ABLATION[ABLATION.method.isin(labels)]).axes[0].texts
        assert {t.get_text().replace("\n", " "): t.get_color() for t in named} == {
            m: plots.method_colour(m) for m in labels
        }
    looks = {tuple(method_look(name).values()) for name in (*lab.METHODS, *"abcdefghi")}
    assert len(looks) == len(lab.METHODS) + 9, "colour, mark and stroke together tell all of them apart"
    with style.context("passionsr_lab.plots.paper"):
        assert rcParams["axes.prop_cycle"].by_key()["color"] == [*PALETTE]


def test_a_module_has_its_colour_in_every_figure():
    colours = [plots.module_colour(module) for module in MODULES]
    assert len({*colours, *PALETTE}) == 3 + len(PALETTE)
    assert [to_hex(bar.get_facecolor()) for bar in made("shares").axes[0].patches[::2]] == colours
    names = made("scales").axes[0].child_axes[0].get_xticklabels()
    assert [(t.get_text(), t.get_color()) for t in names] == [*zip(MODULES, colours)]
    lines = made("layer ranges").axes[0].collections[0].get_colors()
    assert [*dict.fromkeys(map(to_hex, lines))] == colours


def test_the_box_drawn_is_the_crop_shown():
    whole, *crops = plots.comparison(PICTURES, BOX).axes
    assert whole.patches[0].get_bbox().bounds == (19.5, 11.5, 24, 16)  # pixel i spans i - 0.5 to i + 0.5
    assert whole.images[0].get_extent() == [-0.5, 95.5, 63.5, -0.5] and "24×16 px at (20, 12)" in whole.get_xlabel()
    assert np.array_equal(crops[0].images[0].get_array(), HR[12:28, 20:44])
    lr = crops[1].images[0].get_array()
    assert lr.shape == (16, 24, 3) and np.array_equal(lr[::4, ::4], HR[12:28:4, 20:44:4])


def test_pictures_of_all_kinds_are_the_same_picture_and_psnr_stands_under_them():
    pixels = (HR * 255).round().astype(np.uint8)
    tensor = torch.from_numpy(pixels / 255).permute(2, 0, 1)
    kinds = {"HR": pixels, "PIL": Image.fromarray(pixels), "tensor": tensor, "batch": tensor[None].float()}
    crops = [ax.images[0].get_array() for ax in plots.comparison(kinds, BOX).axes[1:]]
    assert all(np.allclose(crop, crops[0], atol=1e-7) for crop in crops)
    expected = -10 * np.log10(np.mean((HR * 0.2) ** 2))
    measured = ["PSNR to this", "", f"{expected:.2f} dB", f"{expected + 20 * np.log10(20):.2f} dB"]
    for scores, under in ((None, measured), ({"LR": "input", "MaxMin": 24.5}, ["", "input", "24.50 dB", ""])):
        axes = plots.comparison(PICTURES, BOX, scores=scores).axes
        assert [ax.get_xlabel().split("\n")[-1] for ax in axes[1:]] == under


@pytest.mark.parametrize(("bits", "zero_point"), [(2, "integer"), (4, "real"), (8, "integer")])
def test_quantizer_curve_is_fake_quantize(bits, zero_point):
    output, error, gradients = plots.quantizer_curve(bits, -0.3, 1.2, zero_point).axes[:3]
    x, y = (torch.as_tensor(v) for v in output.lines[0].get_data())
    low, high = torch.tensor(-0.3), torch.tensor(1.2)
    assert torch.equal(y, fake_quantize(x, low, high, bits, zero_point))
    assert torch.equal(torch.as_tensor(error.lines[0].get_ydata()), y - x)
    for i, line in enumerate(gradients.lines):
        inputs = [x.clone(), torch.full_like(x, -0.3), torch.full_like(x, 1.2)]
        inputs[i].requires_grad_()
        fake_quantize(*inputs, bits, zero_point).sum().backward()
        assert torch.equal(torch.as_tensor(line.get_ydata()), inputs[i].grad)


def test_error_grid_finds_the_boundaries_of_uniform_values():
    x, edges = torch.linspace(-1, 1, 2001), np.linspace(0.5, 1.5, 11)
    quality = plots.error_grid(x, -edges, edges, 8, "real")
    assert np.unravel_index(quality.argmax(), quality.shape) == (5, 5)
    assert plots.error_grid(torch.linspace(0, 1, 256), [0.0], [0.5, 1.0], 4).round(1).tolist() == [[9.0, 29.6]]
    assert np.isnan(plots.error_grid(x, [1.0], [0.5], 4)).all()
    marked = plots.error_surface(-edges[::-1], edges, quality[::-1]).axes[0].lines[0]
    assert marked.get_xydata()[0] == pytest.approx([-1, 1])


def test_histogram_shows_the_grid_and_what_is_clipped():
    levels = [segment[0, 0] for segment in plots.histogram(*STATE, 3).axes[0].collections[0].get_segments()]
    done = fake_quantize(torch.linspace(-3, 5, 999), torch.tensor(-1.0), torch.tensor(2.0), 3).unique()
    assert levels == pytest.approx(done.tolist(), abs=1e-6)
    share = 100 * COUNTS[(EDGES[1:] <= -1) | (EDGES[:-1] >= 2)].sum() / COUNTS.sum()
    few = ([0, 1, 2], [1e6, 1], (0, 1))
    for state, text in ((STATE, f"{share:.2f} %"), ((EDGES, COUNTS, (-3, 5)), "0 %"), (few, "< 0.01 %")):
        assert plots.histogram(*state).axes[0].get_title("left") == f"{text} clipped"


def test_loss_panels_hold_every_step_and_both_levels():
    fig = plots.loss_curves(records(), smooth=1)
    assert [ax.get_title("left") for ax in fig.axes] == [*MODULES]
    lines = [line for line in fig.axes[1].lines if len(line.get_xdata()) > 1]
    levels = [line.get_xydata()[0].tolist() for line in fig.axes[1].lines if len(line.get_xdata()) == 1]
    assert [list(line.get_xdata()) for line in lines] == [[*range(1, 41)], [*range(41, 81)]]
    assert list(lines[0].get_ydata()) == pytest.approx(list(records().query("event == 'step'").loss[:40]))
    assert levels == [[0, 0.02], [40, 0.006], [40, 0.02], [80, 0.006]]
    assert [text.get_text() for text in fig.axes[1].child_axes[0].get_xticklabels()] == ["LET", "LBQ"]
    for kept in (1.0, 0.5):
        fig = plots.loss_curves(records(step_length=kept))
        crossed = any(line.get_marker() == "X" and len(line.get_xdata()) for ax in fig.axes for line in ax.lines)
        said = "stage taken back, partly or wholly" in [t.get_text() for t in fig.legends[0].texts]
        assert crossed == said == (kept < 1)


def test_a_run_in_progress_has_curves_and_losses_that_hardly_differ_have_ticks():
    for count in (1, 2, 20, 60):
        begun = records().head(count).drop(columns="run")
        for frame in (begun, begun.assign(event="plan", loss=np.nan)):
            plots.loss_curves(frame).draw_without_rendering()
    ax = plots.loss_curves(records(modules=("unet",)).assign(loss=lambda f: 3.05e-4 * (1 + 1e-7 * f.step))).axes[0]
    ticks = [t.get_text() for t in ax.get_yticklabels() if ax.get_ylim()[0] <= t.get_position()[1] <= ax.get_ylim()[1]]
    assert ticks and len(set(ticks)) == len(ticks)


def test_quality_is_the_mean_of_the_seeds_compared_where_the_first_method_ended():
    mean = next(line for line in plots.quality_over_time(TIMES).axes[0].lines if line.get_label() == "PassionSR")
    x = mean.get_xdata()
    assert x[0] == pytest.approx(2 / 3) and x[-1] == 8 and mean.get_ydata() == pytest.approx(21 + x - 1 / 3)
    rows = [("DQC", u, 2 * u, 30 + u) for u in range(0, 13, 3)] + [("joint", u, 5 * u, 28 + u) for u in (0, 6, 12)]
    axes = plots.quality_over_time(pd.DataFrame(rows, columns=["method", "updates", "seconds", "psnr_fp"])).axes
    assert axes[0].get_title("left") == "at equal steps, 12 updates: DQC 42.00, joint 40.00"
    assert axes[1].get_title("left") == "at equal seconds, 24 s: DQC 42.00, joint 32.80"  # 24 s is the joint's 4.8
    rows = [("joint", 0, 30), ("joint", 8, 28), ("joint", 12, 27), ("joint", 12, 31), ("DQC", 0, 30), ("DQC", 10, 31)]
    ax = plots.quality_over_time(pd.DataFrame(rows, columns=["method", "seconds", "psnr_fp"])).axes[0]
    assert ax.get_title("left") == "at equal seconds, 10 s: joint 27.50, DQC 31.00"  # one taken back at 12 s


def test_curves_show_seeds_as_mean_and_band_and_their_names_at_their_ends():
    seeds = pd.DataFrame({"bits": [2, 2, 4, 4], "db": [6.0, 8, 18, 20], "method": "LBQ"})
    ax = plots.curves(seeds, "bits", "db", "method").axes[0]
    assert ax.lines[0].get_ydata().tolist() == [7, 19]
    band = sorted({*ax.collections[0].get_paths()[0].vertices[:, 1]})
    assert band == pytest.approx([7 - 2**0.5, 7 + 2**0.5, 19 - 2**0.5, 19 + 2**0.5])  # one standard deviation
    single = plots.curves(BITS, "bits", "db", "method").axes[0]
    assert not single.collections and [t.get_gid() for t in single.texts] == [END] * 3
    under, over = single.lines[0], single.lines[2]  # the same values: both are seen
    assert under.get_markersize() > over.get_markersize() and under.get_markerfacecolor() == "none"
    apart = plots.curves(seeds, "bits", "db", "method", joined=False).axes[0].lines[0]  # rows that are no way
    assert apart.get_linestyle() == "None" and apart.get_ydata().tolist() == [6, 8, 18, 20]


def test_layers_stay_in_network_order():
    segments = plots.layer_ranges(RANGES).axes[0].collections[0].get_segments()
    assert np.allclose([s[:, 1] for s in segments], RANGES[["low", "high"]])
    lines = [line for line in plots.scales(CHANNELS).axes[0].lines if line.get_color() == INK]
    medians = [line.get_ydata()[0] for line in sorted(lines, key=lambda line: line.get_xdata().mean())]
    assert medians == pytest.approx([*CHANNELS.groupby("layer", observed=True).scale.median()])
    frame = pd.DataFrame({"layer": ["a", "attention", "b"], "low": [-1, None, -5], "high": [1, None, 2]})
    assert plots.layer_ranges(frame).axes[0].get_title("left") == "widest: 3 b, -5 to 2"


def test_before_and_after_let_share_their_axes_and_the_fill_is_written():
    before, after = plots.activations(ONE, FLAT[FLAT.layer == LAYERS[3][1]]).axes
    share = (ONE.high - ONE.low).median() / (ONE.high.max() - ONE.low.min())
    assert f"fills {100 * share:.0f} %" in before.get_title("left") and "fills 100 %" in after.get_title("left")
    assert before.get_ylim() == after.get_ylim()
    panels = made("layer").axes
    assert panels[0].get_xlim() == panels[1].get_xlim() and panels[2].get_ylim() == panels[3].get_ylim()
    medians = [line.get_ydata()[0] for line in plots.activations(FLAT, FLAT).axes[0].lines if line.get_color() == INK]
    assert medians == [1] * len(LAYERS)  # a box without height is seen as well
    constant = FLAT.assign(low=FLAT.high.where(FLAT.layer == LAYERS[9][1], -1.0))
    assert plots.activations(FLAT, constant).axes[1].get_xlabel().endswith("(gaps: constant input)")


def test_the_collapse_named_is_the_librarys():
    assert plots.propagation(NOISE).axes[0].get_title("left").endswith(collapse(NOISE))
    none = plots.propagation(NOISE.assign(local_db=np.inf), floor=-5).axes[0]
    assert none.get_title("left") == "accumulated stays above -5 dB"


def test_the_worst_layer_is_on_top():
    for value, worst in (("gain_db", "high"), ("local_db", "low")):
        ax = plots.sensitivity(NOISE, value, worst, top=4).axes[0]
        ranked = NOISE.sort_values(value, ascending=worst == "low").head(4)
        beside = [f"{db:.2f} {module}" for db, module in zip(ranked[value], ranked.module)]
        assert [t.get_text() for t in ax.texts[::2]] == [*ranked.layer] and ax.get_ylim()[0] > ax.get_ylim()[1]
        assert [t.get_text().strip() for t in ax.texts[1::2]] == beside


def marks_and_bars(ax):
    """The heights of all marks, and the ends of all error bars that are drawn."""
    marks = [y for line in ax.lines if line.get_marker() != "None" for y in line.get_ydata()]
    ends = [line.get_ydata() for line in ax.lines if line.get_marker() == "None"]
    return marks, [tuple(y) for y in ends if np.isfinite(y).all()]


def test_means_have_their_intervals_and_one_seed_has_none():
    marks, bars = marks_and_bars(made("ablation").axes[0])
    own = ABLATION.groupby(["method", "recipe"], sort=False).psnr_fp
    assert marks == pytest.approx([*own.mean()])
    assert [b - a for a, b in bars] == pytest.approx([*2 * own.std()])
    one = made("ablation, one seed").axes[0]
    assert one.get_title("left") == "one seed (n = 1)" and not marks_and_bars(one)[1] and not one.collections
    panels = made("intervals").axes
    assert [ax.get_ylabel() for ax in panels] == ["psnr_y", "ssim_y"]
    assert marks_and_bars(panels[0]) == (
        [25 + i // 2 for i in range(10)],
        [(24 + i // 2, 27 + i // 2) for i in range(10)],
    )
    assert not marks_and_bars(plots.intervals(INTERVALS.assign(low=np.nan, high=np.nan)).axes[0])[1]


def test_the_segments_of_a_bar_add_up_and_what_is_too_small_is_written():
    ax = made("shares").axes[0]
    assert sum(patch.get_width() for patch in ax.patches) == pytest.approx(SHARES.sum().sum())
    assert [t.get_text().strip() for t in ax.texts] == ["903.5 (decoder 3.5)", "224.5 (encoder 8.5)"]


WRONG = {
    "lacks the column 'event'": (plots.loss_curves, NOISE),
    "no rows": (plots.loss_curves, records().head(0)),
    "has no rows": (plots.intervals, INTERVALS.assign(mean=np.nan)),
    "lacks the column 'scale'": (plots.scales, NOISE),
    "36 layers": (plots.channel_ranges, CHANNELS),
    "'high' or 'low'": (plots.sensitivity, NOISE, "gain_db", "big"),
    "2 counts have 3 edges": (plots.histogram, [0, 1], [1, 2]),
    "no histogram": (plots.histograms, {}),
    "must be below": (plots.quantizer_curve, 4, 1, 1),
    r"shape \(1, 1\)": (plots.error_surface, [0], [1], np.ones((2, 2))),
    "at least one": (plots.maps, {}, "error", "None"),
    "leaves the 96x64 picture": (plots.comparison, PICTURES, (80, 0, 24, 16)),
    "no whole fraction": (plots.comparison, PICTURES | {"odd": HR[:50]}, BOX),
    "has the shape": (plots.comparison, {"HR": HR[..., 0]}, BOX),
    "no picture called": (plots.comparison, {}, BOX),
    "do not fit": (plots.comparison, dict.fromkeys(map(str, range(30)), HR), BOX, None, None, "", 3.25, 1),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_input_is_named_in_one_sentence(message):
    draw, *arguments = WRONG[message]
    with pytest.raises(ValueError, match=message) as error:
        draw(*arguments)
    assert "\n" not in str(error.value)
