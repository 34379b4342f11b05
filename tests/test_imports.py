"""What importing costs, and that imports between rooms point downwards."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import passionsr_lab

PACKAGE = Path(passionsr_lab.__file__).parent
HEAVY = ("matplotlib", "seaborn", "ipywidgets", "IPython", "pyiqa", "diffusers", "transformers", "pandas")

# The rooms from the ground up; a room imports only from the floors below its own.
FLOORS = (
    {"util"},
    {"imaging"},
    {"pipeline", "kernels"},
    {"quantization"},
    {"fullsize", "calibration"},
    {"official"},
    {"methods"},
    {"store"},
    {"analysis", "evaluation", "deployment"},
    {"plots", "tools", "bench"},
    {"pages"},
    {"widgets"},
    {"cli"},
    {"__main__", "passionsr_lab"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
NARROW = {
    "kernels": set(),
    "quantization": {"util", "kernels"},
    "plots": {"util", "imaging", "quantization"},
}  # rooms that may see less


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_after(statement):
    return set(json.loads(run(f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))")))


def test_importing_loads_no_heavy_library():
    assert not loaded_after("import passionsr_lab") & {"torch", *HEAVY}
    assert not loaded_after("import passionsr_lab as lab\nlab.quantize, lab.calibrate, lab.load, lab.score") & {*HEAVY}
    assert not loaded_after("import passionsr_lab.cli.main") & {*HEAVY}


def test_every_public_name_is_in_the_room_that_the_table_of_contents_says():
    names = [name for names in passionsr_lab.CONTENTS.values() for name in names]
    assert len(names) == len(set(names)) <= 25
    assert all(getattr(passionsr_lab, name) is not None for name in names)
    assert set(names) <= set(dir(passionsr_lab))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = passionsr_lab.nonsense


def test_quantization_can_be_read_and_imported_alone():
    """No hub, no diffusers' loaders, no official files, no other room but util and kernels; under 1,300 lines."""
    blocked = ("huggingface_hub", "diffusers", "transformers", "passionsr_lab.official", "passionsr_lab.fullsize")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked!r}))
from passionsr_lab.quantization import *
import pkgutil, importlib, passionsr_lab.quantization as room
for module in pkgutil.iter_modules(room.__path__):
    importlib.import_module(f"passionsr_lab.quantization.{{module.name}}")
rooms = {{name.split(".")[1] for name in sys.modules if name.startswith("passionsr_lab.") and sys.modules[name]}}
assert rooms == {{"kernels", "quantization", "util"}}, rooms
"""
    run(code)
    assert sum(len(path.read_text().splitlines()) for path in (PACKAGE / "quantization").glob("*.py")) < 1400


# -- downwards --------------------------------------------------------------------------------------------------------


def dotted(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def inner_imports(path):
    """(line, path inside the package) of every import of this package, wherever in the file it stands."""
    here = path.relative_to(PACKAGE).parent.parts
    tree = ast.parse(path.read_text())
    for_types = {id(n) for block in ast.walk(tree) if _only_for_types(block) for n in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from ((node.lineno, tuple(n[1:])) for n in names if n[0] == "passionsr_lab")
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = [*here[: len(here) - node.level + 1], *base]
            elif base[0] == "passionsr_lab":
                base = base[1:]
            else:
                continue
            for alias in node.names:
                whole = (*base, alias.name)
                module = PACKAGE.joinpath(*whole)
                yield node.lineno, whole if module.with_suffix(".py").is_file() or module.is_dir() else tuple(base)


def _only_for_types(node):
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def edges():
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, target in inner_imports(path):
            yield dotted(path), target, f"{path.relative_to(PACKAGE)}:{line}"


def room(parts):
    return parts[0] if parts else "passionsr_lab"


def test_every_file_is_in_a_room_and_imports_between_rooms_point_downwards():
    files = {room(dotted(path)) for path in PACKAGE.rglob("*.py")}
    assert files <= FLOOR.keys()
    wrong, seen = [], 0
    for source, target, where in edges():
        a, b = room(source), room(target)
        if a == b or b == "passionsr_lab" or source[-1] == "__main__":  # only __version__ is asked for; a way in
            continue
        seen += 1
        if FLOOR[a] <= FLOOR[b] or b not in NARROW.get(a, {b}):
            wrong.append(f"{where}: {a} imports {b}")
    assert seen > 100 and not wrong


def test_no_module_imports_itself_in_a_circle():
    graph = {}
    for source, target, _ in edges():
        if source and target and source != target:
            graph.setdefault(source, set()).add(target)

    def visit(node, path):
        assert node not in path, " -> ".join(".".join(p) for p in (*path, node))
        for following in graph.get(node, ()):
            visit(following, (*path, node))

    for node in graph:
        visit(node, ())


def test_the_library_prints_nothing_and_imports_no_star():
    speaking = {"cli", "tools", "bench", "__main__"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            printing = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
            assert not printing or room(dotted(path)) in speaking, path
            assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"), path
