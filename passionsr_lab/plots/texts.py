"""Where the lines of a text end."""

from __future__ import annotations

import re

END = "name at the end of a line"  # gid of such a text


def title_lines(text: str, width: float) -> list[str]:
    """The lines of a title in a figure of this width (inches)."""
    return wrapped(text, 16.5 * width)


def wrapped(text: str, characters: float) -> list[str]:
    """Lines of at most so many characters, broken at spaces and inside dotted names."""
    lines = [""]
    for word in re.split(r"(?<= )|(?<=\w\.)(?=[A-Za-z])", text):
        if len(lines[-1] + word.rstrip()) > characters and lines[-1]:
            lines.append("")
        lines[-1] += word
    return [line.rstrip() for line in lines]
