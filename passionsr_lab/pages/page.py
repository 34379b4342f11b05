"""A page that holds everything it shows: no network, no kernel, one file to mail."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ..util.files import replacing


@dataclass(frozen=True)
class Page:
    """A title, a body in HTML, and the style sheets of this room that it needs; a notebook shows it by itself."""

    title: str
    body: str
    styles: tuple[str, ...] = ()

    @property
    def html(self) -> str:
        """The whole page."""
        styles = "".join(f"<style>{asset(name)}</style>" for name in self.styles)
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title>{styles}'
        return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{self.body}\n</body></html>\n'

    def save(self, path: str | Path) -> Path:
        """Writes the page, atomically; its path."""
        with replacing(path) as temporary:
            temporary.write_text(self.html, encoding="utf-8")
        return Path(path)

    def frame(self, width: int | str, height: int) -> str:
        """The page as an element within another."""
        size = f'width="{width}" height="{height}" style="border:0;max-width:100%"'
        return f'<iframe srcdoc="{html.escape(self.html)}" {size} title="{html.escape(self.title)}"></iframe>'

    def __repr__(self) -> str:
        return f"({self.title}: a page of {len(self.html.encode()) / 1e6:.1f} MB; save(path) writes it)"

    def _repr_html_(self) -> str:
        return self.frame("100%", 640)


def data_uri(kind: str, content: bytes) -> str:
    """A picture ("png", "webp") as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def asset(name: str) -> str:
    """A text file of this room."""
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
