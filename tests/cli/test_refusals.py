"""What the commands refuse, before work begins where they can; and signals and streams, in processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import passionsr_lab
from passionsr_lab.cli import COMMANDS

MODEL, PHOTOS, HERE, GOOD = "MODEL", "PHOTOS", "HERE", "HERE/good.png"  # put in by the test
NOWHERE = ("--model", "./nowhere")  # where this is not what is told, no model was looked for
UPSCALE, CALIBRATE = (
    ("upscale", GOOD),
    ("calibrate", "--out", "HERE/out", "--images", PHOTOS, "--model", MODEL, "--size", 16),
)
SETS = ("pairs", "--images", PHOTOS, "--out", "HERE/out")
WRONG = {  # arguments, what is told
    "no command": ((), "Missing command"),
    "another command": (("paint",), "No such command 'paint'"),
    "no output": (UPSCALE, "Missing argument 'OUTPUT'"),
    "no out": (("calibrate",), "Missing option '--out'"),
    "a word for a number": (("calibrate", "--out", "x", "--epochs", "many"), "'many' is not a valid integer"),
    "no epochs": (("calibrate", "--out", "x", "--epochs", 0), "0 is not in the range x>=1"),
    "no size": (("evaluate", *NOWHERE, "--size", 0), "0 is not in the range x>=4"),
    "no pairs": ((*SETS, "--count", 0), "0 is not in the range x>=1"),
    "a negative tile": ((*UPSCALE, "HERE/x.png", "--tile", -1), "-1 is not in the range x>=0"),
    "another method": (("calibrate", "--out", "x", "--method", "magic"), "'magic' is not one of"),
    "out that is a file": (("calibrate", *NOWHERE, "--out", GOOD), "is a file"),
    "no input": (("upscale", "HERE/no.png", "HERE/x.png", *NOWHERE), "There is no image at"),
    "an empty folder": (("upscale", "HERE/empty", "HERE/out", *NOWHERE), "holds no images"),
    "the input as output": ((*UPSCALE, GOOD, *NOWHERE), "would overwrite the input"),
    "an output that is a folder": ((*UPSCALE, "HERE/folder.png", *NOWHERE), "is a folder"),
    "an output that is a pipe": ((*UPSCALE, "HERE/pipe.png", *NOWHERE), "no plain file"),
    "an output that is a device": ((*UPSCALE, "HERE/device.png", *NOWHERE), "no plain file"),
    "an output without suffix": ((*UPSCALE, "HERE/x", *NOWHERE), "unknown file extension"),
    "an output of another suffix": ((*UPSCALE, "HERE/x.txt", *NOWHERE), "unknown file extension"),
    "a file for a folder": (("upscale", PHOTOS, GOOD, *NOWHERE), "is no folder"),
    "another colour": ((*UPSCALE, "HERE/x.png", "--colour", "sepia", *NOWHERE), "adain, wavelet, nofix"),
    "no model": ((*UPSCALE, "HERE/x.png", *NOWHERE), "There is no folder"),
    "a folder that is no model": ((*UPSCALE, "HERE/x.png", "--model", HERE), "passionsr.json"),
    "no quantized model": ((*UPSCALE, "HERE/x.png", "--model", MODEL, "--quantized", "HERE/none"), "none"),
    "a damaged picture": (("upscale", "HERE/damaged/bad.png", "HERE/x.png", "--model", MODEL), "be read as an image"),
    "tiles without a step": ((*UPSCALE, "HERE/x.png", "--tile", 8, "--overlap", 8, "--model", MODEL), "share 0 to 7"),
    "a recipe that is none": ((*CALIBRATE, *NOWHERE, "--recipe", "W9"), "name is like W6A6"),
    "a width that is none": ((*CALIBRATE, *NOWHERE, "--recipe", "W1A4"), "whole bits from 2 to 16"),
    "other modules": ((*CALIBRATE, "--modules", "unet,vae"), "modules are some of"),
    "no rates": ((*CALIBRATE, *NOWHERE, "--rates", "fast"), "Rates are like transform=0.03,bounds=0.5"),
    "rates of nothing": ((*CALIBRATE, "--rates", "magic=1"), "magic"),
    "no device": ((*CALIBRATE, *NOWHERE, "--device", "abacus"), "There is no device 'abacus' here"),
    "an odd crop": ((*CALIBRATE, *NOWHERE, "--size", 30), "multiple of 4"),
    "too large a crop": ((*CALIBRATE, *NOWHERE, "--size", 512), "too small for 512-pixel crops"),
    "a damaged photograph": ((*CALIBRATE, *NOWHERE, "--images", "HERE/damaged"), "bad.png cannot be read"),
    "no photographs": ((*CALIBRATE, *NOWHERE, "--images", "no/such"), "is not a folder"),
    "too large a set": ((*SETS, "--size", 512), "No photograph"),
    "an odd size": (("cost", "--model", "tiny", "--size", 100), "multiple of"),
    "no references": (("measure", "-i", PHOTOS, "--metrics", "psnr"), "give references"),
    "other references": (("measure", "-i", PHOTOS, "-r", "HERE/damaged"), "must hold the same names"),
    "no data set": (("table2", "--out", "HERE/out", "--datasets", "RealSR=HERE"), "There is no RealSR"),
    "no threads": (("compare", *NOWHERE, "--threads", "1,0"), "Whole numbers from 1 on are expected"),
    "an adapter in part": (
        ("train", "--images", PHOTOS, "--out", "HERE/out", "--timestep", "249", "--part", "0.5"), "only --start"
    ),
    "another shape": (("train", "--images", PHOTOS, "--out", "HERE/out", "--shape", "wide"), "one of tiny, narrow"),
    "no work": (("doctor", "everything"), "choose from"),
}  # fmt: skip


@pytest.fixture(scope="module")
def here(picture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    picture(9, 7).save(folder / "good.png")
    for name in ("empty", "folder.png", "damaged"):
        (folder / name).mkdir()
    (folder / "damaged" / "bad.png").write_bytes(b"no picture")
    (folder / "device.png").symlink_to(os.devnull)
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_done_is_told_in_one_sentence_and_nothing_is_written(cli, here, model, photos, what):
    arguments, message = WRONG[what]
    places = {HERE: here, MODEL: model, PHOTOS: photos}
    before = {path: path.lstat().st_mtime_ns for path in here.iterdir()}
    for name, place in places.items():
        arguments = [str(argument).replace(name, str(place)) for argument in arguments]
    code, out, err = cli(*arguments, *(["--json"] if arguments else []))
    *usage, error = err.splitlines()
    assert code == 2 and out == "" and error.startswith("error: ") and message in error, err
    assert not usage or usage[0].startswith("Usage: python -m passionsr_lab"), "two lines at most"
    assert {path: path.lstat().st_mtime_ns for path in here.iterdir()} == before


def test_another_models_quantization_is_refused(cli, here, model, photos, make_pipe, tmp_path):
    other = make_pipe(seed=1).save(tmp_path / "other")
    command = ("calibrate", "--model", model, "--images", photos, "--pairs", 1, "--size", 16, "--method", "maxmin")
    assert cli(*command, "--out", tmp_path / "q")[0] == 0
    code, _, err = cli(
        "upscale", here / "good.png", tmp_path / "x.png", "--model", other, "--quantized", tmp_path / "q"
    )
    assert code == 2 and "calibrated for another model" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(cli, command):
    code, out, err = cli(command, "--help")
    assert code == 0 and err == "" and f"examples:\n    python -m passionsr_lab {command} " in out
    assert all(option in out for option in ("--json", "--quiet", COMMANDS[command][:40]))


# -- processes --------------------------------------------------------------------------------------------------------


def process(*arguments, before="", **streams):
    """Exit code and standard error of a command in a process that first runs the code `before`."""
    code = f"import os, signal, sys\n{before}\nfrom passionsr_lab.cli.main import main\nsys.exit(main({arguments!r}))"
    root = Path(passionsr_lab.__file__).parents[1]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | streams
    done = subprocess.run([sys.executable, "-c", code], cwd=root, text=True, check=False, timeout=120, **streams)
    return done.returncode, done.stderr


def test_the_list_of_commands_needs_no_heavy_library():
    heavy = (
        "import atexit\natexit.register(lambda: {'torch', 'diffusers', 'numpy'} & sys.modules.keys() and os._exit(9))"
    )
    assert process("--help", before=heavy) == (0, "")


@pytest.mark.parametrize("module", ["passionsr_lab.cli.terminal", "click", "torch.nn", "diffusers"])
def test_ctrl_c_while_a_library_is_loaded_is_told_in_one_sentence(module):
    press = f"""
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Press())
"""
    code, err = process("evaluate", "--pairs", "1", before=press)
    assert code in (130, -signal.SIGINT), err  # which a shell calls 130 too
    assert err == "interrupted; run the same command again to go on\n"


def test_a_full_disk_and_a_closed_pipe_give_no_traceback():
    with open("/dev/full", "w") as full:
        assert process("--help", stdout=full) == (2, "error: [Errno 28] No space left on device\n")
        assert process("paint", stderr=full)[0] == 2
    reader, writer = os.pipe()
    os.close(reader)
    assert process("--help", stdout=writer) == (141, "")
    os.close(writer)
