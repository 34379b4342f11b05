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

from passionsr_lab.tools.notebooks import FIGURES, WIDGET, clean, convert, figures_folder, main, refresh
from passionsr_lab.tools.pairing import check

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py"))
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
    assert {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")} == {p.stem for p in NOTEBOOKS}


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


def shows(text, kind="text/plain"):
    """A function that gives a notebook's third cell this output."""
    return lambda nb: nb.cells[2].update(outputs=[new_output("display_data", data={kind: text})])


ERROR = new_output("error", ename="ValueError", evalue="no", traceback=["ValueError: no"])
BROKEN = {
    "4 cells in the source and 5": lambda nb: nb.cells.append(new_code_cell("assert True", execution_count=4)),
    "cell 3 has another source": lambda nb: nb.cells[2].update(source="print(2**BITS + 1)"),
    "cell 1 is of another type": lambda nb: nb.cells.insert(0, new_code_cell(nb.cells.pop(0).source)),
    "cell 2 has other tags": lambda nb: nb.cells[1].metadata.clear(),
    "the execution counts are": lambda nb: nb.cells[2].update(execution_count=5),
    "execution counts": lambda nb: nb.cells[3].update(execution_count=None),
    "cell 3 ended with an error": lambda nb: nb.cells[2].update(outputs=[ERROR]),
    "widget state": lambda nb: nb.metadata.update(widgets={"application/vnd.jupyter.widget-state+json": {}}),
    "cell 3 holds a widget's output": shows({"model_id": "abc"}, WIDGET),
    "absolute path, /home/ann": shows("saved to /home/ann/figures/a.png"),
    "absolute path, C:": shows(r"C:\Users\ann\a.png", "text/html"),
    "550 KB is the limit": shows("x" * 550_000),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_the_checker_names_the_problem_and_the_file(pair, problem, capsys):
    source, notebook, write = pair
    write()
    assert check(source) == [] and main(["check", str(source)]) == 0
    BROKEN[problem](notebook)
    write()
    assert any(problem in told for told in check(source)), check(source)
    assert main(["check", str(source)]) == 1 and "00_pair.ipynb: " in capsys.readouterr().err


def test_the_skeleton_is_asked_for(pair):
    source, notebook, write = pair
    for old, new, problem in (
        ('tags=["parameters"]', "", "0 cells are tagged"),
        ("BITS = 4", "bits = 4", "the knob bits"),
        ("assert BITS > 2", "BITS > 2", "asserts nothing"),
    ):
        source.write_text(SOURCE.replace(old, new))
        notebook.cells = list(convert(source).cells)
        write()
        assert any(problem in told for told in check(source)), check(source)


def test_missing_and_damaged_files_are_named(pair):
    source, _, _ = pair
    assert check(source) == ["there is no 00_pair.ipynb"]
    source.with_suffix(".ipynb").write_text("{")
    assert "cannot be read" in check(source)[0]
    source.unlink()
    assert check(source) == ["there is no 00_pair.py"]


def test_relative_paths_and_addresses_pass(pair):
    source, notebook, write = pair
    for text in ("../figures/a.png", "https://example.org/home/a", "1/2 of /4", "a/tmp/b"):
        shows(text)(notebook)
        write()
        assert check(source) == []


def test_jupyterlab_opens_the_source_and_saves_it_as_it_was(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    manager = TextFileContentsManager(root_dir=str(tmp_path))
    for source in NOTEBOOKS:
        for path in (source, source.with_suffix(".ipynb")):
            shutil.copy(path, tmp_path)
        copy = tmp_path / source.name
        notebook = nbformat.read(copy.with_suffix(".ipynb"), 4)
        notebook.cells[-1].source = "older"
        nbformat.write(notebook, copy.with_suffix(".ipynb"))
        later = copy.stat().st_mtime + 86400
        os.utime(copy.with_suffix(".ipynb"), (later, later))  # a notebook that is newer than its source
        opened = manager.get(f"{source.stem}.ipynb")["content"]
        assert [cell.source for cell in opened.cells] == [cell.source for cell in convert(source).cells]
        manager.save({"type": "notebook", "content": opened}, f"{source.stem}.ipynb")
        assert copy.read_text() == source.read_text()


# -- refresh ----------------------------------------------------------------------------------------------------------


def test_what_differs_from_run_to_run_is_taken_out():
    texts = [f"{ROOT}/figures/a.png", f"{sys.prefix}/lib/x.py:3", "<object at 0x7f00ab12>", "1 of 2\r2 of 2\n"]
    cell = new_code_cell("1", metadata={"execution": {"iopub.status.busy": "2026"}}, execution_count=1)
    shown = new_output("display_data", data={WIDGET: {"model_id": "a"}})
    cell.outputs = [new_output("stream", name="stderr", text="\n".join(texts)), shown]
    notebook = clean(new_notebook(cells=[cell], metadata={"widgets": {"a": 1}}))
    text, widget = notebook.cells[0].outputs
    assert "widgets" not in notebook.metadata and not notebook.cells[0].metadata
    assert text.text == "./figures/a.png\npython/lib/x.py:3\n<object>\n2 of 2\n"
    assert "widget" in widget.data["text/plain"] and WIDGET not in widget.data


def test_styled_tables_keep_their_style_under_names_that_do_not_change():
    def written():
        frames = [pd.DataFrame({"a": [1, 2]}).style.highlight_max(props="font-weight: bold") for _ in range(2)]
        shown = lambda: [new_output("display_data", data={"text/html": frame.to_html()}) for frame in frames]
        cells = clean(new_notebook(cells=[new_code_cell("1", outputs=shown()) for _ in range(2)])).cells
        return [output.data["text/html"] for cell in cells for output in cell.outputs]

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
        notebook = new_notebook(cells=[new_code_cell("1") for _ in range(3)])
        shows(base64.b64encode(buffer.getvalue()).decode(), "image/png")(notebook)
        assert [*clean(notebook).cells[2].outputs[0].data] == [kind]


def test_figures_go_below_build_unless_the_environment_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv(FIGURES, raising=False)
    monkeypatch.chdir(tmp_path)
    assert figures_folder() == tmp_path / "build" / "figures"
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert figures_folder() == tmp_path / "build" / "figures"
    monkeypatch.setenv(FIGURES, "figures")
    assert figures_folder() == tmp_path / "figures"


@pytest.mark.slow
def test_refresh_makes_a_good_pair_twice_the_same_and_leaves_it_when_a_cell_fails(tmp_path, monkeypatch):
    monkeypatch.delenv(FIGURES, raising=False)
    source, steps, text = tmp_path / "00_pair.py", [], SOURCE.replace("print(2**BITS)", f"%env {FIGURES}")
    source.write_text(text)
    target = refresh(source, lambda done, total: steps.append((done, total)))
    first = target.read_bytes()
    assert check(source) == [] and steps == [(1, 3), (2, 3), (3, 3)] and b"'figures'" in first
    assert main(["refresh", str(source)]) == 0 and target.read_bytes() == first
    source.write_text(text.replace("BITS > 2", "BITS > 5"))
    with pytest.raises(RuntimeError, match="code cell 3"):
        refresh(source)
    assert main(["refresh", str(source)]) == 1 and target.read_bytes() == first
