"""The notebooks' two commands: execute them anew, and check that what is committed is what the source says.

    python -m passionsr_lab.tools.notebooks refresh notebooks/*.py
    python -m passionsr_lab.tools.notebooks check notebooks/*.py

`notebooks/NN_noun.py` (percent format) is the source; `NN_noun.ipynb` beside it is made from it, with outputs.
"""

from __future__ import annotations

import argparse
import ast
import base64
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

from PIL import Image

from ..util.files import replacing

THREADS = "2"  # of torch while a notebook is refreshed: sums, and so figures, depend on their number
LIMIT = 500_000  # bytes of an executed notebook
PHOTOGRAPH = 60_000  # bytes from which a PNG output is worth a JPEG
WIDGET = "application/vnd.jupyter.widget-view+json"
INSTEAD = "(an interactive widget: it appears when the notebook runs; the static picture shows the same)"
FORMATS = {"formats": "ipynb,py:percent"}
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
PLACES = "home|Users|root|work|tmp|var|opt|usr|mnt|media|srv|data|workspace|private|content"
ABSOLUTE = re.compile(rf"(?<![\w.:/~-])(?:/(?:{PLACES})/[\w.-]+|[A-Za-z]:\\+\w+)")
EMBEDDED = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]+")


def figures_folder() -> Path:
    """Where notebooks save figures: `figures/` of the checkout they run in, or of the present folder without one."""
    here = Path.cwd()
    roots = [p for p in (here, *here.parents) if (p / "pyproject.toml").is_file() and (p / "notebooks").is_dir()]
    return (roots or [here])[0] / "figures"


# -- refresh --------------------------------------------------------------------------------------------------------


def refresh(source: str | Path, progress: Callable[[int, int], None] | None = None, timeout: int = 900) -> Path:
    """Executes a notebook from its source, top to bottom in its own folder, and writes it beside the source.

    What depends on the moment or the machine is taken out: widget state, times, absolute paths, random cell ids.
    The kernel computes with two threads, whatever the number of cores, unless OMP_NUM_THREADS says otherwise.

    Args:
        source: the percent-format file; its .ipynb is replaced only when every cell went well.
        progress: called with (cells done, cells in all).
        timeout: seconds that one cell may take.

    Raises:
        RuntimeError: a cell failed; the message names the notebook, the cell and the error.
    """
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
        client.execute(env={"OMP_NUM_THREADS": THREADS} | os.environ)
    except Exception as error:  # a failed cell, a dead kernel, or nbclient's own clean-up after one
        cause = error.__context__ if isinstance(error, AssertionError) and error.__context__ else error
        cell = done() + (type(cause).__name__ != "CellExecutionError")  # a cell that raised has its number already
        raise RuntimeError(f"{source.name}, code cell {cell}: {_plain(str(cause)).strip()}") from None
    target = source.with_suffix(".ipynb")
    with replacing(target) as temporary:
        temporary.write_text(_written(clean(notebook)), encoding="utf-8")
    return target


def convert(source: str | Path):
    """The notebook that `jupytext --update --to ipynb` makes of a source: its cells, the metadata of the old .ipynb."""
    import jupytext
    from jupytext.combine import combine_inputs_with_outputs

    source = Path(source)
    notebook = jupytext.read(source, fmt="py:percent")
    old = source.with_suffix(".ipynb")
    if old.exists():
        notebook = combine_inputs_with_outputs(notebook, jupytext.read(old), fmt="py:percent")
    notebook.metadata = {"jupytext": FORMATS, "kernelspec": KERNEL}
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02d}"
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return _plain_node(notebook)


def clean(notebook):
    """Takes out of an executed notebook what differs from run to run and from machine to machine; the notebook."""
    notebook.metadata = {"jupytext": FORMATS, "kernelspec": KERNEL, "language_info": {"name": "python"}}
    for i, cell in enumerate(notebook.cells):
        for name in ("execution", "widgets", "ExecuteTime"):
            cell.metadata.pop(name, None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in map(_clean_output, cell.outputs) if o is not None]
            _rename_tables(cell.outputs, i)
    return _plain_node(notebook)


def _rename_tables(outputs: list, cell: int) -> None:
    """Gives pandas' styled tables, whose names are random, the names of their places: cell and number in it."""
    tables = {}
    name = lambda match: tables.setdefault(match[0], f"T_{cell}t{len(tables)}")
    for data in (o.data for o in outputs if "text/html" in o.get("data", {})):
        data["text/html"] = re.sub(r"\bT_[0-9a-f]{5}(?=[_\"])", name, data["text/html"])


def _clean_output(output):
    if output.output_type == "stream":
        output.text = _portable(_plain(output.text))
    data = output.get("data", {})
    if WIDGET in data:
        own = data.get("text/plain", "")
        output.data = {"text/plain": own if own.startswith("(") else INSTEAD}
        output.metadata = {}
    for kind in [k for k in data if k.startswith("text/")]:
        output.data[kind] = _portable(output.data[kind])
    if "image/png" in data:
        _shrink(output)
    return output


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
        del output.data["image/png"]
        output.data["image/jpeg"] = base64.b64encode(buffer.getvalue()).decode()
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


def _plain_node(notebook):
    import nbformat

    return nbformat.from_dict(notebook | {"nbformat": 4, "nbformat_minor": 5})


def _written(notebook) -> str:
    import nbformat

    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


# -- check ----------------------------------------------------------------------------------------------------------


def check(source: str | Path) -> list[str]:
    """What is wrong with a pair, one sentence each; an empty list when the notebook is its source, executed."""
    import jupytext
    import nbformat

    source = Path(source)
    executed = source.with_suffix(".ipynb")
    for path in (source, executed):
        if not path.is_file():
            return [f"there is no {path.name}"]
    try:
        notebook = nbformat.read(executed, as_version=4)
    except (ValueError, OSError, nbformat.ValidationError) as error:
        return [f"{executed.name} cannot be read as a notebook ({str(error).splitlines()[0]})"]
    problems = [*_pair(jupytext.read(source, fmt="py:percent"), notebook), *_executed(notebook), *_skeleton(notebook)]
    if executed.stat().st_size >= LIMIT:
        problems.append(f"{executed.stat().st_size / 1e3:.0f} KB, and {LIMIT / 1e3:.0f} KB is the limit")
    return problems


def _pair(source, notebook) -> Iterator[str]:
    for i, (ours, theirs) in enumerate(zip_longest(source.cells, notebook.cells), 1):
        if ours is None or theirs is None:
            yield f"{len(source.cells)} cells in the source and {len(notebook.cells)} in the notebook"
            return
        for what, a, b in (
            ("is of another type", ours.cell_type, theirs.cell_type),
            ("has another source", ours.source.strip(), theirs.source.strip()),
            ("has other tags", ours.metadata.get("tags", []), theirs.metadata.get("tags", [])),
        ):
            if a != b:
                yield f"cell {i} {what} than the .py says: refresh it"


def _executed(notebook) -> Iterator[str]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "the execution counts are not 1, 2, 3, ...: it was not run once from top to bottom"
    if "widgets" in notebook.metadata or any("widgets" in cell.metadata for cell in notebook.cells):
        yield "it holds widget state"
    for i, cell in enumerate(notebook.cells, 1):
        outputs = cell.get("outputs", [])
        if any(o.output_type == "error" for o in outputs):
            yield f"cell {i} ended with an error"
        if any(WIDGET in o.get("data", {}) for o in outputs):
            yield f"cell {i} holds a widget's output"
        found = next((m for text in [cell.source, *_texts(outputs)] if (m := ABSOLUTE.search(text))), None)
        if found:
            yield f"cell {i} holds an absolute path, {found[0]}"


def _texts(outputs) -> Iterator[str]:
    for output in outputs:
        yield from ([output.text] if output.output_type == "stream" else output.get("traceback", []))
        for kind, content in output.get("data", {}).items():
            if not kind.startswith("image/") or kind == "image/svg+xml":
                yield EMBEDDED.sub("", content if isinstance(content, str) else str(content))


def _skeleton(notebook) -> Iterator[str]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    knobs = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    if len(knobs) != 1:
        yield f"{len(knobs)} cells are tagged `parameters`; one holds the knobs"
    for name in (n for cell in knobs for n in _assigned(cell.source)):
        if name != name.upper():
            yield f"the knob {name} is not written in capitals"
    if not code or not any(isinstance(node, ast.Assert) for node in ast.walk(_parsed(code[-1].source))):
        yield "its last code cell asserts nothing"


def _assigned(code: str) -> list[str]:
    targets = [n.targets if isinstance(n, ast.Assign) else [n.target] for n in _parsed(code).body
               if isinstance(n, (ast.Assign, ast.AnnAssign))]  # fmt: skip
    return [n.id for row in targets for t in row for n in ast.walk(t) if isinstance(n, ast.Name)]


def _parsed(code: str) -> ast.Module:
    try:
        return ast.parse(re.sub(r"^\s*[%!].*$", "", code, flags=re.MULTILINE))
    except SyntaxError:
        return ast.parse("")


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
    start, terminal = time.monotonic(), sys.stderr.isatty()

    def show(cells: int, total: int) -> None:
        if terminal:
            _say(f"\r{source.stem}: cell {cells} of {total}, {time.monotonic() - start:.0f} s ")

    _say("" if terminal else f"{source.stem} ...\n")
    try:
        target = refresh(source, show)
    except (RuntimeError, OSError, ValueError) as error:
        _say(f"\n{source.name}: failed after {time.monotonic() - start:.0f} s\n{error}\n")
        return 1
    size = target.stat().st_size / 1e3
    _say(f"{chr(13) * terminal}{source.stem}: {time.monotonic() - start:.0f} s, {size:.0f} KB" + " " * 20 + "\n")
    return 0


def _check(source: Path) -> int:
    problems = check(source)
    for problem in problems:
        _say(f"{source.with_suffix('.ipynb').name}: {problem}\n")
    return int(bool(problems))


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
