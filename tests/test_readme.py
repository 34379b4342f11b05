"""What README.md shows runs as it stands: every block of Python, and every command as far as its options go."""

import re
import shlex
from pathlib import Path

import click
import pytest
import torch
from made import picture
from PIL import Image
from released import release, small_sd21

import passionsr_lab as lab
from passionsr_lab.cli import common
from passionsr_lab.fullsize.weights import WEIGHTS
from passionsr_lab.store import folder, models
from passionsr_lab.tools import readme

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = re.findall(r"^    passionsr-lab (.+?)(?: {3,}.*|# .*)?$", README, re.M)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a photograph and released files, where few pairs are asked for and "osediff" is a small model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PASSIONSR_STORE", str(tmp_path / "store"))
    picture(12, 10).save("photo.png")
    small, load, few = small_sd21(), lab.load, lab.bundled("calibration", 1, 32)
    for name in (n for n in WEIGHTS["passionsr"].names if n.endswith("W6A6.pth")):
        torch.save(release(small, name.partition("_")[0]), name)
    monkeypatch.setattr(lab, "load", lambda name, *rest: small if name == "osediff" else load(name, *rest))
    for module in (lab, models):
        monkeypatch.setattr(module, "bundled", lambda *_: few)
    return tmp_path


def test_the_python_of_the_readme_runs_from_top_to_bottom(place):
    kept, names = dict(lab.METHODS), {}
    try:
        for block in BLOCKS:
            exec(block, names)
    finally:
        lab.METHODS.clear()
        lab.METHODS.update(kept)
    assert len(BLOCKS) == 3 and Image.open("photo_x4.png").size == (40, 48)
    assert (place / "w6a6" / folder.TENSORS).is_file() and len(list((place / "PTQ").iterdir())) == 2
    assert names["q"].recipe.name == "W6A6 official"


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_readme_have_the_options_that_it_shows(line, place):
    name, *arguments = shlex.split(line)
    command = common.Commands().get_command(None, name)
    if "--config_file" in arguments:
        at = arguments.index("--config_file")
        assert re.fullmatch(r"[\w.]+\.yaml", arguments[at + 1])
        del arguments[at : at + 2]
    with command.make_context(name, arguments, parent=None) as context:
        assert isinstance(context, click.Context) and context.params


def test_the_readme_shows_every_command():
    from passionsr_lab.cli import COMMANDS as every

    assert {line.split()[0] for line in COMMANDS} == set(every)


def test_the_tables_of_the_readme_are_those_of_the_committed_results():
    assert readme.filled(README) == README, "python -m passionsr_lab.tools.readme writes them anew"
    assert re.findall(r"<!-- ([a-z0-9 ]+) -->\n\n\|", README) == list(readme.TABLES)
