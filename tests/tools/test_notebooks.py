"""Every notebook is its source, executed; and the checker that says so finds what is wrong."""

import base64
import io
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from jupytext import TextFileContentsManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from passionsr_lab.tools.notebooks import WIDGET, check, clean, convert, figures_folder, main, refresh

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9][0-9]_*.py"))
SOURCE = """\
# %% [markdown]
# # A title

# %% tags=["parameters"]
BITS = 4

# %%
print(2**BITS)

# %%
assert BITS > 2
"""


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_is_its_source_executed(source):
    assert check(source) == []


def test_no_notebook_lacks_its_source():
    orphans = {p.stem for p in (Path(__file__).parents[2] / "notebooks").glob("*.ipynb")} - {p.stem for p in NOTEBOOKS}
    assert not orphans


# -- the checker on synthetic pairs -----------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    """(source, the notebook that belongs to it, a function that writes the notebook)."""
    source = tmp_path / "00_pair.py"
    source.write_text(SOURCE)
    cells = [
        new_markdown_cell("# A title"),
        new_code_cell("BITS = 4", metadata={"tags": ["parameters"]}, execution_count=1),
        new_code_cell("print(2**BITS)", execution_count=2, outputs=[new_output("stream", name="stdout", text="16\n")]),
        new_code_cell("assert BITS > 2", execution_count=3),
    ]
    notebook = new_notebook(cells=cells)
    return source, notebook, lambda: nbformat.write(notebook, source.with_suffix(".ipynb"))


def output(text, kind="text/plain"):
    return new_output("display_data", data={kind: text})


def add_a_cell(nb):
    nb.cells.append(new_code_cell("assert True", execution_count=4))


def change_a_source(nb):
    nb.cells[2].source = "print(2**BITS + 1)"


def change_a_type(nb):
    nb.cells[0] = new_code_cell("# A title", execution_count=1)


def drop_the_tag(nb):
    nb.cells[1].metadata = {}


def run_twice(nb):
    nb.cells[2].execution_count = 5


def leave_unrun(nb):
    nb.cells[3].execution_count = None


def fail(nb):
    nb.cells[2].outputs = [new_output("error", ename="ValueError", evalue="no", traceback=["ValueError: no"])]


def keep_widget_state(nb):
    nb.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}}}


def keep_a_widget(nb):
    nb.cells[2].outputs = [output({"model_id": "abc"}, WIDGET)]


def name_a_path(nb):
    nb.cells[2].outputs = [output("saved to /home/ann/figures/a.png")]


def name_a_windows_path(nb):
    nb.cells[2].outputs = [output(r"C:\Users\ann\a.png", "text/html")]


def be_large(nb):
    nb.cells[2].outputs = [output("x" * 500_000)]


BROKEN = {
    add_a_cell: "4 cells in the source and 5 in the notebook",
    change_a_source: "cell 3 has another source",
    change_a_type: "cell 1 is of another type",
    drop_the_tag: "cell 2 has other tags",
    run_twice: "execution counts",
    leave_unrun: "execution counts",
    fail: "cell 3 ended with an error",
    keep_widget_state: "widget state",
    keep_a_widget: "cell 3 holds a widget's output",
    name_a_path: "absolute path, /home/ann",
    name_a_windows_path: "absolute path",
    be_large: "500 KB is the limit",
}


def test_a_good_pair_has_no_problems(pair):
    source, _, write = pair
    write()
    assert check(source) == []
    assert main(["check", str(source)]) == 0


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda function: function.__name__)
def test_the_checker_names_the_problem_and_the_file(pair, breaks, capsys):
    source, notebook, write = pair
    breaks(notebook)
    write()
    assert any(BROKEN[breaks] in problem for problem in check(source)), check(source)
    assert main(["check", str(source)]) == 1
    assert "00_pair.ipynb: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ('tags=["parameters"]', "", "0 cells are tagged"),
        ("BITS = 4", "bits = 4", "the knob bits"),
        ("assert BITS > 2", "BITS > 2", "asserts nothing"),
    ],
)
def test_the_skeleton_is_asked_for(pair, old, new, problem):
    source, notebook, write = pair
    source.write_text(SOURCE.replace(old, new))
    notebook.cells = list(convert(source).cells)
    write()
    assert any(problem in p for p in check(source)), check(source)


def test_missing_and_damaged_files_are_named(pair):
    source, _, _ = pair
    assert check(source) == ["there is no 00_pair.ipynb"]
    source.with_suffix(".ipynb").write_text("{")
    assert "cannot be read" in check(source)[0]
    source.unlink()
    assert check(source) == ["there is no 00_pair.py"]


@pytest.mark.parametrize("text", ["../figures/a.png", "https://example.org/home/a", "1/2 of /4", "a/tmp/b"])
def test_relative_paths_and_addresses_pass(pair, text):
    source, notebook, write = pair
    notebook.cells[2].outputs = [output(text)]
    write()
    assert check(source) == []


def test_jupyterlab_opens_a_notebook_that_is_newer_than_its_source(pair):
    source, notebook, write = pair
    notebook.cells[2].source = "print(1)"
    write()
    later = source.stat().st_mtime + 86400
    os.utime(source.with_suffix(".ipynb"), (later, later))
    shutil.copy(Path(__file__).parents[2] / "pyproject.toml", source.parent)
    manager = TextFileContentsManager(root_dir=str(source.parent))
    opened = manager.get("00_pair.ipynb")["content"]
    assert opened.cells[2].source == "print(2**BITS)"  # the source's


# -- refresh ----------------------------------------------------------------------------------------------------------


def test_what_differs_from_run_to_run_is_taken_out():
    root = Path(__file__).resolve().parents[2]
    texts = [f"{root}/figures/a.png", f"{sys.prefix}/lib/x.py:3", "<object at 0x7f00ab12>", "1 of 2\r2 of 2\n"]
    cell = new_code_cell("1", metadata={"execution": {"iopub.status.busy": "2026"}}, execution_count=1)
    cell.outputs = [new_output("stream", name="stderr", text="\n".join(texts)), output({"model_id": "a"}, WIDGET)]
    notebook = clean(new_notebook(cells=[cell], metadata={"widgets": {"a": 1}}))
    assert "widgets" not in notebook.metadata and not notebook.cells[0].metadata
    assert notebook.cells[0].outputs[0].text == "./figures/a.png\npython/lib/x.py:3\n<object>\n2 of 2\n"
    assert (
        "widget" in notebook.cells[0].outputs[1].data["text/plain"] and WIDGET not in notebook.cells[0].outputs[1].data
    )


def test_styled_tables_keep_their_style_under_names_that_do_not_change():
    def written():
        frames = [pd.DataFrame({"a": [1, 2]}).style.highlight_max(props="font-weight: bold") for _ in range(2)]
        cells = [new_code_cell("1", outputs=[output(f.to_html(), "text/html") for f in frames]) for _ in range(2)]
        return [o.data["text/html"] for cell in clean(new_notebook(cells=cells)).cells for o in cell.outputs]

    first = written()
    assert first == written()
    names = [re.search(r'<table id="(\w+)"', html)[1] for html in first]
    assert len(set(names)) == 4  # one page, four tables
    assert all(f"#{name}_row1_col0 {{" in html and f'id="{name}_row1_col0"' in html for name, html in zip(names, first))


def test_photographs_become_jpeg_and_line_drawings_stay():
    smooth = np.kron(np.random.default_rng(0).random((60, 60, 3)), np.ones((8, 8, 1)))
    noise = np.random.default_rng(0).random((480, 480, 3)) * 0.1
    for pixels, kind in ((smooth * 0.9 + noise, "image/jpeg"), (np.ones((480, 480, 3)), "image/png")):
        buffer = io.BytesIO()
        Image.fromarray((pixels * 255).astype(np.uint8)).save(buffer, "PNG")
        cell = new_code_cell("1", outputs=[output(base64.b64encode(buffer.getvalue()).decode(), "image/png")])
        assert [*clean(new_notebook(cells=[cell])).cells[0].outputs[0].data] == [kind]


def test_figures_go_to_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert figures_folder() == tmp_path / "figures"
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert figures_folder() == tmp_path / "figures"


@pytest.mark.slow
def test_refresh_makes_a_good_pair_twice_the_same_and_leaves_it_when_a_cell_fails(tmp_path):
    source, steps = tmp_path / "00_pair.py", []
    source.write_text(SOURCE)
    target = refresh(source, lambda done, total: steps.append((done, total)))
    first = target.read_bytes()
    assert check(source) == [] and steps == [(1, 3), (2, 3), (3, 3)]
    refresh(source)
    assert target.read_bytes() == first
    source.write_text(SOURCE.replace("BITS > 2", "BITS > 5"))
    with pytest.raises(RuntimeError, match="code cell 3"):
        refresh(source)
    assert target.read_bytes() == first
