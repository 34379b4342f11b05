"""The notebooks' two commands: execute them anew, and check that what is committed is what the source says.

    python -m passionsr_lab.tools.notebooks refresh notebooks/*.py
    python -m passionsr_lab.tools.notebooks check notebooks/*.py

`notebooks/NN_noun.py` (percent format) is the source; `NN_noun.ipynb` beside it is made from it, with outputs.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ..util.files import replacing
from .pairing import check

FIGURES = "PASSIONSR_FIGURES"  # the environment's name for the folder of figures, below the checkout
THREADS = "1"  # of torch while a notebook is refreshed, as in `make test`: the same numbers, and so the same store
PHOTOGRAPH = 60_000  # bytes from which a PNG output is worth a JPEG
WIDGET = "application/vnd.jupyter.widget-view+json"
INSTEAD = "(an interactive widget: it appears when the notebook runs; the static picture shows the same)"
FORMATS = {"formats": "ipynb,py:percent"}
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def checkout() -> Path:
    """The checkout that a notebook runs in, or the present folder without one."""
    here = Path.cwd()
    roots = [p for p in (here, *here.parents) if (p / "pyproject.toml").is_file() and (p / "notebooks").is_dir()]
    return (roots or [here])[0]


def committed(name: str):
    """The table `figures/NAME.csv` of the checkout, to the last bit, or None where there is none."""
    from ..evaluation.tables import read_table

    path = checkout() / "figures" / f"{name}.csv"
    return read_table(path) if path.is_file() else None


def figures_folder() -> Path:
    """Where notebooks save figures: `build/figures` of the checkout, and the committed `figures` in a refresh.

    PASSIONSR_FIGURES in the environment names another folder.
    """
    return checkout() / os.environ.get(FIGURES, "build/figures")


# -- refresh --------------------------------------------------------------------------------------------------------


def refresh(source: str | Path, progress: Callable[[int, int], None] | None = None, timeout: int = 900) -> Path:
    """Executes a notebook from its source, top to bottom in its own folder, and writes it beside the source.

    What depends on the moment or the machine is taken out: widget state, times, absolute paths, random cell ids.
    The kernel computes with one thread and saves to `figures`, unless the environment says otherwise.

    Args:
        source: the percent-format file; its .ipynb is replaced only when every cell went well.
        progress: called with (cells done, cells in all).
        timeout: seconds that one cell may take.

    Raises:
        RuntimeError: a cell failed; the message names the notebook, the cell and the error.
    """
    import nbformat
    from nbclient import NotebookClient

    source = Path(source)
    notebook = convert(source)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    done = lambda: sum(cell.execution_count is not None for cell in code)
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name=KERNEL["name"], resources={"metadata": {"path": str(source.parent)}},
        record_timing=False, store_widget_state=False, coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=40"],
        on_cell_executed=lambda **_: progress and progress(done(), len(code)),
    )  # fmt: skip
    try:
        client.execute(env={"OMP_NUM_THREADS": THREADS, FIGURES: "figures"} | os.environ)
    except Exception as error:  # a failed cell, a dead kernel, or nbclient's own clean-up after one
        cause = error.__context__ if isinstance(error, AssertionError) and error.__context__ else error
        cell = done() + (type(cause).__name__ != "CellExecutionError")  # a cell that raised has its number already
        raise RuntimeError(f"{source.name}, code cell {cell}: {_plain(str(cause)).strip()}") from None
    notebook = clean(notebook)
    nbformat.validate(notebook)
    with replacing(source.with_suffix(".ipynb")) as temporary:
        temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    return source.with_suffix(".ipynb")


def convert(source: str | Path):
    """The notebook of a source, not executed: its cells with tags and the numbers of their places as ids."""
    import jupytext
    import nbformat

    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = {"jupytext": FORMATS, "kernelspec": KERNEL}
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02d}"
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
    return nbformat.from_dict(notebook | {"nbformat": 4, "nbformat_minor": 5})


def clean(notebook):
    """Takes out of an executed notebook what differs from run to run and from machine to machine; the notebook."""
    import nbformat

    notebook.metadata = {"jupytext": FORMATS, "kernelspec": KERNEL, "language_info": {"name": "python"}}
    for i, cell in enumerate(notebook.cells):
        for name in ("execution", "widgets", "ExecuteTime"):
            cell.metadata.pop(name, None)
        for output in cell.get("outputs", ()):
            _clean_output(output)
        _rename_tables(cell.get("outputs", ()), i)
    return nbformat.from_dict(notebook)


def _rename_tables(outputs: list, cell: int) -> None:
    """Gives pandas' styled tables, whose names are random, the names of their places: cell and number in it."""
    tables = {}
    name = lambda match: tables.setdefault(match[0], f"T_{cell}t{len(tables)}")
    for data in (o.data for o in outputs if "text/html" in o.get("data", {})):
        data["text/html"] = re.sub(r"\bT_[0-9a-f]{5}(?=[_\"])", name, data["text/html"])


def _clean_output(output) -> None:
    if output.output_type == "stream":
        output.text = _portable(_plain(output.text))
    data = output.get("data", {})
    if WIDGET in data:
        own = data.get("text/plain", "")
        output.data = {"text/plain": own if own.startswith("(") else INSTEAD}
        output.metadata = {}
    for kind in [k for k in output.get("data", {}) if k.startswith("text/")]:
        output.data[kind] = _portable(output.data[kind])
    if "image/png" in output.get("data", {}):
        _shrink(output)


def _shrink(output) -> None:
    """A picture of photographs becomes JPEG when that saves a third; files in figures/ stay."""
    png = base64.b64decode(output.data["image/png"])
    if len(png) < PHOTOGRAPH:
        return
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
        white.save(buffer, "JPEG", quality=65, optimize=True)
    if 3 * len(buffer.getvalue()) < 2 * len(png):
        output.data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()
        del output.data["image/png"]
        output.metadata = {}


def _portable(text: str) -> str:
    """Text without the paths of this machine and the addresses of objects."""
    root = Path(__file__).resolve().parents[2]
    for place, name in ((Path(sys.prefix), "python"), (root, "."), (Path.home(), "~")):
        if place != Path(place.anchor):
            text = text.replace(str(place), name)
    text = re.sub(r"(?:/\w+)*/ipykernel_\d+/\d+\.py", "cell", text)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _plain(text: str) -> str:
    """Text without terminal colours, and of every progress bar only its last state."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return "".join(line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").splitlines(keepends=True))


# -- command line ---------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """`refresh FILES...` or `check FILES...`; 0 when all went well, 1 when a file is named on standard error."""
    top = argparse.ArgumentParser("python -m passionsr_lab.tools.notebooks", description=__doc__.splitlines()[0])
    top.add_argument("command", choices=("refresh", "check"))
    top.add_argument("files", nargs="+", type=Path, help="notebooks/NN_noun.py (or .ipynb)")
    options = top.parse_args(arguments)
    run = {"refresh": _refresh, "check": _check}[options.command]
    return max([run(path.with_suffix(".py")) for path in options.files])


def _refresh(source: Path) -> int:
    from tqdm import tqdm

    start = time.monotonic()
    with tqdm(desc=source.stem, unit="cell", file=sys.stderr, disable=None, leave=False) as bar:

        def show(cells: int, total: int) -> None:
            bar.total = total
            bar.update(cells - bar.n)

        try:
            size, error = refresh(source, show).stat().st_size, None
        except (RuntimeError, OSError, ValueError) as failed:
            error = failed
    told = f"failed\n{error}" if error else f"{size / 1e3:.0f} KB"
    sys.stderr.write(f"{source.stem}: {time.monotonic() - start:.0f} s, {told}\n")
    return int(error is not None)


def _check(source: Path) -> int:
    problems = check(source)
    sys.stderr.writelines(f"{source.with_suffix('.ipynb').name}: {problem}\n" for problem in problems)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
