"""What a process is told before torch and numpy start: how threads wait, that memory is kept, which sort numpy takes.

Figures: docs/experiments.md. What the environment says already stays as it is.
"""

import ctypes
import os
import sys
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3      # of glibc's mallopt
KEPT_BYTES = 2 ** 30


def prepare_process() -> None:
    """Set `OMP_WAIT_POLICY`, `NPY_DISABLE_CPU_FEATURES` where it pays, and what glibc keeps of freed memory."""
    # Threads that spin while they wait take the cores from data loaders and other jobs. Two threads on two busy cores:
    # 0.14 to 0.37 s a step instead of 1.4 to 2.7 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cpuinfo = Path("/proc/cpuinfo")
    features = slow_numpy_features(cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else "")
    if features:
        os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", features)
    if not {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & set(os.environ):
        keep_freed_memory()


def slow_numpy_features(cpuinfo: str) -> str:
    """What numpy should leave alone, as `NPY_DISABLE_CPU_FEATURES` takes it, or "".

    On AMD's Zen 4 an AVX-512 instruction of numpy's sort (vpcompressd to memory) is microcode: a filter's partition and
    sort take 10.3 ms with it and 1.9 ms without.
    """
    fields = dict(line.split(":", 1) for line in cpuinfo.split("\n\n")[0].splitlines() if ":" in line)
    found = {name.strip(): value.split() for name, value in fields.items()}
    zen4 = (found.get("vendor_id") == ["AuthenticAMD"] and found.get("cpu family") == ["25"]
            and "avx512f" in found.get("flags", []))
    return "X86_V4 AVX512_SKX AVX512_ICL AVX512_SPR" if zen4 else ""      # numpy's names since and before 2.4


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, up to 1 GiB, instead of giving it back to be faulted in again, page by page: that
    took a tenth of a training step on a virtual machine. False: another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return all([mallopt(TRIM_THRESHOLD, KEPT_BYTES), mallopt(MMAP_THRESHOLD, KEPT_BYTES)])
