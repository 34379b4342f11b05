"""The table of methods: found by name, and added to by `register`."""

from __future__ import annotations

from ..calibration.method import Method
from ..official.corrections import CORRECTED, RELEASED
from ..util.progress import follow
from . import (
    best,
    efficientdm,
    joint,
    lbq,
    let,
    lsq,
    maxmin,
    official,
    passionsr,
    percentile,
    qartsr,
    qdiffusion,
    quantvsr,
    svdquant,
)

DEFAULT = passionsr.METHOD.name
UNTRAINED = let.METHOD.name  # where any good start will do
ABLATION = tuple(
    m.name for m in (maxmin.METHOD, let.METHOD, lbq.METHOD, joint.METHOD, passionsr.STRICT, passionsr.METHOD)
)
HIDDEN = {m.name: m for m in (RELEASED, CORRECTED)}  # made by reading files, not by calibrating
METHODS = {
    m.name: m
    for m in (
        maxmin.METHOD, let.METHOD, let.CORRECTED, lbq.METHOD, joint.METHOD,
        passionsr.METHOD, passionsr.STRICT, passionsr.FINISHED, official.METHOD,
        lsq.METHOD, lsq.PLUS, lsq.PUBLISHED, percentile.METHOD, svdquant.METHOD,
        efficientdm.METHOD, efficientdm.PUBLISHED, qdiffusion.METHOD,
        qartsr.METHOD, qartsr.BLOCKS, quantvsr.METHOD, best.METHOD, best.MERGED,
    )
}  # fmt: skip


def register(method: Method) -> Method:
    """Adds a method, or replaces one of its name; it then works wherever methods are named. Returns it.

    Raises:
        ValueError: not a `Method`, or a name that commands and files cannot hold.
    """
    if not isinstance(method, Method):
        raise ValueError(f"A method is a passionsr_lab.Method, not {type(method).__name__}.")
    if not method.name or method.name in HIDDEN or set(method.name) & set(",/\\: \n"):
        raise ValueError(f"{method.name!r} cannot be a method's name: no commas, slashes, colons or spaces.")
    METHODS[method.name] = method
    return method


def find(method: Method | str) -> Method:
    """The method of this name, or the method itself; `ValueError` names those that there are."""
    if isinstance(method, Method):
        return method
    found = METHODS.get(method) or HIDDEN.get(method)
    if found is None:
        raise ValueError(f"method is one of {', '.join(METHODS)}, not {method!r}; lab.register adds one of your own.")
    return found


def calibrate(q, pairs, method: Method | str = DEFAULT, callback=None, quiet: bool = False, **options):
    """Calibrates a quantized pipeline in place, from the start; the records of the run as a DataFrame.

    In a notebook or a terminal a line says meanwhile how far it is and how long the rest will take.

    Args:
        q: what `quantize` returned.
        pairs: `Pair`s or (lr, hr) tuples.
        method: a name out of `METHODS`, or a method.
        callback: called with every record as it comes.
        quiet: show nothing.
        options: of `Calibration` (epochs, batch, seed, rates, lean, compiled).

    Example:
        >>> import passionsr_lab as lab
        >>> q = lab.quantize(lab.tiny(), lab.W6A6)
        >>> records = lab.calibrate(q, lab.bundled("calibration", count=2, size=64), epochs=1)
        >>> records[records.event == "end"].module.tolist()
        ['encoder', 'encoder', 'unet', 'unet', 'decoder', 'decoder']
    """
    import pandas as pd

    from ..calibration.loop import Calibration

    records, work = [], Calibration(q, pairs, find(method), **options)
    for record in follow(work.run(), work.total, f"{work.method.label} {q.recipe.name}", quiet=quiet):
        records.append(record)
        if callback is not None:
            callback(record)
    return pd.DataFrame(records)
