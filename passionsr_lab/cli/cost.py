"""`cost`: the paper's count of parameters and operations, and the exact one."""

import time

import click

from .common import Told, command, lines, table
from .options import FOLDER, RECIPE, SIZE


@command("cost --model sd21 --recipe W8A8", "cost --quantized w4a4 --size 256")
@click.option(
    "--model", help="'sd21', 'tiny' or a model folder; of --quantized the one that it names", show_default="sd21"
)
@click.option("--recipe", type=RECIPE, help="also the cost at these bits, like W8A8")
@click.option("--size", default=512, type=SIZE, help="edge of the image that comes out")
@click.option("--quantized", type=FOLDER, help="what `calibrate` wrote, its 16-bit branches counted")
def cost(model, recipe, size, quantized) -> Told:
    """Of a model and a recipe no weights are needed; of a quantized folder its model must be there."""
    from ..analysis.bitcost import report
    from ..fullsize.sd21 import architecture

    start = time.perf_counter()
    if quantized:
        if recipe:
            raise click.UsageError("--quantized has a recipe of its own; leave out --recipe.")
        pipe, recipe, ranks = _folder(quantized, model)
        model = pipe.name
    else:
        model = model or "sd21"
        pipe, ranks = architecture(model), None
    figures = report(pipe, recipe, size, ranks)
    head = {"model": model, "recipe": recipe.name if recipe else "W32A32", "size": size}
    text = f"{lines(head | {key: figures[key] for key in ('parameters', 'macs')})}\n\n{_tables(figures)}"
    return Told(head | figures | {"seconds": time.perf_counter() - start}, text=text)


def _folder(folder, model) -> tuple:
    """The full-precision model, the recipe, and the ranks of the branches of a folder that `calibrate` wrote."""
    from ..analysis.layers import branch_ranks
    from ..quantization.place import unquantize
    from ..store.folder import load, load_quantized

    q = load_quantized(folder, None if model is None else load(model))
    return unquantize(q), q.recipe, branch_ranks(q)


def _tables(figures: dict) -> str:
    """Both countings, a row per module."""
    import pandas as pd

    parts = []
    for key, title in (("exact", "exactly"), ("paper", "as the paper counts")):
        whole = dict(figures[key])
        rows = whole.pop("modules") | {"in 32 bits": whole.pop("full", None), "all": whole}
        frame = pd.DataFrame.from_dict({name: row for name, row in rows.items() if row}, orient="index")
        parts.append(f"{title}\n{table(frame)}")
    return "\n\n".join(parts)
