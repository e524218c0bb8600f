"""What this machine's processor can do, and its name."""

import platform
from functools import cache
from pathlib import Path

import torch

from nbp.system.timing import in_turns

SIZE = 384      # of the matrices that are multiplied to find out which precision is faster


@cache
def multiplies_bfloat16(device: str) -> bool:
    """Whether "cuda" or "cpu" multiplies bfloat16 in hardware, faster than float32: GPUs since Ampere, CPUs with AMX,
    and those with AVX-512's bfloat16 where a product measures so (on AMD's it does, some Xeons take twice as long).
    Other CPUs emulate it. ATEN_CPU_CAPABILITY=avx2 forbids it."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False
    return torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and _bfloat16_measures_faster())


def _bfloat16_measures_faster() -> bool:
    """In turns, some 20 ms in all: where it is worth having, a product takes about half of float32's time."""
    wide = torch.ones(SIZE, SIZE)
    narrow = wide.bfloat16()
    seconds = in_turns({"float32": lambda: wide @ wide, "bfloat16": lambda: narrow @ narrow}, repeats=8)
    return seconds["bfloat16"] < 0.8 * seconds["float32"]


def processor_name() -> str:
    """The CPU's name as the kernel gives it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
