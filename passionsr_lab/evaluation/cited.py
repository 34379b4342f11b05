"""The paper's Table 2, cited."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas


def table2() -> pandas.DataFrame:
    """Table 2 as printed (all cited): dataset, bits, method, and a column per metric, named as in its header.

    Its metrics are those of the protocol "passionsr".  Two of its figures are doubtful: OSEDiff's DISTS is 0.1808 on
    both RealSR and DRealSR, and PassionSR at W6A6 on RealSR has other numbers in Table 4.

    Example:
        >>> from passionsr_lab.evaluation.cited import table2
        >>> frame = table2().set_index(["dataset", "bits", "method"])
        >>> float(frame.PSNR["RealSR", "W6A6", "PassionSR"])
        25.15
    """
    import pandas as pd

    with resources.files(__package__).joinpath("paper_table2.csv").open() as file:
        return pd.read_csv(file)
