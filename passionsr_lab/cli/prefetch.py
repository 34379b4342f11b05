"""`prefetch`: the weights of metrics, before a machine goes offline."""

import click

from ..evaluation.protocols import PROTOCOLS
from .common import Told, command, progress


@command("prefetch --protocol osediff")
@click.option("--protocol", default="osediff", type=click.Choice(list(PROTOCOLS)))
def prefetch(protocol) -> Told:
    """The exit code is 1 if some cannot be had."""
    from ..evaluation.iqa import prefetch as fetch

    files = list(progress(fetch(protocol), what="weights"))
    missing = sum(row["sha256"] == "absent" for row in files)
    return Told({"protocol": protocol, "files": files, "missing": missing}, int(bool(missing)))
