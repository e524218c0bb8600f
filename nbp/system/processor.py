"""What this machine's processor can do, and its name."""

import platform
from functools import cache
from pathlib import Path

import torch


@cache
def multiplies_bfloat16(device: str) -> bool:
    """Whether "cuda" or "cpu" multiplies bfloat16 in hardware: GPUs since Ampere, CPUs with AMX. Other CPUs emulate it,
    more slowly than float32. ATEN_CPU_CAPABILITY=avx2 forbids it."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
            and torch.cpu._is_amx_tile_supported())


def processor_name() -> str:
    """The CPU's name as the kernel gives it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
