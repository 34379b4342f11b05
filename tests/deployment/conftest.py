"""Deployed copies of a small model; the whole folder is skipped where the extra [deploy] is not installed."""

import importlib.util

import pytest

import passionsr_lab as lab

MISSING = [name for name in ("onnx", "openvino", "onnxruntime") if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []


@pytest.fixture(scope="session")
def deployed(calibrated, tmp_path_factory):
    """A function (recipe, method) -> (folder, report) of the small model, made once."""
    made = {}

    def get(recipe="W6A6", method="let"):
        if (recipe, method) not in made:
            folder = tmp_path_factory.mktemp("deployed")
            made[recipe, method] = folder, lab.deploy(calibrated(recipe, method), folder, onnx=True)
        return made[recipe, method]

    return get
