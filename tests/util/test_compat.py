"""Packages that break each other import after their cures, and healthy ones are left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BROKEN = """
from passionsr_lab.util.compat import torchvision_importable
try:
    torchvision_importable()
except RuntimeError as error:
    print(error)
import torch, torchvision
print(torchvision.healthy, hasattr(torch.ops.torchvision, "nms"))
"""
CURES = {
    "torchvision": """
from passionsr_lab.util.compat import torchvision_importable
assert torchvision_importable() and torchvision_importable()
import torch, torchvision
from torchvision.models import alexnet
from torchvision.transforms.functional import resize
assert alexnet(weights=None)(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
assert resize(torch.zeros(3, 8, 8), 4).shape == (3, 4, 4)
""",
    "diffusers and transformers, after a failed attempt": """
try:
    from transformers import CLIPTextModel
except ImportError:
    pass
from passionsr_lab.util.compat import torchvision_importable
torchvision_importable()
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel
""",
    "clip, without pkg_resources and leaving no stand-in": """
from importlib.util import find_spec
before = find_spec("pkg_resources") is not None
from passionsr_lab.util.compat import clip_importable
assert clip_importable() and clip_importable()
import pyiqa.archs.clipiqa_arch, clip
assert clip.tokenize("a good image").shape == (1, 77)
assert (find_spec("pkg_resources") is not None) == before
""",
}


def python(code, *folders):
    """What a fresh interpreter prints; fails with its traceback."""
    path = os.pathsep.join(map(str, [*folders, ROOT]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("what", CURES)
def test_packages_import_after_the_cure(what):
    python(CURES[what])


def test_a_healthy_torchvision_is_left_alone_and_another_fault_is_raised_as_it_is(tmp_path):
    (tmp_path / "torchvision").mkdir()
    file = tmp_path / "torchvision" / "__init__.py"
    file.write_text("healthy = True\n")
    assert python(BROKEN, tmp_path).strip() == "True False"
    file.write_text("raise RuntimeError('another fault')\n")
    assert python(BROKEN.partition("import torch, ")[0], tmp_path).strip() == "another fault"
