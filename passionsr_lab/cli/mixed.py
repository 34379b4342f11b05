"""`mixed`: a recipe of several widths under a budget."""

from dataclasses import replace

import click

from ..methods import METHODS, UNTRAINED
from .common import Told, command, progress
from .options import COUNT, FILE, IMAGES, MODEL, NAMES, NATURAL, RATES, SIZE


@command("mixed --budget weight_bits=4.25 --widths 4,8 --out mixed.json", "calibrate --recipe mixed.json --out mixed")
@MODEL
@click.option("--budget", type=RATES, default="weight_bits=4.25", help="or megabytes=, of weights, or bit_operations=")
@click.option("--widths", default="4,6,8", type=NAMES, help="of weights and activations")
@click.option("--method", default=UNTRAINED, type=click.Choice(list(METHODS)), help="that errors are measured with")
@IMAGES
@click.option("--pairs", default=8, type=COUNT, help="pairs to calibrate and to measure errors on")
@click.option("--size", default=64, type=SIZE, help="HR pixels of a crop")
@click.option("--seed", default=0, type=NATURAL, help="of crops and degradation")
@click.option("--for-size", default=512, type=SIZE, help="edge of the image that operations are counted for")
@click.option("--name", help="of the recipe in tables", show_default="its budget")
@click.option("--out", type=FILE, required=True, help="the recipe, for --recipe of other commands")
def mixed(model, budget, widths, method, images, pairs, size, seed, for_size, name, out) -> Told:
    """Measures what each layer alone costs the picture at each width, and gives bits where they bring most."""
    import pandas as pd

    from ..analysis.bitcost import recipe_cost
    from ..analysis.budget import BUDGETS, each_width, within_budget
    from ..analysis.cost import count
    from ..analysis.layers import layer_numbers
    from ..imaging.pairs import chosen_pairs
    from ..store.folder import load
    from ..util.files import write_json

    if len(budget) > 1 or not budget.keys() <= BUDGETS.keys():
        raise click.UsageError(f"A budget is of one of {', '.join(BUDGETS)}, not {', '.join(budget)}.")
    bits = [int(width) if width.isdecimal() else 0 for width in widths]
    (of, most), pipe = *budget.items(), load(model)
    chosen = chosen_pairs(images, pairs, size, seed)
    rows = progress(each_width(pipe, chosen, bits, method), len(bits) * len(layer_numbers(pipe)), "layers")
    recipe = within_budget(pipe, pd.DataFrame(rows), most, of, for_size)
    recipe = replace(recipe, name=name) if name else recipe
    write_json(out, recipe.to_dict())
    return Told({"recipe": recipe.to_dict(), "cost": recipe_cost(count(pipe, for_size), recipe), "out": str(out)})
