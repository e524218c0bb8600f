"""What a process is told before torch and numpy start."""

import os
import subprocess
import sys

import pytest

from nbp.system.process import keep_freed_memory, slow_numpy_features

ZEN4 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model name\t: AMD EPYC
flags\t\t: fpu avx2 avx512f avx512_bf16

processor\t: 1
"""


@pytest.mark.parametrize(("cpuinfo", "slow"), [
    (ZEN4, True), (ZEN4.replace("avx512f ", ""), False), (ZEN4.replace(": 25", ": 26"), False),
    (ZEN4.replace("AuthenticAMD", "GenuineIntel"), False), ("Processor : ARMv8\n", False), ("", False)])
def test_numpys_sort_of_zen_4(cpuinfo, slow):
    assert bool(slow_numpy_features(cpuinfo)) == slow


def python(code, **environment):
    known = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_WAIT", "NPY_", "MALLOC_"))}
    done = subprocess.run([sys.executable, "-c", code], env=known | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("features", ["X86_V4", slow_numpy_features(ZEN4)])
def test_numpy_sorts_the_same_without_these_features(features):
    """Names that this numpy does not know are no error."""
    code = "import numpy as np; x = np.random.default_rng(0).random(9999, dtype='f'); print(np.sort(x).tobytes().hex())"
    assert python(code, NPY_DISABLE_CPU_FEATURES=features) == python(code)


def test_what_the_environment_says_stays():
    code = "import nbp, os; print(os.environ['OMP_WAIT_POLICY'], os.environ.get('NPY_DISABLE_CPU_FEATURES', ''))"
    assert python(code, OMP_WAIT_POLICY="ACTIVE", NPY_DISABLE_CPU_FEATURES="AVX512_SPR") == "ACTIVE AVX512_SPR"
    assert python(code).split()[0] == "PASSIVE"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_freed_memory_is_kept_and_can_be_used_again():
    assert keep_freed_memory()
    blocks = [bytearray(2 ** 20) for _ in range(64)]
    del blocks
    assert bytes(bytearray(2 ** 20)) == bytes(2 ** 20)
