"""Progress is shown on a terminal, wiped at the end, and nowhere else."""

import io
import sys

import pytest

import passionsr_lab as lab
from passionsr_lab.util.progress import follow


class Terminal(io.StringIO):
    def isatty(self):
        return True


def attached(monkeypatch):
    """A terminal in the place of standard error; pytest puts its own there between fixtures and tests."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def calibrate(pipe, pairs, **options):
    return lab.calibrate(lab.quantize(pipe, "W6A6"), pairs[:2], "lbq", epochs=1, batch=1, **options)


def test_a_calibration_shows_on_a_terminal_how_far_it_is_and_wipes_the_line(pipe, pairs, monkeypatch):
    terminal = attached(monkeypatch)
    frame = calibrate(pipe, pairs)
    lines = terminal.getvalue().split("\r\x1b[K")
    assert lines[1] == f"LBQ W6A6: 0 of {len(frame)}, the first tells how long" and lines[-1] == ""
    assert "\n" not in terminal.getvalue()
    terminal.truncate(0)
    assert list(follow("abc", 3, "letters", every=0)) == list("abc")
    assert "letters: 2 of 3, 0 s, about 0 s left" in terminal.getvalue()


def test_nothing_is_shown_when_it_is_not_wanted_or_nobody_looks(pipe, pairs, capsys, monkeypatch):
    terminal = attached(monkeypatch)
    calibrate(pipe, pairs, quiet=True)
    assert terminal.getvalue() == ""
    monkeypatch.undo()
    calibrate(pipe, pairs)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", None)  # as pythonw has it
    calibrate(pipe, pairs)


@pytest.mark.parametrize("options, shown", [((), True), (("--quiet",), False)])
def test_a_large_picture_is_followed_by_its_rows(cli, pipe, tmp_path, monkeypatch, options, shown):
    from made import picture

    model = pipe.save(tmp_path / "small")
    picture(24, 20).save(tmp_path / "x.png")
    stream = attached(monkeypatch)
    code, *_ = cli("upscale", tmp_path / "x.png", tmp_path / "y.png", "--model", model, "--tile", 8, *options)
    assert code == 0 and ("rows of x.png" in stream.getvalue() and "96" in stream.getvalue()) == shown
    assert shown or stream.getvalue() == ""
