"""Tables: best bold, second underlined, ties and gaps treated as a reader would; files that come back as written."""

import math
import shutil
import subprocess

import pandas as pd
import pytest
import torch
from made import refused

from passionsr_lab.evaluation.tables import escape, provenance, read_table, to_csv, to_latex, write_csv

SOURCE = {"model": "tiny", "seed": "0", "passionsr_lab": "0.1.0"}
BEST, SECOND = r"\textbf{{{}}}".format, r"\underline{{{}}}".format


def cells(path):
    """The body's cells, row by row."""
    body = path.read_text().split("\\midrule", 1)[1].split("\\bottomrule")[0].replace("\\midrule", "")
    return [row.split(" & ") for row in body.replace("\n", "").split(" \\\\") if row]


def test_best_is_bold_and_second_underlined(tmp_path):
    for values, direction, expected in (
        ([1.0, 3.0, 2.0], "max", ["1.00", BEST("3.00"), SECOND("2.00")]),
        ([1.0, 3.0, 2.0], "min", [BEST("1.00"), "3.00", SECOND("2.00")]),
        ([3.0, 3.0, 2.0, 1.0], "max", [BEST("3.00"), BEST("3.00"), SECOND("2.00"), "1.00"]),
        ([1.0, 2.0, 2.0, 3.0], "min", [BEST("1.00"), SECOND("2.00"), SECOND("2.00"), "3.00"]),
        ([3.001, 2.999, 2.0], "max", [BEST("3.00"), BEST("3.00"), SECOND("2.00")]),
        ([5.0, 5.0], "max", [BEST("5.00"), BEST("5.00")]),
        ([math.nan, 1.0, 2.0], "max", ["--", SECOND("1.00"), BEST("2.00")]),
        ([-0.001, 0.001], "max", [BEST("0.00"), BEST("0.00")]),
        ([math.nan], "min", ["--"]),
        ([-math.inf, 1.0], "min", [BEST("-inf"), SECOND("1.00")]),
        ([7, 9], "min", [BEST("7"), SECOND("9")]),
    ):
        frame = pd.DataFrame({"name": [f"m{i}" for i in range(len(values))], "value": values})
        assert [row[1] for row in cells(to_latex(frame, "t", {"value": direction}, folder=tmp_path))] == expected


def test_the_best_is_found_within_each_group_and_rows_without_one_are_kept(tmp_path):
    frame = pd.DataFrame({"bits": ["W8A8", "W8A8", "W4A4", "W4A4", None], "psnr": [30.0, 31.0, 21.0, 20.0, 1.0]})
    path = to_latex(frame, "t", {"psnr": "max"}, folder=tmp_path, within="bits")
    found = [row[1] for row in cells(path)]
    assert found == [SECOND("30.00"), BEST("31.00"), BEST("21.00"), SECOND("20.00"), BEST("1.00")]
    assert path.read_text().count("\\midrule") == 3


def test_heads_cells_and_caption_are_latex(tmp_path):
    frame = pd.DataFrame({"psnr_fp": [30.0, 31.126], "s": [0.25, math.nan], "lpips": 0.1239, "100%": "a_b & c"})
    best, spread = {"psnr_fp": "max", "lpips": "min"}, {"psnr_fp": "s"}
    options = {"spread": spread, "digits": {"psnr_fp": 1}, "headers": {"lpips": "L"}}
    path = to_latex(frame, "t", best, "50 % off.", tmp_path, SOURCE, **options)
    text = path.read_text()
    assert r"psnr fp $\uparrow$ & L $\downarrow$ & 100\% \\" in text and r"\label{tab:t}" in text
    assert r"\caption{50 \% off. Model tiny, seed 0, passionsr\_lab 0.1.0.}" in text
    assert cells(path) == [
        [SECOND(r"30.0 $\pm$ 0.2"), BEST("0.12"), r"a\_b \& c"], [BEST("31.1"), BEST("0.12"), r"a\_b \& c"]
    ]  # fmt: skip
    assert escape("a\\b{c}~^") == r"a\textbackslash{}b\{c\}\textasciitilde{}\textasciicircum{}"


def test_wrong_options_are_named(tmp_path):
    for options, words in (
        ({"best": {"lpips": "min"}}, "no column 'lpips'; it has method, psnr"),
        ({"best": {"psnr": "high"}}, "'max' or 'min', not 'high'"), ({"within": "bits"}, "no column 'bits'"),
        ({"spread": {"psnr": "psnr_std"}}, "no column 'psnr_std'"),
        ({"best": {"method": "max"}}, "'method' holds no numbers"),
    ):  # fmt: skip
        with refused(words):
            to_latex(pd.DataFrame({"method": ["a"], "psnr": [1.0]}), "t", folder=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_frame_comes_back_to_the_last_bit_whatever_its_names_are(tmp_path):
    names = ["NA", "NA.png", "x#y", "# x", "007", "1e5", "True", "nan", "null", 'a, "b"', "a\nb", "", "\udcff.png"]
    frame = pd.DataFrame({"name": names, "dataset": names[::-1], "value": [1 / 3, math.nan, -math.inf, *range(10)]})
    frame = frame.assign(count=range(13), bits="NA", note="")
    for source in (None, SOURCE, {"model": "a\n# b"}):
        pd.testing.assert_frame_equal(read_table(to_csv(frame, "t", tmp_path, source)), frame)
    path = to_csv(frame, "t", tmp_path, SOURCE)
    assert path.read_bytes().startswith(b"# model tiny, seed 0, passionsr_lab 0.1.0\n")
    assert write_csv(frame, tmp_path / "scores.txt") == tmp_path / "scores.txt"
    pd.testing.assert_frame_equal(read_table(tmp_path / "scores.txt"), frame)
    assert {p.name for p in tmp_path.iterdir()} == {"t.csv", "scores.txt"}


def test_tables_are_the_same_bytes_twice(tmp_path):
    frame = pd.DataFrame({"method": ["a", "b"], "psnr": [1 / 3, 2 / 3]})
    for write in (to_csv, lambda *a: to_latex(*a[:2], {"psnr": "max"}, "C.", *a[2:])):
        first, second = (write(frame, "t", tmp_path, provenance("tiny", 0, "W6A6")).read_bytes() for _ in range(2))
        assert first == second


def test_provenance_names_model_seed_recipe_and_versions():
    found = provenance("tiny", 0, "W6A6")
    assert (found["model"], found["seed"], found["recipe"]) == ("tiny", "0", "W6A6")
    assert found["torch"] in (torch.__version__, torch.__version__.partition("+")[0])
    assert all(isinstance(v, str) and v for v in found.values())


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_accepts_the_table(tmp_path):
    to_latex(pd.DataFrame({"a_b": ["x & y"], "psnr": [1.0]}), "t", {"psnr": "max"}, "50 %.", tmp_path, SOURCE)
    page = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{t}\end{document}"
    (tmp_path / "page.tex").write_text(page)
    subprocess.run(["pdflatex", "-halt-on-error", "page.tex"], cwd=tmp_path, check=True, capture_output=True)
