"""The stage runner on small commands, and the whole pipeline in miniature: stopped, resumed, done, skipped."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbp.quickstart import FULL, SMOKE, stages
from nbp.stages import Stage, StageError, run_stages

ROOT = Path(__file__).parents[1]
COMMAND = '''
import pathlib, subprocess, sys, time
action, output = sys.argv[1], pathlib.Path(sys.argv[2])
print("step 1/2", flush=True)
if action == "fail":
    sys.exit("the disk is on fire")
if action == "allocate":
    subprocess.run([sys.executable, "-c", "import time; x = b'1' * 300_000_000; time.sleep(2)"], check=True)
if action == "sleep" and not output.with_suffix(".go").exists():
    time.sleep(60)
if action != "nothing":
    output.write_text(output.read_text() + "x" if output.exists() else "x")
'''


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Function (name, action) -> a stage that appends an x to tmp_path/name."""
    (tmp_path / "fake_stage.py").write_text(COMMAND)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name, action="write": Stage(name, "fake_stage", (action, str(tmp_path / name)), tmp_path / name)


def rows(out):
    return {row["name"]: row for row in json.loads((out / "stages.json").read_text())["stages"]}


def test_stages_run_once_in_order_and_are_logged(tmp_path, make, capfd):
    plan, out = [make("a"), make("b")], tmp_path / "run"
    run_stages(plan, out)
    first = rows(out)
    assert [*first] == ["a", "b"] and all(row["finished"] and row["attempts"] == 1 for row in first.values())
    assert first["a"]["seconds"] > 0 and first["a"]["peak_memory_bytes"] > 2**20
    assert (out / "logs/01-a.log").read_text() == f"$ python -m fake_stage write {tmp_path / 'a'}\nstep 1/2\n"
    run_stages(plan, out)
    assert (tmp_path / "a").read_text() == "x" and rows(out) == first
    assert "[2/2] b: done before" in capfd.readouterr().out


def test_a_new_command_runs_again_with_all_that_follows(tmp_path, make):
    out = tmp_path / "run"
    run_stages([make("a"), make("b"), make("c")], out)
    changed = Stage("b", "fake_stage", ("write", str(tmp_path / "b"), "other"), tmp_path / "b")
    run_stages([make("a"), changed, make("c")], out)
    assert [(tmp_path / name).read_text() for name in "abc"] == ["x", "xx", "xx"]
    assert [rows(out)[name]["attempts"] for name in "abc"] == [1, 1, 2]


def test_a_removed_output_is_made_again(tmp_path, make):
    plan, out = [make("a"), make("b")], tmp_path / "run"
    run_stages(plan, out)
    (tmp_path / "a").unlink()
    run_stages(plan, out)
    assert (tmp_path / "a").read_text() == "x" and rows(out)["a"]["attempts"] == 2


def test_failure_names_stage_log_and_last_lines(tmp_path, make):
    out = tmp_path / "run"
    with pytest.raises(StageError, match=r"(?s)stage b failed \(exit code 1\).*02-b.log.*the disk is on fire"):
        run_stages([make("a"), make("b", "fail"), make("c")], out)
    assert not (tmp_path / "c").exists() and not rows(out)["b"]["finished"]
    with pytest.raises(StageError, match="stage d ended without an error but did not write .*/d"):
        run_stages([make("d", "nothing")], out)


def test_memory_counts_the_processes_below(tmp_path, make):
    run_stages([make("a", "allocate")], tmp_path / "run")
    assert rows(tmp_path / "run")["a"]["peak_memory_bytes"] > 280e6


def test_two_runs_in_one_folder_are_refused(tmp_path, make):
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StageError, match="another process is working in"):
            run_stages([make("a")], tmp_path)


def test_time_of_a_killed_attempt_is_kept(tmp_path, make):
    stage, out = make("a", "sleep"), tmp_path / "run"
    code = f"from nbp.stages import *; run_stages([Stage('a', 'fake_stage', {stage.arguments}, Path('{stage.output}'))], " \
           f"'{out}')"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    wait_for(lambda: (out / "stages.json").is_file() and rows(out)["a"]["seconds"] > 4)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = rows(out)["a"]
    assert not before["finished"]
    (tmp_path / "a.go").touch()
    run_stages([stage], out)
    after = rows(out)["a"]
    assert after["finished"] and after["attempts"] == 2 and after["seconds"] > before["seconds"]


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_every_stage_of_both_sizes_names_its_inputs_and_files():
    for size in (FULL, SMOKE):
        plan = stages(Path("runs/x"), size)
        assert [stage.name for stage in plan] == ["prepare", "tokenizer", "tokens", "generator", "reconstruct",
                                                  "generate", "predict", "baselines", "evaluate", "benchmark", "report"]
        for stage in plan:
            for argument in stage.arguments:
                assert not argument.startswith("configs/") or (ROOT / argument).is_file()
