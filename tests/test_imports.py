"""What importing costs, and that imports between modules point downwards."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import passionsr_lab

PACKAGE = Path(passionsr_lab.__file__).parent
HEAVY = ("matplotlib", "seaborn", "ipywidgets", "IPython", "pyiqa", "diffusers", "transformers", "pandas")

# The layers from the ground up; a module imports only from layers below its own.  `plots` and `widgets` are packages.
LAYERS = (
    {
        *("config", "quantizer", "transform", "compat", "files", "data", "memory", "norms", "running", "artefacts"),
        *("protocols", "ldm"),
    },
    {"checkpoint", "tags", "weights"},
    {"iqa", "datasets", "pairs"},
    {"layers", "metrics", "prompt", "tables", "notebooks", "plots", "tiling"},
    {"colour"},
    {"model", "text", "official_config", "official_layers"},
    {"train", "sd21"},
    {"pretrained"},
    {"osediff"},
    {"doctor", "surgery"},
    {"calibrate", "observe", "propagation", "cost", "official_convert"},
    {"sensitivity", "sweep", "bitcost", "official"},
    {"paper"},
    {"widgets", "table2", "bench", "official_files"},
    {"passionsr_lab", "__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_after(statement):
    return set(json.loads(run(f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))")))


@pytest.mark.parametrize("statement", ["import passionsr_lab", "import passionsr_lab.__main__"])
def test_importing_loads_no_plotting_widget_or_metric_library(statement):
    modules = loaded_after(statement)
    assert "passionsr_lab.model" in modules or "main" in statement
    assert not [name for name in HEAVY if name in modules]


def test_importing_loads_nothing_that_torch_pillow_and_safetensors_do_not():
    ours = {name.partition(".")[0] for name in loaded_after("import passionsr_lab")}
    given = {name.partition(".")[0] for name in loaded_after("import torch, PIL.Image, safetensors.torch, numpy")}
    extra = ours - given - {"passionsr_lab"} - sys.stdlib_module_names
    assert not {name for name in extra if not name.startswith("_")}


def test_importing_draws_no_random_number_and_prints_nothing():
    code = """
import torch
torch.manual_seed(3)
import passionsr_lab
here = torch.rand(1).item()
torch.manual_seed(3)
assert here == torch.rand(1).item() and not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
"""
    assert run(code) == ""


def test_the_table_of_contents_names_what_there_is():
    assert len(passionsr_lab.__all__) == len(set(passionsr_lab.__all__)) <= 35
    for name in passionsr_lab.__all__:
        assert getattr(passionsr_lab, name) is not None
    for name in ("load", "tiny", "quantize", "calibrate", "save", "score", "observing", "W8A8", "W6A6", "W4A4"):
        assert name in passionsr_lab.__all__


# -- downwards --------------------------------------------------------------------------------------------------------


def sources():
    return sorted(PACKAGE.rglob("*.py"))


def unit(parts):
    """The entry of the layer table for a module's path inside the package."""
    return parts[0] if parts else "passionsr_lab"


def dotted(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def inner_imports(path):
    """(line, path inside the package) of every import of this package, wherever in the file it stands."""
    here = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
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


def edges():
    for path in sources():
        for line, target in inner_imports(path):
            yield dotted(path), target, f"{path.relative_to(PACKAGE)}:{line}"


def test_every_module_has_its_layer():
    assert {unit(dotted(path)) for path in sources()} <= LEVEL.keys()


def test_imports_between_modules_point_downwards():
    seen, wrong = 0, []
    for source, target, where in edges():
        a, b = unit(source), unit(target)
        if a == b or (b == "passionsr_lab" and a in ("tables", "sweep")):  # these ask for __version__
            continue
        seen += 1
        if LEVEL[a] <= LEVEL[b]:
            wrong.append(f"{where}: {a} imports {b}")
    assert seen > 50 and not wrong


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


def test_the_reader_of_imports_sees_them_in_functions_too():
    found = {(unit(a), unit(b)) for a, b, _ in edges()}
    assert {("sweep", "calibrate"), ("paper", "sd21"), ("passionsr_lab", "surgery"), ("surgery", "model")} <= found


def test_what_must_not_know_of_quantization_does_not():
    found = {(unit(a), unit(b)) for a, b, _ in edges()}
    for module in ("model", "data", "metrics", "iqa"):
        assert not {b for a, b in found if a == module} & {"config", "quantizer", "transform", "layers", "surgery"}
    assert ("quantizer", "transform") not in found and ("transform", "quantizer") not in found
    assert not {b for a, b in found if a == "plots"} - {"files", "quantizer", "plots"}


def test_the_library_prints_nothing_and_imports_no_star():
    for path in sources():
        if path.name in ("__main__.py", "notebooks.py") or path == PACKAGE / "bench.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), path
            assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"), path
