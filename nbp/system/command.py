"""How a command ends: a person's mistake in one line on stderr with exit code 2, a bug with its traceback.

NBP_DEBUG=1 shows the traceback of a mistake as well. Called from Python, `main(arguments)` of a command raises as any
function does; only the command line goes through `run_command`.
"""

import argparse
import dis
import math
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from nbp.system.process import PROGRAM, keep_freed_memory

PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
# Import names of what `pip install .` leaves out, and the extra that brings it.
EXTRAS = {"pytorch_lightning": "train", "deepspeed": "train", "wandb": "train", "decord": "train",
          "gradio": "demo"}
EXIT_MISTAKE, EXIT_INTERRUPTED = 2, 130


class UserError(RuntimeError):
    """Something that a person puts right outside the code, as a missing network; the message says how."""


def run_command(main: Callable[[], object]) -> NoReturn:
    """Call `main` and end the process as the module header says; an int that it returns is the exit code."""
    if not _has_gpu():
        keep_freed_memory(*PROGRAM)
    try:
        code = main()
        _leave_group()
        sys.exit(code if isinstance(code, int) else 0)
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader, as in `... | head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_MISTAKE)
    except Exception as error:
        message = mistake(error)
        if message is None:
            raise
        if os.environ.get("NBP_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        several = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
        rank = f" (rank {os.environ['RANK']})" if several else ""
        print(f"error{rank}: {message}", file=sys.stderr, flush=True)
        sys.exit(EXIT_MISTAKE)


def _has_gpu() -> bool:
    """Whether tensors will be on one, so that this process has nothing to gain from memory that it keeps."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available()


def _leave_group() -> None:
    """End the process group, if there is one: its threads may abort a process that ends (one of five runs of two ranks,
    measured), which the launcher takes for a failure."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def at_least(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Type of an argument that is a whole number from `minimum` on, up to `maximum`."""
    def whole_number(text: str) -> int:
        if (value := int(text)) < minimum or maximum is not None and value > maximum:
            most = "" if maximum is None else f" and at most {maximum}"
            raise argparse.ArgumentTypeError(f"must be at least {minimum}{most}, got {value}")
        return value
    return whole_number


def positive(text: str) -> float:
    """Type of an argument that is a number above 0."""
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def mistake(error: Exception) -> str | None:
    """The line that tells a person what to put right; None for a bug.

    A person can put right what the operating system refuses (OSError), what is not installed, every `UserError`, and
    a ValueError raised by a `raise` statement of nbp. One that a library raises, or an expression in nbp such as
    int("x"), means that nbp handed on what it had not checked: a bug.
    """
    if isinstance(error, OSError) and error.strerror:
        return _line(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    if isinstance(error, (OSError, UserError)):  # advice, as the end of a log, may take several lines
        return str(error)
    if isinstance(error, (ValueError, ModuleNotFoundError)) and _raised_by_nbp(error):
        return _line(str(error))
    if isinstance(error, ValueError):
        return _from_a_worker(str(error))
    if isinstance(error, ModuleNotFoundError):
        return _not_installed(str(error))
    return None


def _not_installed(text: str) -> str | None:
    """Which package is missing and how it is installed; None for a module of nbp itself."""
    named = re.search(r"No module named '(\w+)", text)
    if named is None:  # a library that says in its own words what it misses
        return _line(text)
    name = named[1]
    place = f'".[{EXTRAS[name]}]"' if name in EXTRAS else "."
    advice = f"{name} is not installed; in the folder of the repository: python -m pip install {place}"
    return None if name == "nbp" else advice


def _raised_by_nbp(error: Exception) -> bool:
    """Whether the place where `error` began is a `raise` statement of this package."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return False
    code = place.tb_frame.f_code
    return code.co_filename.startswith(PACKAGE) and dis.opname[code.co_code[place.tb_lasti]] == "RAISE_VARARGS"


def _from_a_worker(text: str) -> str | None:
    """The message of a mistake met in a process of the DataLoader, which comes back with its traceback as text."""
    frames = list(re.finditer(r'^  File "(.+)", line \d+, in .+\n    (.*)$', text, re.M))
    if not text.startswith("Caught ") or not frames:
        return None
    last = frames[-1]
    message = re.search(r"^[\w.]+: (.*)", text[last.end():], re.M | re.S)
    if message is None or not last[1].startswith(PACKAGE) or not last[2].startswith("raise "):
        return None
    return _line(message[1])


def _line(text: str) -> str:
    return " ".join(text.split("\n")).strip()
