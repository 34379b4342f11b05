"""The paper's Tables 1 and 3 counted anew; what is only cited is marked as cited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..quantization.recipe import W6A6, W8A8
from .bitcost import paper_cost
from .cost import COUNTED_BY_PAPER, count

if TYPE_CHECKING:
    import pandas
    from torch import nn

# (parameters in M, MACs in G) of OSEDiff's prompt branch as Table 1 gives them; cited, not counted here
PROMPT_BRANCH = {"DAPE": (160.335, 126.591), "CLIPEncoder": (193.055, 14.856)}
DIFFBIR = (1618, 49056)  # (parameters in M, operations in G) of the 50-step DiffBIR, Fig. 1
CALIBRATION = {"hours": 1.07, "gpu_GB": 28}  # of PassionSR-UV at W6A6, Table 4
PARTS = {"UNet": ("unet",), "VAE": ("encoder", "decoder")}


def table1(pipe: nn.Module, branch: Mapping[str, tuple[float, float]] = PROMPT_BRANCH) -> pandas.DataFrame:
    """Table 1, the cost of OSEDiff for one 512x512 image: component, params_M, MACs_G, source, in the paper's counting.

    UNet and VAE are counted; the prompt branch (params_M and MACs_G by component, {} for none) is cited.  For SD2.1
    all figures are the printed ones to the last digit, except the VAE's MACs, and the total with them: 1781.229 G
    against the printed 1781.123 G (0.006 % less).  Table 3's operations follow from 1781.229 G by truncation.

    Example:
        >>> from passionsr_lab.fullsize.sd21 import sd21
        >>> from passionsr_lab.analysis.paper import table1
        >>> table1(sd21()).MACs_G.tolist()
        [339.241, 1781.229, 126.591, 14.856, 2261.917]
    """
    import pandas as pd

    frame = count(pipe)
    frame = frame[frame.kind.isin(COUNTED_BY_PAPER)]
    parts = {name: frame[frame.module.isin(modules)] for name, modules in PARTS.items()}
    rows = [(name, p.parameters.sum() / 1e6, p.macs.sum() / 1e9, "counted") for name, p in parts.items()]
    rows += [(name, *figures, "cited") for name, figures in branch.items()]
    source = "counted + cited" if branch else "counted"
    rows.append(("Total", sum(r[1] for r in rows), sum(r[2] for r in rows), source))
    return pd.DataFrame(rows, columns=["component", "params_M", "MACs_G", "source"]).round(3)


def table3() -> pandas.DataFrame:
    """Table 3, compression against OSEDiff, and Fig. 1's DiffBIR: method, bits, params_M, ops_G, reductions in %.

    Counted as `bitcost.paper_cost` says.  As printed: params_M rounded, ops_G truncated.

    Example:
        >>> from passionsr_lab.analysis.paper import table3
        >>> table3().params_M.tolist()
        [1618, 1303, 949, 300, 246, 238, 178]
    """
    import pandas as pd

    from ..fullsize.sd21 import sd21

    frame = count(sd21())
    params, ops = paper_cost(frame, None)
    branch_params, branch_macs = (sum(column) for column in zip(*PROMPT_BRANCH.values()))
    rows = [
        ("DiffBIR", "W32A32", *DIFFBIR, "cited"),
        ("OSEDiff", "W32A32", params + branch_params, ops + 2 * branch_macs, "counted + cited"),
        ("PassionSR-FP", "W32A32", params, ops, "counted"),
    ]
    for name, modules in (("PassionSR-U", ("unet",)), ("PassionSR-UV", W8A8.modules)):
        recipes = (replace(recipe, modules=modules) for recipe in (W8A8, W6A6))
        rows += [(name, r.name, *paper_cost(frame, r), "counted") for r in recipes]
    table = pd.DataFrame(rows, columns=["method", "bits", "params_M", "ops_G", "source"])
    less = [(100 - 100 * table[c] / table[c][1]).round(2) for c in ("params_M", "ops_G")]
    table = table.assign(params_M=table.params_M.round().astype(int), ops_G=table.ops_G.astype(int))
    table.insert(3, "params_reduction_pct_vs_OSEDiff", less[0])
    table.insert(5, "ops_reduction_pct_vs_OSEDiff", less[1])
    return table
