"""`colo`: one command line over the workbook. Exit codes: 0 done, 1 a step failed, 2 wrong input."""

from __future__ import annotations

import argparse
import importlib
import sys

from colo_lib import __version__
from colo_lib.errors import ColoError

COMMANDS = {
    "run": "carry out the steps of a params file and write the report",
    "plan": "tell how many starts and blocks would settle each clause of the verdict",
    "sweep": "repeat a run over a grid of values",
    "report": "render a run folder as one HTML page",
    "list": "list the runs of this checkout",
    "trace": "tell what Nsight Systems captured: overlap, occupancy, idle gaps, categories",
    "redact": "make an Nsight Systems export fit to share",
    "share": "make a finished run fit to share: small, without paths",
    "doctor": "tell what this machine can run, with the remedy for what it cannot",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; command modules are light, what they need is imported when they run."""
    parser = argparse.ArgumentParser(prog="colo", description=__doc__)
    parser.add_argument("--version", action="version", version=f"colo {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"colo_lib.cli.{name}")
        command = subparsers.add_parser(
            name,
            help=summary,
            description=(module.__doc__ or summary).strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(carry_out=module.carry_out)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; a `ColoError` becomes a sentence on stderr and its exit code."""
    options = build_parser().parse_args(argv)
    try:
        return int(options.carry_out(options) or 0)
    except ColoError as error:
        print(f"colo: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        print("colo: interrupted", file=sys.stderr)
        return 130
