"""Figures: the same bytes twice, the right size, nothing hidden or cut off, and the data drawn are the data given."""

import os
import re
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from passionsr_lab import plots
from passionsr_lab.analysis.propagation import collapse
from passionsr_lab.plots.base import METADATA, PALETTE
from passionsr_lab.quantization.quantizer import fake_quantize

rng = np.random.default_rng(0)
LAYERS = [
    (module, f"{module}.blocks.{i}.attentions.0.transformer_blocks.0.ff.net.{i}")
    for module, count in (("encoder", 7), ("unet", 20), ("decoder", 9))
    for i in range(count)
]
CHANNELS = pd.concat(
    pd.DataFrame({"module": m, "layer": n, "channel": range(8), "scale": rng.lognormal(size=8)}) for m, n in LAYERS
).reset_index(drop=True)
CHANNELS["high"] = rng.lognormal(size=len(CHANNELS))
CHANNELS["low"] = -CHANNELS.high / 3
CHANNELS["layer"] = pd.Categorical(CHANNELS.layer, [n for _, n in LAYERS], ordered=True)  # as observe gives them
ONE = CHANNELS[CHANNELS.layer == LAYERS[3][1]]
NOISE = pd.DataFrame(LAYERS, columns=["module", "layer"]).assign(
    local_db=np.linspace(40, 25, len(LAYERS)),
    accumulated_db=np.linspace(38, 2, len(LAYERS)),
    gain_db=rng.random(len(LAYERS)),
)
EDGES = np.linspace(-3, 5, 41)
COUNTS = np.round(1000 * np.exp(-(((EDGES[1:] + EDGES[:-1]) / 2) ** 2)))
HR = rng.random((64, 96, 3))
PICTURES = {"HR": HR, "LR": HR[::4, ::4], "MaxMin": HR * 0.8, "PassionSR": HR * 0.99}
BOX = (20, 12, 24, 16)


def records(run="with DQC", modules=("encoder", "unet", "decoder"), steps=40, kept=1.0):
    rows = []
    for module in modules:
        for stage in ("transform", "bounds"):
            rows.append(("start", module, stage, 0, 0.02, 1.0))
            rows += [("step", module, stage, i + 1, 0.02 * 0.97**i * (1 + i % 3), 1.0) for i in range(steps)]
            rows.append(("end", module, stage, steps, 0.006, kept))
    frame = pd.DataFrame(rows, columns=["event", "module", "stage", "step", "loss", "kept"])
    return frame.assign(of=steps, run=run)


SHARES = pd.DataFrame({"encoder": [34, 8.5], "unet": [866, 216], "decoder": [49.5, np.nan]}, ["W32A32", "W8A8"])
SHARES = SHARES.rename_axis("bits")
INTERVALS = pd.DataFrame(
    [
        (method, bits, metric, 25 + i, 24 + i, 27 + i)
        for i, method in enumerate(("MaxMin", "PassionSR"))
        for bits in ("W8A8", "W6A6")
        for metric in ("psnr_y", "ssim_y")
    ],
    columns=["method", "bits", "metric", "mean", "low", "high"],
)
TIMES = pd.concat(
    pd.DataFrame({"method": m, "seed": s, "seconds": np.arange(9) + s / 3, "psnr_fp": 20 + k * np.arange(9) + s})
    for k, m in enumerate(("joint", "DQC"))
    for s in range(3)
)
ABLATION = pd.DataFrame(
    [
        {"method": m, "recipe": r, "seed": s, "psnr_fp": 20 + 3 * i - 4 * j + s / 2}
        for i, m in enumerate(("maxmin", "lbq", "lbq+let", "passionsr"))
        for j, r in enumerate(("W8A8", "W6A6", "W4A4"))
        for s in range(3)
    ]
)

FIGURES = {
    "comparison": lambda: plots.comparison(PICTURES, BOX),
    "comparison in a column": lambda: plots.comparison(
        PICTURES, BOX, width=plots.COLUMN, heading="A long heading " * 5
    ),
    "loss": lambda: plots.loss_curves(pd.concat([records(), records("without", ("all",), kept=0.0)])),
    "loss of one module": lambda: plots.loss_curves(records(modules=("unet",)).drop(columns="run")),
    "quality": lambda: plots.quality_over_time(TIMES),
    "quality at equal steps": lambda: plots.quality_over_time(TIMES.assign(updates=TIMES.seconds // 1)),
    "scales": lambda: plots.scales(CHANNELS),
    "activations of the model": lambda: plots.activations(CHANNELS, CHANNELS.assign(low=-1.0, high=CHANNELS.high**0.2)),
    "activations of a layer": lambda: plots.activations(ONE, ONE),
    "layer ranges": lambda: plots.layer_ranges(CHANNELS.drop_duplicates("layer")),
    "channel ranges": lambda: plots.channel_ranges(ONE, (-0.5, 0.5), heading=f"Channel ranges of {LAYERS[3][1]}"),
    "histogram": lambda: plots.histogram(EDGES, COUNTS, (-1, 2), 4),
    "histograms": lambda: plots.histograms({"before": (EDGES, COUNTS, None), "after": (EDGES / 2, COUNTS, (-1, 1))}, 6),
    "quantizer": lambda: plots.quantizer_curve(3, -0.4, 1.1),
    "surface": lambda: plots.error_surface(
        [-2, -1], [1, 2, 3], rng_free(2, 3), {"MaxMin": (-2, 3), "LBQ": (-1.3, 2.1)}
    ),
    "propagation": lambda: plots.propagation(NOISE),
    "sensitivity": lambda: plots.sensitivity(NOISE),
    "sensitivity, low": lambda: plots.sensitivity(NOISE, "local_db", "low", top=5),
    "ablation": lambda: plots.ablation(ABLATION),
    "shares": lambda: plots.shares(SHARES, "parameters (M)"),
    "intervals": lambda: plots.intervals(INTERVALS),
}


def rng_free(*shape):
    return np.arange(float(np.prod(shape))).reshape(shape)


@pytest.fixture(params=FIGURES, scope="module")
def made(request):
    return FIGURES[request.param]()


@pytest.fixture
def fig(made):
    """Every figure, measured at its own resolution and not at that of the last save."""
    made.draw_without_rendering()
    return made


# -- on paper -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_a_second_save_writes_the_same_bytes(name, tmp_path):
    first = [path.read_bytes() for path in plots.save(FIGURES[name](), "figure", tmp_path)]
    second = FIGURES[name]()
    second._repr_png_()  # having been shown makes no difference
    assert first == [path.read_bytes() for path in plots.save(second, "figure", tmp_path)]


SCRIPT = """
import sys, matplotlib
if sys.argv[2] == "2":
    matplotlib.rcParams.update({"font.size": 30, "axes.facecolor": "red", "pdf.compression": 0})
from passionsr_lab import plots
plots.save(plots.quantizer_curve(3, -0.4, 1.1), "figure", sys.argv[1], ("pdf", "png", "svg"))
"""


def test_another_process_with_other_settings_writes_the_same_bytes(tmp_path):
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": f"{seed}00000000"}
        subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / seed, seed], check=True, env=environment)
    for suffix in METADATA:
        first, second = ((tmp_path / seed / f"figure.{suffix}").read_bytes() for seed in "12")
        assert first == second
        assert not re.search(rb"CreationDate|ModDate|dc:date", first)


def test_size_on_paper_is_a_column_or_the_page(fig, tmp_path):
    assert fig.get_figwidth() in (plots.COLUMN, plots.PAGE) == (3.25, 6.875)
    pdf, png = plots.save(fig, "figure", tmp_path)
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+)", pdf.read_bytes())
    assert [float(v) / 72 for v in box.groups()] == pytest.approx(list(fig.get_size_inches()), abs=1e-3)
    assert Image.open(png).width == int(fig.get_figwidth() * 300)


def test_fonts_are_embedded_as_truetype(tmp_path):
    content = plots.save(plots.ablation(ABLATION), "figure", tmp_path)[0].read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content


def test_what_is_drawn_does_not_depend_on_who_draws_it(tmp_path):
    fig = plots.propagation(NOISE)
    with matplotlib.rc_context({"font.size": 30, "xtick.major.size": 20, "savefig.dpi": 30}):
        fig.savefig(tmp_path / "direct.png", metadata=METADATA["png"])
    assert (tmp_path / "direct.png").read_bytes() == plots.save(plots.propagation(NOISE), "x", tmp_path)[1].read_bytes()


# -- to the eye ---------------------------------------------------------------------------------------------------


def texts(fig):
    """All that is written; labels of ticks outside an axis' limits exist but are not drawn."""
    axes = [axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis, *(child.xaxis for child in ax.child_axes))]
    labels = {t for axis in axes for t in (*axis.get_ticklabels(), *axis.get_ticklabels(minor=True))}
    shown = {t for axis in axes for tick in axis._update_ticks() for t in (tick.label1, tick.label2)}
    found = [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip()]
    return [t for t in found if t not in labels or t in shown]


def test_no_legend_lies_over_data(fig):
    for box in [legend.get_window_extent() for legend in fig.legends]:
        assert not any(box.overlaps(ax.get_window_extent()) for ax in fig.axes)
        assert not any(box.overlaps(ax.xaxis.label.get_window_extent()) for ax in fig.axes if ax.get_xlabel())
    assert all(ax.get_legend() is None for ax in fig.axes)


def test_no_text_is_cut_off_or_too_small_to_read(fig):
    for text in texts(fig):
        box = text.get_window_extent()
        assert box.x0 >= -1 and box.x1 <= fig.bbox.width + 1, text
        assert box.y0 >= -1 and box.y1 <= fig.bbox.height + 1, text
        assert text.get_fontsize() >= 6


def test_captions_of_pictures_do_not_touch(fig):
    boxes = [ax.xaxis.label.get_window_extent() for ax in fig.axes if ax.get_xlabel() and not len(ax.get_xticks())]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_every_figure_has_a_title_and_named_axes(fig):
    assert fig.get_suptitle()
    if any(ax.images for ax in fig.axes):  # pictures carry captions
        return
    assert any(ax.get_xlabel() for ax in fig.axes)
    assert any(ax.get_ylabel() for ax in fig.axes) or not len(fig.axes[0].get_yticks())


# -- in a notebook ------------------------------------------------------------------------------------------------


def test_nothing_is_left_in_pyplot(fig):
    assert plt.get_fignums() == []


def test_a_notebook_shows_the_figure_once(fig):
    assert fig._repr_png_().startswith(b"\x89PNG")
    assert plt.get_fignums() == []


def test_settings_are_as_before():
    before = dict(matplotlib.rcParams)
    FIGURES["ablation"]().draw_without_rendering()
    assert dict(matplotlib.rcParams) == before


def test_the_package_imports_without_matplotlib():
    code = "import passionsr_lab, passionsr_lab.plots, passionsr_lab.tables, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_style_sheet_ships_with_the_package():
    with matplotlib.style.context("passionsr_lab.plots.paper"):
        assert matplotlib.rcParams["pdf.fonttype"] == 42
        assert matplotlib.rcParams["figure.figsize"][0] == plots.COLUMN
        cycle = matplotlib.rcParams["axes.prop_cycle"].by_key()
    assert tuple(cycle["color"]) == PALETTE


# -- saving -------------------------------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_file(tmp_path):
    fig, path = FIGURES["histogram"](), tmp_path / "figure.png"
    path.write_bytes(b"old")
    fig.add_axes((0, 0, 1, 1)).set_xlabel("$\\broken$")
    with pytest.raises(ValueError):
        plots.save(fig, "figure", tmp_path, ("png",))
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"] and path.read_bytes() == b"old"


def test_save_names_unknown_formats(tmp_path):
    with pytest.raises(ValueError, match="not 'jpg'"):
        plots.save(FIGURES["histogram"](), "figure", tmp_path, ("png", "jpg"))
    assert not list(tmp_path.iterdir())


# -- comparison ---------------------------------------------------------------------------------------------------


def test_the_box_drawn_is_the_crop_shown():
    whole, *crops = plots.comparison(PICTURES, BOX).axes
    box = next(p for p in whole.patches if isinstance(p, Rectangle))
    x, y, w, h = BOX
    assert box.get_bbox().bounds == (x - 0.5, y - 0.5, w, h)  # pixel i spans i - 0.5 to i + 0.5
    assert whole.images[0].get_extent() == [-0.5, 95.5, 63.5, -0.5]
    assert "24×16 px at (20, 12)" in whole.get_xlabel()
    shown = whole.images[0].get_array()[y : y + h, x : x + w]
    assert np.array_equal(crops[0].images[0].get_array(), shown)
    assert np.array_equal(crops[0].images[0].get_array(), HR[12:28, 20:44])


def test_a_small_picture_is_cropped_at_the_same_place():
    lr = plots.comparison(PICTURES, BOX).axes[2].images[0].get_array()
    assert lr.shape == (16, 24, 3)
    assert np.array_equal(lr[::4, ::4], HR[::4, ::4][3:7, 5:11])


def test_pictures_of_all_kinds_are_the_same_picture():
    pixels = (HR * 255).round().astype(np.uint8)
    tensor = torch.from_numpy(pixels / 255).permute(2, 0, 1)
    kinds = {"HR": pixels, "PIL": Image.fromarray(pixels), "tensor": tensor, "batch": tensor[None].float()}
    crops = [ax.images[0].get_array() for ax in plots.comparison(kinds, BOX).axes[1:]]
    assert all(np.allclose(crop, crops[0], atol=1e-7) for crop in crops)


def test_psnr_stands_under_each_picture():
    captions = [ax.get_xlabel() for ax in plots.comparison(PICTURES, BOX).axes[1:]]
    expected = -10 * np.log10(np.mean((HR * 0.2) ** 2))
    assert captions == [
        "HR\nPSNR",
        "LR\n ",
        f"MaxMin\n{expected:.2f} dB",
        f"PassionSR\n{expected + 20 * np.log10(20):.2f} dB",
    ]
    given = plots.comparison(PICTURES, BOX, scores={"LR": "input", "MaxMin": 24.5}).axes
    assert [ax.get_xlabel().split("\n")[1] for ax in given[1:]] == [" ", "input", "24.50 dB", " "]


@pytest.mark.parametrize(
    ("images", "box", "message"),
    [
        (PICTURES, (80, 0, 24, 16), "leaves the 96x64 picture"),
        (PICTURES, (0, 0, 0, 16), "leaves"),
        (PICTURES | {"odd": HR[:50]}, BOX, "no whole fraction"),
        ({"HR": HR[..., 0]}, BOX, "has the shape"),
        ({}, BOX, "no picture called"),
    ],
)
def test_comparison_says_what_is_wrong(images, box, message):
    with pytest.raises(ValueError, match=message):
        plots.comparison(images, box)


# -- the quantizer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_point", ["integer", "real"])
@pytest.mark.parametrize("bits", [2, 4, 8])
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
    assert np.isnan(plots.error_grid(x, [1.0], [0.5], 4)).all()
    marked = plots.error_surface(-edges[::-1], edges, quality[::-1]).axes[0].lines[0]
    assert marked.get_xydata()[0] == pytest.approx([-1, 1])


def test_histogram_shows_the_grid_and_what_is_clipped():
    ax = plots.histogram(EDGES, COUNTS, (-1, 2), 3).axes[0]
    levels = np.array([segment[0, 0] for segment in ax.collections[0].get_segments()])
    done = fake_quantize(torch.linspace(-3, 5, 999), torch.tensor(-1.0), torch.tensor(2.0), 3).unique()
    assert levels == pytest.approx(done.numpy(), abs=1e-6)
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    assert f"{100 * COUNTS[(middle < -1) | (middle > 2)].sum() / COUNTS.sum():.2f} % clipped" in ax.get_title("left")


# -- frames -------------------------------------------------------------------------------------------------------


def test_loss_panels_hold_every_step_and_both_levels():
    fig = plots.loss_curves(records(), smooth=1)
    assert [ax.get_title("left") for ax in fig.axes] == ["encoder", "unet", "decoder"]
    curves = [line for line in fig.axes[1].lines if len(line.get_xdata()) > 1]
    levels = [line for line in fig.axes[1].lines if len(line.get_xdata()) == 1]
    assert [list(line.get_xdata()) for line in curves] == [[*range(1, 41)], [*range(41, 81)]]
    assert list(curves[0].get_ydata()) == pytest.approx(list(records().query("event == 'step'").loss[:40]))
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in levels] == [
        (0, 0.02),
        (40, 0.006),
        (40, 0.02),
        (80, 0.006),
    ]
    bands = [text.get_text() for text in fig.axes[1].child_axes[0].get_xticklabels()]
    assert bands == ["LET", "LBQ"]


def test_a_stage_taken_back_is_marked():
    def marks(fig):
        return {line.get_marker() for ax in fig.axes for line in ax.lines if len(line.get_xdata()) == 1}

    assert "X" not in marks(plots.loss_curves(records()))
    for kept in (0.0, 0.5):
        fig = plots.loss_curves(records(kept=kept))
        words = [t.get_text() for t in fig.legends[0].texts]
        assert "X" in marks(fig) and "stage taken back, partly or wholly" in words


@pytest.mark.parametrize("count", [1, 2, 20, 60])
def test_a_run_in_progress_has_curves(count):
    fig = plots.loss_curves(records().head(count).drop(columns="run"))
    fig.draw_without_rendering()
    assert len(fig.axes) == 1


def test_ranges_alone_have_a_level():
    record = {"event": "end", "module": "all", "stage": "ranges", "step": 0, "of": 0, "loss": 0.1, "kept": 1.0}
    plots.loss_curves(pd.DataFrame([record])).draw_without_rendering()


def test_quality_is_the_mean_of_the_seeds_where_all_have_been_measured():
    lines = plots.quality_over_time(TIMES).axes[0].lines
    mean = next(line for line in lines if line.get_label() == "DQC")
    x = mean.get_xdata()
    assert x[0] == pytest.approx(2 / 3) and x[-1] == 8
    assert mean.get_ydata() == pytest.approx(21 + x - 1 / 3)


def test_quality_is_compared_where_the_first_method_ended():
    rows = [("DQC", u, 2 * u, 30 + u) for u in range(0, 13, 3)] + [("joint", u, 5 * u, 28 + u) for u in (0, 6, 12)]
    fig = plots.quality_over_time(pd.DataFrame(rows, columns=["method", "updates", "seconds", "psnr_fp"]))
    steps, seconds = fig.axes
    assert steps.get_title("left") == "at equal steps, 12 updates: DQC 42.00, joint 40.00"
    assert seconds.get_title("left") == "at equal seconds, 24 s: DQC 42.00, joint 32.80"  # 24 s is the joint's 4.8
    rings = [
        next(line for line in ax.lines if line.get_marker() == "o" and line.get_mfc() == "none") for ax in fig.axes
    ]
    assert [ring.get_xdata()[0] for ring in rings] == [12, 24]


def test_a_stage_taken_back_counts_from_the_moment_it_was():
    rows = [("joint", 0, 30), ("joint", 8, 28), ("joint", 12, 27), ("joint", 12, 31), ("DQC", 0, 30), ("DQC", 10, 31)]
    ax = plots.quality_over_time(pd.DataFrame(rows, columns=["method", "seconds", "psnr_fp"])).axes[0]
    assert ax.get_title("left") == "at equal seconds, 10 s: joint 27.50, DQC 31.00"


def test_losses_that_hardly_differ_have_readable_ticks():
    flat = records(modules=("unet",)).assign(loss=lambda f: 3.05e-4 * (1 + 1e-7 * f.step))
    ax = plots.loss_curves(flat).axes[0]
    ax.figure.draw_without_rendering()
    low, high = ax.get_ylim()
    labels = [t.get_text() for t in ax.get_yticklabels() if low <= t.get_position()[1] <= high]
    assert labels and len(set(labels)) == len(labels)


def test_marks_of_a_curve_show_around_those_of_another_on_it():
    frame = pd.DataFrame([(x, x, by) for by in "ab" for x in range(3)], columns=["x", "y", "by"])
    under, over = plots.curves(frame, "x", "y", "by").axes[0].lines
    assert under.get_markersize() > over.get_markersize() and under.get_markerfacecolor() == "none"


def test_layers_stay_in_network_order():
    segments = plots.layer_ranges(CHANNELS.drop_duplicates("layer")).axes[0].collections
    drawn = np.concatenate([[s[:, 1] for s in c.get_segments()] for c in segments])
    frame = CHANNELS.drop_duplicates("layer")
    assert np.allclose(drawn, frame[["low", "high"]])
    medians = np.concatenate(
        [line.get_ydata() for line in plots.scales(CHANNELS).axes[0].lines if len(line.get_xdata()) > 2]
    )
    assert medians == pytest.approx(CHANNELS.groupby("layer", observed=True, sort=False).scale.median().to_numpy())


def test_layers_without_a_range_are_left_out():
    frame = pd.DataFrame({"layer": ["a", "attention", "b"], "low": [-1, None, -5], "high": [1, None, 2]})
    assert plots.layer_ranges(frame).axes[0].get_title("left") == "widest: b, -5 to 2"


def test_the_fill_of_a_range_is_written_down():
    after = ONE.assign(low=-1.0, high=1.0)
    before, flat = (ax.get_title("left") for ax in plots.activations(ONE, after).axes)
    share = (ONE.high - ONE.low).median() / (ONE.high.max() - ONE.low.min())
    assert f"fills {100 * share:.0f} %" in before and "fills 100 %" in flat
    whole = plots.activations(CHANNELS, CHANNELS.assign(low=-1.0, high=1.0)).axes
    medians = [np.concatenate([line.get_ydata() for line in ax.lines if len(line.get_xdata()) > 2]) for ax in whole]
    assert len(medians[0]) == len(LAYERS) and medians[0][3] == pytest.approx(share)
    assert (medians[1] == 1).all()


def test_the_collapse_named_is_the_librarys():
    note = plots.propagation(NOISE).axes[0].get_title("left")
    assert note.endswith(collapse(NOISE))
    assert plots.propagation(NOISE, floor=-5).axes[0].get_title("left") == "accumulated stays above -5 dB"
    infinite = NOISE.assign(local_db=np.inf)
    plots.propagation(infinite).draw_without_rendering()


def test_the_worst_layer_is_on_top():
    for value, worst in (("gain_db", "high"), ("local_db", "low")):
        ax = plots.sensitivity(NOISE, value, worst, top=4).axes[0]
        ranked = NOISE.sort_values(value, ascending=worst == "low").layer[:4]
        assert [t.get_text() for t in ax.texts] == list(ranked)
        assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_the_ablation_shows_mean_and_deviation_over_seeds():
    ax = plots.ablation(ABLATION).axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["W8A8", "W6A6", "W4A4"]
    for bar in ax.containers:
        own = ABLATION[ABLATION.method == bar.get_label()].groupby("recipe", sort=False).psnr_fp
        assert bar.lines[0].get_ydata() == pytest.approx(own.mean().to_numpy())
        lengths = [s[1, 1] - s[0, 1] for s in bar.lines[2][0].get_segments()]
        assert lengths == pytest.approx((2 * own.std(ddof=0)).to_list())


@pytest.mark.parametrize(
    ("draw", "frame", "message"),
    [
        (plots.loss_curves, NOISE, "lacks the column 'event'"),
        (plots.loss_curves, records().head(0), "no rows"),
        (plots.quality_over_time, NOISE, "lacks the column 'method'"),
        (plots.scales, NOISE, "lacks the column 'scale'"),
        (plots.channel_ranges, CHANNELS, "36 layers"),
        (plots.layer_ranges, NOISE, "lacks the column 'low'"),
        (plots.propagation, ONE, "lacks the column 'local_db'"),
        (plots.sensitivity, ONE, "lacks the column 'gain_db'"),
        (plots.ablation, NOISE, "lacks the column 'method'"),
        (lambda _: plots.sensitivity(NOISE, worst="big"), None, "'high' or 'low'"),
        (lambda _: plots.histogram([0, 1], [1, 2]), None, "2 counts have 3 edges"),
        (lambda _: plots.quantizer_curve(4, 1, 1), None, "must be below"),
        (lambda _: plots.error_surface([0], [1], rng_free(2, 2)), None, r"shape \(1, 1\)"),
    ],
)
def test_a_wrong_frame_is_named(draw, frame, message):
    with pytest.raises(ValueError, match=message):
        draw(frame)


def test_the_segments_of_a_bar_add_up_and_the_sum_is_written():
    ax = plots.shares(SHARES).axes[0]
    ends = {patch.get_y() + patch.get_height() / 2: 0.0 for patch in ax.patches}
    for patch in ax.patches:
        y = patch.get_y() + patch.get_height() / 2
        assert patch.get_x() == pytest.approx(ends[y])
        ends[y] += patch.get_width()
    assert sorted(ends.values()) == pytest.approx([224.5, 949.5])
    assert {t.get_text() for t in ax.texts} == {"949.5", "224.5"}


def test_intervals_are_drawn_from_low_to_high_around_the_mean():
    fig = plots.intervals(INTERVALS)
    assert [ax.get_ylabel() for ax in fig.axes] == ["psnr_y", "ssim_y"]
    for i, bars in enumerate(fig.axes[0].containers):
        for (x, y), ((_, low), (_, high)) in zip(bars[0].get_xydata(), bars[2][0].get_segments()):
            assert (y, low, high) == (25 + i, 24 + i, 27 + i) and abs(x - round(x)) < 0.4
    with pytest.raises(ValueError, match="no rows"):
        plots.intervals(INTERVALS.assign(mean=np.nan))
