"""The one way into every command, and the exit codes of all."""

import sys  # all else is imported within `main`, where a Ctrl-C meanwhile is told like any other


def main(arguments: list[str] | None = None) -> int:
    """Runs a command, by default the process's own; its exit code.

    0: all went well.  1: some pictures failed, or something is missing.  2: an error, told in one sentence.
    130: stopped by Ctrl-C or SIGTERM.  141: whoever read the output has closed it.
    """
    try:
        from .terminal import settling, terminating_as_interrupting

        with settling(), terminating_as_interrupting():
            return _run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:
        from .terminal import complain

        complain("interrupted; run the same command again to go on")
        return 130


def _run(arguments: list[str]) -> int:
    import click

    from .common import Commands
    from .terminal import complain

    program = "passionsr-lab" if "passionsr-lab" in sys.argv[0] else "python -m passionsr_lab"
    try:
        with Commands(help="Quantize one-step diffusion super-resolution.").make_context(program, arguments) as context:
            return context.command.invoke(context)
    except click.exceptions.Exit as stop:  # --help
        return stop.exit_code
    except click.UsageError as error:
        complain(f"{error.ctx.get_usage()}\nerror: {' '.join(error.format_message().split())}")
        return 2
    except BrokenPipeError:
        return 141
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        complain(f"error: {error}")
        return 2
