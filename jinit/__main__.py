"""The command line: ``python -m jinit env`` and ``python -m jinit demo``."""

import argparse
import sys
from collections.abc import Callable, Sequence

from jinit.startup import startup, startup_report

__all__ = ["main"]


def env(argv: Sequence[str]) -> int:
    """Starts the process as JINIT_* says and prints a report to paste into a bug report."""
    parser = argparse.ArgumentParser("python -m jinit env", description=env.__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    try:
        startup()
    except (TypeError, ValueError, RuntimeError, OSError, Warning) as error:
        parser.error(str(error))
    report = startup_report()
    print(report.to_json() if options.json else report)
    return 0


def demo(argv: Sequence[str]) -> int:
    """Trains a small network on handwritten digits through every part of the library."""
    from jinit.demo import main

    return main(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"env": env, "demo": demo}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names with the arguments that follow it.

    Args:
        argv: The arguments without the program's name; None takes those of the process.

    Returns:
        The exit status. Without a command it prints the help; a bad command or option exits
        with status 2.
    """
    arguments = sys.argv[1:] if argv is None else argv
    summary = "\n".join(f"  {name:6} {run.__doc__}" for name, run in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "python -m jinit",
        description=f"commands:\n{summary}",
        epilog="python -m jinit COMMAND --help lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    if not arguments:
        parser.print_help()
        return 0
    return COMMANDS[parser.parse_args(arguments[:1]).command](arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
