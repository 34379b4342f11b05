"""YAML that says one thing: every key once, every number as all readers of YAML take it, no more than it shows.

YAML itself allows more: a key twice (the last wins), `042` for 34, `no` for false, aliases that multiply, nodes that
hold themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yaml import Node, SafeLoader, ScalarNode

BYTES = 100_000  # of a file
NODES = 10_000  # keys, values and lists, counted anew wherever an alias repeats them
AMBIGUOUS = {  # what version 1.2 of YAML takes otherwise than 1.1 and PyYAML
    "int": re.compile(r"[-+]?0[0-9_]+|[-+]?0b.*|.*[:_].*"),  # octal, binary, base 60, underscores between digits
    "float": re.compile(r".*[:_].*"),
    "bool": re.compile(r"(?i)yes|no|on|off"),
}


def read_strict(file: str | Path) -> tuple[dict, dict[str, int]]:
    """The content of a YAML file, and the line of each of its keys by dotted name ("quantize_config.Unet.split").

    Raises:
        ValueError: the file cannot be read, is no YAML, says two things, or is larger than a configuration is; the
            message names the file and the line.
    """
    import yaml

    try:
        loader, lines = yaml.SafeLoader(_bytes(Path(file))), {}
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"{file} is not a configuration: it must hold names and values.")
        _Inspection(loader, lines).inspect(node)
        return loader.construct_document(node), lines
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}.") from None
    except yaml.MarkedYAMLError as error:
        line, told = error.problem_mark.line + 1, ", ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"{file}, line {line}: {told}.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not a YAML file: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply for a configuration.") from None


def _bytes(file: Path) -> bytes:
    if file.exists() and not file.is_file():
        raise OSError("it is no file")
    with file.open("rb") as stream:
        content = stream.read(BYTES + 1)
    if len(content) > BYTES:
        raise OSError(f"it has more than {BYTES:,} bytes, which no configuration has")
    return content


class _Inspection:
    """A walk through a document before anything is built of it; `lines` gets the line of every key."""

    def __init__(self, loader: SafeLoader, lines: dict[str, int]):
        self.loader, self.lines, self.count = loader, lines, 0

    def inspect(self, node: Node, name: str = "", parents: tuple[Node, ...] = (), merged: bool = False) -> None:
        self.count += 1
        if self.count > NODES:
            _refuse(node, f"{name} makes more than {NODES:,} values, as aliases that repeat aliases do")
        if node in parents:
            _refuse(node, f"{name} holds itself")
        parents = (*parents, node)
        if node.id == "mapping":
            for key, value, merge in self._entries(node, name, merged):
                self.inspect(value, key, parents, merged or merge)
        elif node.id == "sequence":
            for i, value in enumerate(node.value):
                self.inspect(value, f"{name}.{i}", parents, merged)
        else:
            self._scalar(node, name)

    def _entries(self, node: Node, name: str, merged: bool) -> Iterator[tuple[str, Node, bool]]:
        """(dotted name, value, whether it is merged in) of a mapping; the keys of what is merged (`<<`) are its own,
        and keep the line of a key that is there beside it."""
        seen = {}
        for key, value in node.value:
            kind, line = key.tag.rpartition(":")[2], key.start_mark.line + 1
            if kind not in ("str", "merge"):
                _refuse(key, f"{name or 'the file'} has a key that is no name")
            dotted = f"{name}.{key.value}" if name else key.value
            if key.value in seen:
                _refuse(key, f"{dotted} is given twice, first in line {seen[key.value]}")
            seen[key.value] = line
            if kind == "merge":
                yield from ((name, item, True) for item in (value.value if value.id == "sequence" else [value]))
                continue
            self.lines[dotted] = self.lines.get(dotted, line) if merged else line
            yield dotted, value, False

    def _scalar(self, node: ScalarNode, name: str) -> None:
        kind, text = node.tag.rpartition(":")[2], node.value
        try:
            value = self.loader.construct_object(node)
        except (ValueError, LookupError, AttributeError):
            value = math.nan
        if (isinstance(value, float) and not math.isfinite(value)) or (kind == "int" and len(text) > 300):
            _refuse(node, f"{name} is {text[:20]}, which is no finite number or date")
        if kind in AMBIGUOUS and AMBIGUOUS[kind].fullmatch(text):
            _refuse(node, f"{name} is {text}, which readers of YAML take differently (here {value}); write it plainly")


def _refuse(node: Node, problem: str) -> None:
    import yaml

    raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
