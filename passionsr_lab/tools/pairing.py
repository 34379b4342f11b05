"""Whether a committed notebook is its source, executed, and has the skeleton that all notebooks share."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

LIMIT = 550_000  # bytes of an executed notebook
PLACES = "home|Users|root|work|tmp|var|opt|usr|mnt|media|srv|data|workspace|private|content"
ABSOLUTE = re.compile(rf"(?<![\w.:/~-])(?:/(?:{PLACES})/[\w.-]+|[A-Za-z]:\\+\w+)")
EMBEDDED = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]+")


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
        if any("widget-view" in kind for o in outputs for kind in o.get("data", {})):
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
