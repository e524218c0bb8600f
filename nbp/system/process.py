"""What a process is told before torch and numpy start: how threads wait, that memory is kept, which sort numpy takes.

Figures: docs/experiments.md. What the environment says already stays as it is.
"""

import os
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from itertools import takewhile
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3      # of glibc's mallopt
BLOCK, TOP = 2 ** 25, 2 ** 28       # bytes; glibc before 2.35 takes no larger blocks
PROGRAM = 2 ** 30, -1    # of our own commands, which make large tensors, free them and make them again: any free end


def prepare_process() -> None:
    """Set `OMP_WAIT_POLICY`, `NPY_DISABLE_CPU_FEATURES` where it pays, and what glibc keeps of freed memory."""
    # Threads that spin while they wait take the cores from data loaders and other jobs. Two threads on two busy cores:
    # 0.14 to 0.37 s a step instead of 1.4 to 2.7 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if features := slow_numpy_features(processor_facts()):
        os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", features)
    keep_freed_memory()


def processor_facts() -> dict[str, str]:
    """What Linux says of the first processor, by the names in /proc/cpuinfo; {} elsewhere."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            first = list(takewhile(str.strip, lines))       # the others' would take time where there are hundreds
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def slow_numpy_features(facts: Mapping[str, str]) -> str:
    """What numpy should leave alone on this processor, as `NPY_DISABLE_CPU_FEATURES` takes it, or "".

    On AMD's Zen 4 an AVX-512 instruction of numpy's sort (vpcompressd to memory) is microcode: a filter's partition and
    sort take 10.3 ms with it and 1.9 ms without.
    """
    zen4 = (facts.get("vendor_id") == "AuthenticAMD" and facts.get("cpu family") == "25"
            and "avx512f" in facts.get("flags", "").split())
    if not zen4:
        return ""
    version = tuple(int(part) for part in metadata.version("numpy").split(".")[:2])
    return "X86_V4 AVX512_ICL AVX512_SPR" if version >= (2, 4) else "AVX512_SKX AVX512_ICL AVX512_SPR"


def keep_freed_memory(block: int = BLOCK, top: int = TOP) -> bool:
    """Let glibc keep freed blocks of up to so many bytes, and so many free bytes at its end (-1: any number), instead
    of giving them back, to be faulted in again page by page. False where the environment decides, or the C library
    takes no such numbers."""
    decided = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"} & set(os.environ)
    if sys.platform != "linux" or decided or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = _mallopt()
    # In this order: where the first is refused, the second alone would freeze the first at 128 KiB.
    return mallopt is not None and bool(mallopt(MMAP_THRESHOLD, block)) and bool(mallopt(TRIM_THRESHOLD, top))


def _mallopt() -> Callable[[int, int], int] | None:
    try:
        import ctypes
    except ImportError:     # a Python without libffi
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None)
