"""What this machine's processor can do, and its name."""

import platform
from functools import cache

import torch

from nbp.system.process import processor_facts


def has_amx() -> bool:
    """Whether the CPU multiplies tiles in hardware."""
    return torch.cpu._is_amx_tile_supported()


@cache
def multiplies_bfloat16(device: str) -> bool:
    """Whether "cuda" or "cpu" multiplies bfloat16 in hardware, faster than float32: GPUs since Ampere, CPUs with AMX,
    and AMD's with AVX-512's bfloat16 (Xeons that have it without AMX take twice as long as for float32). Other CPUs
    emulate it. ATEN_CPU_CAPABILITY=avx2 forbids it."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False
    amd = processor_facts().get("vendor_id") == "AuthenticAMD"
    return has_amx() or (amd and torch.cpu._is_avx512_bf16_supported())


def processor_name() -> str:
    """The CPU's name as the kernel gives it."""
    return processor_facts().get("model name") or platform.processor() or platform.machine()
