"""Tables: best bold, second underlined, ties and gaps treated as a reader would; where the numbers come from."""

import math
import shutil
import subprocess

import pandas as pd
import pytest
import torch

from passionsr_lab.evaluation.tables import escape, provenance, to_csv, to_latex

SOURCE = {"model": "tiny", "seed": "0", "passionsr_lab": "0.1.0"}


def cells(path):
    """The body's cells, row by row."""
    body = path.read_text().split("\\midrule", 1)[1].split("\\bottomrule")[0].replace("\\midrule", "")
    return [row.split(" & ") for row in body.replace("\n", "").split(" \\\\") if row]


def column(tmp_path, values, direction, **options):
    frame = pd.DataFrame({"name": [f"m{i}" for i in range(len(values))], "value": values})
    return [row[1] for row in cells(to_latex(frame, "t", {"value": direction}, folder=tmp_path, **options))]


@pytest.mark.parametrize(
    ("values", "direction", "expected"),
    [
        ([1.0, 3.0, 2.0], "max", ["1.00", r"\textbf{3.00}", r"\underline{2.00}"]),
        ([1.0, 3.0, 2.0], "min", [r"\textbf{1.00}", "3.00", r"\underline{2.00}"]),
        ([3.0, 3.0, 2.0, 1.0], "max", [r"\textbf{3.00}", r"\textbf{3.00}", r"\underline{2.00}", "1.00"]),
        ([1.0, 2.0, 2.0, 3.0], "min", [r"\textbf{1.00}", r"\underline{2.00}", r"\underline{2.00}", "3.00"]),
        ([3.001, 2.999, 2.0], "max", [r"\textbf{3.00}", r"\textbf{3.00}", r"\underline{2.00}"]),
        ([5.0, 5.0], "max", [r"\textbf{5.00}", r"\textbf{5.00}"]),
        ([math.nan, 1.0, 2.0], "max", ["--", r"\underline{1.00}", r"\textbf{2.00}"]),
        ([-0.001, 0.001], "max", [r"\textbf{0.00}", r"\textbf{0.00}"]),
        ([math.nan], "min", ["--"]),
        ([-math.inf, 1.0], "min", [r"\textbf{-inf}", r"\underline{1.00}"]),
        ([7, 9], "min", [r"\textbf{7}", r"\underline{9}"]),
    ],
)
def test_best_is_bold_and_second_underlined(tmp_path, values, direction, expected):
    assert column(tmp_path, values, direction) == expected


def test_the_best_is_found_within_each_group(tmp_path):
    frame = pd.DataFrame({"bits": ["W8A8", "W8A8", "W4A4", "W4A4"], "psnr": [30.0, 31.0, 21.0, 20.0]})
    path = to_latex(frame, "t", {"psnr": "max"}, folder=tmp_path, within="bits")
    assert [row[1] for row in cells(path)] == [
        r"\underline{30.00}", r"\textbf{31.00}", r"\textbf{21.00}", r"\underline{20.00}"
    ]  # fmt: skip
    assert path.read_text().count("\\midrule") == 2


def test_rows_without_a_group_are_kept(tmp_path):
    frame = pd.DataFrame({"bits": [None, "W8A8"], "psnr": [30.0, 31.0]})
    assert len(cells(to_latex(frame, "t", {"psnr": "max"}, folder=tmp_path, within="bits"))) == 2


def test_deviations_share_the_cell(tmp_path):
    frame = pd.DataFrame({"method": ["a", "b"], "psnr": [30.0, 31.0], "psnr_std": [0.25, math.nan]})
    path = to_latex(frame, "t", {"psnr": "max"}, folder=tmp_path, spread={"psnr": "psnr_std"})
    assert [row[1] for row in cells(path)] == [r"\underline{30.00 $\pm$ 0.25}", r"\textbf{31.00}"]
    assert "psnr std" not in path.read_text()


def test_heads_and_caption_are_latex(tmp_path):
    frame = pd.DataFrame({"psnr_fp": [30.0], "lpips": [0.1], "100%": ["a_b & c"]})
    path = to_latex(
        frame, "t", {"psnr_fp": "max", "lpips": "min"}, "50 % off.", tmp_path, SOURCE, headers={"lpips": "L"}
    )
    text = path.read_text()
    assert r"psnr fp $\uparrow$ & L $\downarrow$ & 100\% \\" in text
    assert r"a\_b \& c" in text
    assert r"\caption{50 \% off. Model tiny, seed 0, passionsr\_lab 0.1.0.}" in text
    assert r"\label{tab:t}" in text


def test_digits_are_chosen_per_column(tmp_path):
    frame = pd.DataFrame({"psnr": [30.126], "ssim": [0.81254], "lpips": [0.1239]})
    assert cells(to_latex(frame, "t", folder=tmp_path, digits={"ssim": 4, "psnr": 1})) == [["30.1", "0.8125", "0.12"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best": {"lpips": "min"}}, "no column 'lpips'; it has method, psnr"),
        ({"best": {"psnr": "high"}}, "'max' or 'min', not 'high'"),
        ({"within": "bits"}, "no column 'bits'"),
        ({"spread": {"psnr": "psnr_std"}}, "no column 'psnr_std'"),
        ({"best": {"method": "max"}}, "'method' holds no numbers"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        to_latex(pd.DataFrame({"method": ["a"], "psnr": [1.0]}), "t", folder=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_csv_keeps_every_digit_and_its_source(tmp_path):
    frame = pd.DataFrame({"method": ["a, b", "c"], "psnr": [1 / 3, math.nan]})
    path = to_csv(frame, "t", tmp_path, SOURCE)
    assert path.read_text().startswith("# model tiny, seed 0, passionsr_lab 0.1.0\n")
    pd.testing.assert_frame_equal(pd.read_csv(path, skiprows=1), frame)


def test_tables_are_the_same_bytes_twice(tmp_path):
    frame = pd.DataFrame({"method": ["a", "b"], "psnr": [1 / 3, 2 / 3]})
    for write in (to_csv, lambda *a: to_latex(*a[:2], {"psnr": "max"}, "C.", *a[2:])):
        first, second = (write(frame, "t", tmp_path, provenance("tiny", 0, "W6A6")).read_bytes() for _ in range(2))
        assert first == second


def test_provenance_names_model_seed_recipe_and_versions():
    found = provenance("tiny", 0, "W6A6")
    assert (found["model"], found["seed"], found["recipe"]) == ("tiny", "0", "W6A6")
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert all(isinstance(v, str) and v for v in found.values())


def test_escape_leaves_nothing_special():
    assert escape("a\\b{c}~^") == r"a\textbackslash{}b\{c\}\textasciitilde{}\textasciicircum{}"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_accepts_the_table(tmp_path):
    to_latex(pd.DataFrame({"a_b": ["x & y"], "psnr": [1.0]}), "t", {"psnr": "max"}, "50 %.", tmp_path, SOURCE)
    page = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{t}\end{document}"
    (tmp_path / "page.tex").write_text(page)
    subprocess.run(["pdflatex", "-halt-on-error", "page.tex"], cwd=tmp_path, check=True, capture_output=True)
