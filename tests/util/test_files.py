"""Writing: never half of a file, nothing left of what was killed, the path in every error, one run in one folder."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from made import picture, refused

import passionsr_lab
from passionsr_lab.imaging.pictures import write_image
from passionsr_lab.util.files import claimed, replacing, require_plain, write_checkpoint, write_json, write_tensors

ROOT = Path(passionsr_lab.__file__).parents[1]
BIG = torch.rand(50_000)
WRITERS = {
    "state.pt": lambda path: write_checkpoint(path, {"a": BIG}),
    "tensors.safetensors": lambda path: write_tensors(path, {"a": BIG}),
    "table.json": lambda path: write_json(path, {"a": BIG.tolist()}),
    "1.png": lambda path: write_image(picture(300), path),
    "1.tif": lambda path: write_image(picture(300), path),
}


def python(code, *arguments, **options):
    """A process that runs this code with the library."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_with_path_and_space_and_what_was_there_stays(tmp_path, name, monkeypatch):
    path = tmp_path / name
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # a write beyond fails within the file
    try:
        with refused(path, "could not be written", "what was there is unchanged", kind=OSError):
            WRITERS[name](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old" and [p.name for p in tmp_path.rglob("*")] == [name]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with refused(path, "No space left on device", "MB are free", kind=OSError):
        WRITERS[name](path)


@pytest.mark.parametrize("name", ["unfinished.pt", "1.png", "no_suffix", "a-b.c.json", "ä*[b].png", "x" * 250 + ".png"])
def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_the_same(tmp_path, name):
    code = "import os, sys, signal\nfrom passionsr_lab.util.files import replacing\n"
    code += "with replacing(sys.argv[1]) as t:\n    t.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    assert python(code, tmp_path / name).wait(60) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".") and left.suffix == Path(name).suffix
    other = tmp_path / ".other-abcdefgh.png"
    other.touch()
    with replacing(tmp_path / name) as temporary:
        with replacing(tmp_path / name) as second:
            second.write_text("second")
        temporary.write_text("first")  # what is in use is left alone
    assert {p.name for p in tmp_path.iterdir()} == {name, other.name} and (tmp_path / name).read_text() == "first"


def test_what_is_no_plain_file_is_never_replaced(cli, tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "device.csv").symlink_to(os.devnull)
    (tmp_path / "folder.csv").mkdir()
    before = {path.name: path.lstat().st_ino for path in tmp_path.iterdir()}
    for name in before:
        with refused(tmp_path / name, "name a file to write"), replacing(tmp_path / name):
            pytest.fail("work began")
        code, out, err = cli("compare", "--model", "./nowhere", "--csv", tmp_path / name)
        assert code == 2 and out == "" and "name a file to write" in err, err
    for name in ("/dev/stdout", "/dev/../dev/none", "/proc/self/fd/1"):  # by name alone; nothing is opened
        with refused(name, "no plain file"):
            require_plain(Path(name))
    assert {path.name: path.lstat().st_ino for path in tmp_path.iterdir()} == before
    with replacing(tmp_path / "plain.csv") as temporary:
        temporary.write_text("new")


def test_a_folder_is_for_one_run_at_a_time_and_an_empty_one_goes_again(tmp_path):
    out = tmp_path / "new" / "out"
    with claimed(out):
        with refused(out, "Another run writes to"), claimed(out):
            pytest.fail("a second one got it")
        (out / "result").touch()
    with claimed(out), claimed(tmp_path / "other" / "place"):
        pass
    assert (out / "result").exists() and not (tmp_path / "other").exists()


def test_a_second_command_with_the_same_out_is_refused_and_the_first_ends_well(cli, pipe, tmp_path):
    out, model = tmp_path / "out", pipe.save(tmp_path / "small")
    code = "import sys, time\nfrom passionsr_lab.util.files import claimed\n"
    code += "with claimed(sys.argv[1]):\n    print('mine', flush=True)\n    sys.stdin.read()\n"
    first = python(code, out, stdin=subprocess.PIPE)
    assert first.stdout.readline() == "mine\n"
    for command in (
        ("calibrate", "--model", model, "--pairs", 1, "--size", 32, "--method", "maxmin"),
        ("table2", "--model", model, "--bits", "W8A8", "--methods", "maxmin", "--metrics", "psnr", "--count", 1),
    ):
        code, told, err = cli(*command, "--out", out)
        assert code == 2 and told == "" and err.startswith("error: Another run writes to"), err
    first.communicate("", timeout=60)
    assert cli("calibrate", "--model", model, "--pairs", 1, "--size", 32, "--method", "maxmin", "--out", out)[0] == 0


def test_sigterm_keeps_the_state_as_ctrl_c_does(pipe, tmp_path):
    model, code = pipe.save(tmp_path / "small"), "import sys\nfrom passionsr_lab.cli.main import main\nsys.exit(main())"
    for number in (signal.SIGTERM, signal.SIGINT):
        out = tmp_path / number.name
        command = ("calibrate", "--model", model, "--pairs", 4, "--size", 32, "--epochs", 1000, "--out", out)
        run = python(code, *command)
        until = time.monotonic() + 120
        while not out.exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)
        run.send_signal(number)
        _, err = run.communicate(timeout=60)
        assert (run.returncode, err) == (130, "interrupted; run the same command again to go on\n")
        assert [p.name for p in out.iterdir()] == ["unfinished.pt"]
