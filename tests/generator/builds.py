"""Which builds of the C++ this machine can run."""

import shutil
import sys

import pytest
import torch

from nbp.generator.native import library

BUILDS = {"float32_avx2": torch.float32, "float32_avx512": torch.float32, "bfloat16_avx512": torch.bfloat16}


def runs_here(build):
    if sys.platform != "linux":
        return False
    flags = (line.split(":")[1].split() for line in open("/proc/cpuinfo") if line.startswith("flags"))
    needed = {"float32_avx2": {"avx2", "fma"}, "float32_avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
              "bfloat16_avx512": {"avx512_bf16"}}
    return needed[build] <= set(next(flags, ()))


def built(build):
    if BUILDS[build] == torch.bfloat16 and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False            # there PyTorch, which it is compared with, cannot do it
    return runs_here(build) and (shutil.which("g++") or library.load(build))      # with g++ it must be there


HERE = [pytest.param(name, marks=pytest.mark.skipif(not built(name), reason="no such processor, or no compiler"))
        for name in BUILDS]
