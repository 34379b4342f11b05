"""`doctor`: whether a piece of work can run here."""

import click

from .common import Told, command, lines


@command("doctor osediff")
@click.argument("work", default="tiny")
def doctor(work) -> Told:
    """WORK is tiny, sd21, osediff, osediff-prompt or scores."""
    from ..tools.doctor import as_text, can_run, report

    rows = report(work)
    runs = can_run(rows)
    text = f"{as_text(rows)}\n{lines({'work': work, 'can run': 'yes' if runs else 'no'})}"
    return Told({"work": work, "can_run": runs, "rows": rows}, int(not runs), text)
