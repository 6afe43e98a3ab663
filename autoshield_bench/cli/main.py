"""``aubench``: parse, hand over, and turn expected errors into one line and an exit code.

Exit codes: 0 all well; 1 finished, but cells failed or a regression was found; 2 bad suite, parameter or usage, nothing
ran; 3 store, data or environment; 4 another run holds the results directory, nothing ran; 130 and 143 interrupted by
Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from autoshield_bench.cli import cache, canaries, compare, data, export, merge, new, plan, plugins, run, show, suites
from autoshield_bench.errors import AubenchError, SuiteError
from autoshield_bench.reporting.text import visible
from autoshield_bench.version import __version__

COMMANDS = (run, plan, show, compare, merge, export, suites, plugins, canaries, new, data, cache)

EXIT_CODES = """\
exit codes:
  0    all well
  1    finished, but cells failed, `compare --fail-on` found what it looks for, or `merge` found a conflict
  2    bad suite, parameter or usage; nothing ran
  3    store, data or environment
  4    another run holds the results directory; nothing ran
  130  interrupted (Ctrl-C); finished cells stay
  143  terminated (SIGTERM); finished cells stay

environment:
  AUBENCH_DATA             data directory, in torchvision's layout
  AUBENCH_CACHE            cache of trained networks and adversarial images
  AUBENCH_WEIGHTS          directory with the weights of LPIPS backbones
  AUBENCH_DISABLE_PLUGINS  1 turns third-party plugins off
  NO_COLOR                 no colours
"""


class _Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="aubench",
        description="How much does a defense really help? Runs suites of attacks on defenses and prints leaderboards.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"aubench {__version__}")
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _mend_streams()
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code: int = options.handler(options)
        sys.stdout.flush()
    except SuiteError as error:
        _complain(*error.problems)
        return error.exit_code
    except AubenchError as error:
        _complain(str(error))
        return error.exit_code
    except _Terminated:
        _complain("terminated; finished cells stay, and the same command goes on from there")
        return 143
    except KeyboardInterrupt:
        _complain("interrupted; finished cells stay, and the same command goes on from there")
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone; keep the interpreter from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        _complain(f"{error.filename or 'system'}: {error.strerror or error}")
        return 3
    return code


def _mend_streams() -> None:
    """Make standard output and error such that writing to them raises nothing but what the disk or the reader says."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # closed by whoever started us; a file of ours must not take its number
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _complain(*lines: str) -> None:
    with contextlib.suppress(OSError):  # nobody hears it: the exit code still says it
        for line in lines:
            sys.stderr.write(f"error: {visible(line)}\n")


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated


if __name__ == "__main__":
    sys.exit(main())
