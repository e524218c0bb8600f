"""What a process is told before torch and numpy start."""

import os
import subprocess
import sys

import pytest
import torch

from nbp.system import process
from nbp.system.command import run_command
from nbp.system.process import keep_freed_memory, prepare_process, processor_facts, slow_numpy_features

ZEN4 = {"vendor_id": "AuthenticAMD", "cpu family": "25", "flags": "fpu avx2 avx512f avx512_bf16"}
VARIABLES = ("OMP_WAIT_POLICY", "NPY_DISABLE_CPU_FEATURES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_",
             "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


@pytest.fixture
def environment(monkeypatch):
    """Without the variables; what a test sets is gone afterwards. numpy's is not set by accident on a Zen 4."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name not in VARIABLES})
    monkeypatch.setattr(process, "processor_facts", dict)
    return os.environ


@pytest.fixture
def calls(monkeypatch):
    """What mallopt is called with, instead of the call."""
    made = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(process, "_mallopt", lambda: lambda *arguments: made.append(arguments) or 1)
    return made


@pytest.mark.parametrize(("changes", "slow"), [
    ({}, True), ({"flags": "fpu avx2"}, False), ({"cpu family": "26"}, False), ({"vendor_id": "GenuineIntel"}, False)])
def test_numpys_sort_of_zen_4(changes, slow):
    assert bool(slow_numpy_features(ZEN4 | changes)) is slow
    assert slow_numpy_features({}) == ""


@pytest.mark.parametrize(("version", "named"), [("2.4.6", True), ("2.10.0", True), ("2.3.1", False), ("1.26.4", False)])
def test_features_have_the_names_of_this_numpy(version, named, monkeypatch):
    monkeypatch.setattr(process.metadata, "version", lambda name: version)
    assert ("X86_V4" in slow_numpy_features(ZEN4)) is named is ("AVX512_SKX" not in slow_numpy_features(ZEN4))


def test_numpy_sorts_the_same_without_these_features():
    """And says nothing: names that it does not know would be a warning."""
    code = "import numpy as np; x = np.random.default_rng(0).random(9999, dtype='f'); print(np.sort(x).tobytes().hex())"
    command = [sys.executable, "-W", "error", "-c", code]
    found = [subprocess.run(command, env=os.environ | {"NPY_DISABLE_CPU_FEATURES": features}, capture_output=True,
                            check=True).stdout for features in ("", slow_numpy_features(ZEN4))]
    assert found[0] == found[1] and found[0]


def test_a_process_is_prepared(environment, calls, monkeypatch):
    prepare_process()
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE" and "NPY_DISABLE_CPU_FEATURES" not in environment
    assert calls == [(process.MMAP_THRESHOLD, 2 ** 25), (process.TRIM_THRESHOLD, 2 ** 28)]
    monkeypatch.setattr(process, "processor_facts", lambda: ZEN4)
    prepare_process()
    assert environment["NPY_DISABLE_CPU_FEATURES"] == slow_numpy_features(ZEN4)


def test_what_the_environment_says_stays(environment, calls, monkeypatch):
    monkeypatch.setattr(process, "processor_facts", lambda: ZEN4)
    said = {"OMP_WAIT_POLICY": "ACTIVE", "NPY_DISABLE_CPU_FEATURES": "AVX512_SPR", "MALLOC_TOP_PAD_": "0"}
    environment.update(said)
    prepare_process()
    assert said.items() <= environment.items() and not calls


@pytest.mark.parametrize("name, value", [
    ("MALLOC_TRIM_THRESHOLD_", "1"), ("MALLOC_MMAP_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.perturb=1")])
def test_memory_is_the_environments_to_decide(name, value, environment, calls):
    environment[name] = value
    assert not keep_freed_memory() and not calls


@pytest.mark.parametrize("gpu", [False, True])
def test_a_program_on_a_cpu_keeps_what_it_frees(gpu, environment, calls, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with pytest.raises(SystemExit):
        run_command(lambda: 0)
    assert calls == ([] if gpu else [(process.MMAP_THRESHOLD, 2 ** 30), (process.TRIM_THRESHOLD, -1)])


def test_a_refused_threshold_leaves_the_other_alone(environment, monkeypatch):
    """Set alone it would make every block above 128 KiB slow."""
    refused = []
    monkeypatch.setattr(process, "_mallopt", lambda: lambda *arguments: refused.append(arguments) or 0)
    monkeypatch.setattr(sys, "platform", "linux")
    assert not keep_freed_memory(*process.PROGRAM) and refused == [(process.MMAP_THRESHOLD, 2 ** 30)]


def test_no_glibc_is_no_error(environment, monkeypatch):
    monkeypatch.setattr(process, "_mallopt", lambda: None)
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "win32")
    assert not keep_freed_memory()


@pytest.mark.parametrize("text, found", [
    ("vendor_id\t: AuthenticAMD\nmodel name\t: a: b\n\nvendor_id\t: other\n",
     {"vendor_id": "AuthenticAMD", "model name": "a: b"}), ("", {})])
def test_facts_of_a_processor(text, found, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(process, "Path", lambda path: tmp_path / "cpuinfo")
    assert processor_facts() == found
    monkeypatch.setattr(process, "Path", lambda path: tmp_path / "nothing")
    assert processor_facts() == {}
