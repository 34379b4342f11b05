"""Pages for a browser: they hold everything they show, and say what was measured."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import passionsr_lab as lab
from passionsr_lab.cli.main import main
from passionsr_lab.imaging.psnr import psnr_rgb
from passionsr_lab.pages.compare import Comparison

RAMP = np.linspace(0, 1, 8 * 8 * 3).reshape(8, 8, 3)


def addresses(page: str) -> set[tuple]:
    return set(re.findall(r"""(?:src|href)=["']([^"']*)|url\(([^)]*)|(https?://\S*)""", page))


def pictures(page: str) -> dict[str, np.ndarray]:
    found = json.loads(re.search(r"previousElementSibling, (\{.*\})\)</script>", page)[1])["pictures"]
    decode = lambda source: Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    return {picture["name"]: np.asarray(decode(picture["source"]).convert("RGB")) for picture in found}


@pytest.fixture(scope="module")
def tests():
    return lab.bundled("test", 2, 32)


@pytest.fixture(scope="module")
def made(pipe):
    pairs, found = lab.bundled("calibration", 2, 32), {}
    for name in ("maxmin", "lbq"):
        q = lab.quantize(pipe, "W4A4")
        found[name] = q, lab.calibrate(q, pairs, name, epochs=1, batch=2)
    return found


def test_a_comparison_holds_its_pictures_to_the_last_bit_and_a_small_one_as_blocks(tmp_path):
    low = RAMP[::4, ::4]
    page = Comparison({"LR": low, "</script>": RAMP}, "LR").save(tmp_path / "a.html").read_text()
    shown = pictures(page)
    np.testing.assert_array_equal(shown["</script>"], (RAMP * 255).round())
    np.testing.assert_array_equal(shown["LR"], (low.repeat(4, 0).repeat(4, 1) * 255).round())
    assert page.count("</script>") == 1, "a name ends no script"
    small = Comparison(
        {"a": np.random.default_rng(0).random((64, 64, 3)), "b": RAMP.repeat(8, 0).repeat(8, 1)}, quality=80
    )
    assert len(small.page().html) < 0.7 * len(Comparison(small.pictures).page().html)
    assert Comparison({"a": low, "b": low})._repr_html_().startswith("<iframe srcdoc=")


def test_a_simulated_pipeline_is_called_so_and_has_no_seconds(pipe, made, tests):
    page = Comparison.of({"FP": pipe, "W4A4": made["lbq"][0]}, tests[0].lr, tests[0].hr)
    assert [re.sub(r"[\d.e-]+ s$", "T s", name) for name in page.pictures] == ["FP, T s", "W4A4, simulated", "HR"]
    assert (page.left[:2], page.right) == ("FP", "W4A4, simulated")
    np.testing.assert_allclose(page.pictures[page.right], np.moveaxis(made["lbq"][0](tests[0].lr).numpy(), 0, -1))


@pytest.mark.parametrize(("images", "more", "words"), [
    ({"a": RAMP}, {}, "two pictures or more"), ({"a": RAMP, "b": RAMP[:, :5]}, {}, "no whole fraction"),
    ({"a": RAMP, "b": RAMP}, {"left": "c"}, "no picture called 'c'"), ({"a": RAMP, "b": RAMP}, {"at": 2}, "between 0"),
])  # fmt: skip
def test_pictures_that_cannot_be_compared_are_refused(images, more, words):
    with pytest.raises(ValueError, match=words):
        Comparison(images, **more)


def test_a_report_needs_no_network_and_its_numbers_are_those_of_the_pipelines(pipe, made, tests, tmp_path):
    models, records = ({name: pair[i] for name, pair in made.items()} for i in (0, 1))
    page = lab.report(models, tests, records).save(tmp_path / "report.html").read_text()
    assert all("".join(found).startswith("data:") for found in addresses(page)) and len(page) < 5e6
    for q in models.values():
        fidelity = np.mean([psnr_rgb(q(pair.lr), pipe(pair.lr)) for pair in tests])
        assert f"<td>{fidelity:.4g}</td>" in page
    timed = re.findall(r"<th[^>]*>([^<]*(?:second|latency)[^<]*)</th>", page)
    assert page.count("simulated") >= 2 and timed == ["calibration, CPU seconds"], "no latency of a simulated model"
    assert all(f">{layer}</td>" in page for layer in models["lbq"].layers)
    assert page == lab.report(models, tests, records).html, "the same page twice"


def test_what_a_report_cannot_be_about_is_refused_before_any_work(pipe, made, tests, make_pipe):
    other = lab.quantize(make_pipe(seed=1), "W4A4")
    lab.calibrate(other, tests, "maxmin")
    for wrong, words in (
        (pipe, "calibrated pipelines"), (lab.quantize(pipe, "W4A4"), "calibrated pipelines"), ({}, "at least one"),
        ({"a": made["lbq"][0], "b": other}, "one full-precision model"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            lab.report(wrong, tests)
    (first, frame), (second, _) = made.values()
    for records, words in ((frame, "given by name: a, b"), ({"c": frame}, "records of 'c'")):
        with pytest.raises(ValueError, match=words):
            lab.report({"a": first, "b": second}, tests, records)
    with pytest.raises(ValueError, match="no pairs"):
        lab.report(made["lbq"][0], [])


def test_the_command_writes_a_page_about_saved_models(pipe, made, tmp_path, capsys):
    model, out = pipe.save(tmp_path / "model"), tmp_path / "page.html"
    folders = [str(lab.save(q, tmp_path / name)) for name, (q, _) in made.items()]
    arguments = ["report", *folders, "--model", str(model), "--pairs", "1", "--size", "32", "--json"]
    assert main([*arguments[:3], str(out), *arguments[3:]]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["models"] == ["maxmin", "lbq"] and told["label"] == "simulated" and out.stat().st_size == told["bytes"]
