"""`deploy`: a calibrated model into a folder of integers that an engine runs."""

import click

from .common import Told, command
from .options import FOLDER, MODEL, PATH

SHOWN = ("encoder", "unet", "decoder")


@command(
    "deploy --quantized w6a6 --out w6a6_integers",
    "deploy --model sd21_osediff/ --quantized w8a8 --out integers --onnx --json",
)
@MODEL
@click.option("--quantized", type=PATH, required=True, help="a folder that `calibrate` or `convert` wrote")
@click.option("--out", type=FOLDER, required=True, help="where the integers are written")
@click.option(
    "--backend", default="openvino", type=click.Choice(["openvino", "onnxruntime", "tensorrt"]), help="what runs them"
)
@click.option("--onnx", is_flag=True, help="also write whole QDQ graphs for other engines, weights in 8 bits")
def deploy(model, quantized, out, backend, onnx) -> Told:
    """`upscale --deployed` runs it.  Fewer than 8 bits are stored as such and computed in 8-bit containers."""
    from ..deployment.pipeline import deploy as write
    from ..store.folder import load, load_quantized

    report = write(load_quantized(quantized, load(model)), out, backend, onnx)
    result = summary(report) | {"backend": backend, "out": str(out), "rows": report["rows"]}
    return Told(result, text=_text(result))


def summary(report: dict) -> dict:
    """What of a report a reader looks for first."""
    networks = report["networks"].values()
    codes, constants = (sum(n["bytes"][key] for n in networks) for key in ("codes", "constants"))
    return {
        "model": report["model"], "label": report["label"], "recipe": report["recipe"]["name"],
        "method": report["method"]["name"], "runs": report["runs"], "float32_bytes": report["float32_bytes"],
        "bytes": sum(report["sizes"].values()), "codes_bytes": codes, "constants_bytes": constants,
        "bits": report["bits"],
    }  # fmt: skip


def _text(result: dict) -> str:
    rows = result["rows"]
    words = [f"{result['model']} {result['recipe']} {result['method']}: {result['label']} for {result['backend']}"]
    for module in SHOWN:
        runs = [row["runs"] for row in rows if row["module"] == module]
        counts = ", ".join(f"{runs.count(kind)} {kind}" for kind in ("integers", "constant", "float") if kind in runs)
        words.append(f"  {module}: {counts}")
    words += [f"  in float: {r['layer']} ({r['why']})" for r in rows if r["runs"] == "float"][:20]
    words += [f"  {r['layer']}: {r['why']}" for r in rows if "branch" in r["why"]][:20]
    stored = ", ".join(f"{count:,} of {bits} bits" for bits, count in result["bits"].items())
    words.append(f"  stored: {stored}; computed in 8-bit containers")
    share = result["bytes"] / result["float32_bytes"]
    words.append(
        f"  {result['bytes']:,} bytes ({result['codes_bytes']:,} codes, {result['constants_bytes']:,} other numbers),"
        f" {share:.1%} of float32's {result['float32_bytes']:,}"
    )
    return "\n".join([*words, f"  {result['out']}"])
