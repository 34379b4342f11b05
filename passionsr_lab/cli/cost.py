"""`cost`: the paper's count of parameters and operations, and the exact one."""

import time

import click

from .common import Told, command, lines, table
from .options import RECIPE, SIZE


@command("cost --model sd21 --recipe W8A8")
@click.option("--model", default="sd21", help="'sd21', 'tiny' or a model folder")
@click.option("--recipe", type=RECIPE, help="also the cost at these bits, like W8A8")
@click.option("--size", default=512, type=SIZE, help="edge of the image that comes out")
def cost(model, recipe, size) -> Told:
    """No weights are needed."""
    from ..analysis.bitcost import report
    from ..fullsize.sd21 import architecture

    start = time.perf_counter()
    figures = report(architecture(model), recipe, size)
    head = {"model": model, "recipe": recipe.name if recipe else "W32A32", "size": size}
    text = f"{lines(head | {key: figures[key] for key in ('parameters', 'macs')})}\n\n{_tables(figures)}"
    return Told(head | figures | {"seconds": time.perf_counter() - start}, text=text)


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
