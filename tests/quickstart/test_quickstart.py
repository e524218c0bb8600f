"""The stage runner on small commands, and the whole pipeline in miniature: stopped, resumed, done, skipped."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nbp.evaluation.features import Clips
from nbp.quickstart.runner import Stage, StageError, _bar, run_stages
from nbp.quickstart.scores import consistency, distances, some_of_each_class, state
from nbp.quickstart.stages import FULL, SMOKE, run_quickstart, stages
from nbp.system.command import UserError

ROOT = Path(__file__).parents[2]
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
    output.parent.mkdir(exist_ok=True)
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
    assert all(rows(out)[name]["attempts"] == 1 for name in "abc")


def test_an_edited_run_file_runs_its_stage_again_and_what_follows_from_the_start(tmp_path, make):
    (tmp_path / "base.yaml").write_text("lr: 1\n")
    (tmp_path / "run.yaml").write_text("base: [base.yaml]\nmax_steps: 3\n")
    out, plan = tmp_path / "run", []
    for name in "abc":
        file = str(tmp_path / name / "done")
        config = (str(tmp_path / "run.yaml"),) if name == "b" else ()
        plan.append(Stage(name, "fake_stage", ("write", file, *config), Path(file), tmp_path / name))

    def written():
        run_stages(plan, out)
        return [(tmp_path / name / "done").read_text() for name in "abc"]

    assert written() == ["x", "x", "x"]
    (tmp_path / "run.yaml").write_text("base: [base.yaml]  # as before\nmax_steps: 3\n")
    (tmp_path / "a" / "done").write_text("made before")          # a finished stage is left alone
    assert written() == ["made before", "x", "x"]
    (tmp_path / "base.yaml").write_text("lr: 2\n")
    for name in "bc":
        (tmp_path / name / "done").write_text("stale")
    assert written() == ["made before", "x", "x"], "a command that found its old folder would have added to it"
    assert [(tmp_path / f"{name}.old" / "done").read_text() for name in "bc"] == ["stale", "stale"]
    assert not (tmp_path / "a.old").exists()


def test_a_stop_behind_a_changed_stage_leaves_no_stale_one(tmp_path, make):
    out = tmp_path / "run"
    run_stages([make("a"), make("b"), make("c")], out)
    changed = Stage("a", "fake_stage", ("write", str(tmp_path / "a"), "other"), tmp_path / "a")
    with pytest.raises(StageError):
        run_stages([changed, make("b", "fail"), make("c")], out)
    run_stages([changed, make("b"), make("c")], out)
    assert [(tmp_path / name).read_text() for name in "abc"] == ["xx", "xx", "xx"]


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


def test_two_runs_in_one_folder_are_refused(tmp_path, make, monkeypatch):
    monkeypatch.setattr("nbp.quickstart.runner.LOCK_PATIENCE_S", 0.1)
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is working in"):
            run_stages([make("a")], tmp_path)


def test_time_of_a_killed_attempt_is_kept(tmp_path, make):
    stage, out = make("a", "sleep"), tmp_path / "run"
    code = ("from nbp.quickstart.runner import *; "
            f"stage = Stage('a', 'fake_stage', {stage.arguments}, Path('{stage.output}')); "
            f"run_stages([stage], '{out}')")
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
        folders = {stage.name: stage.folder for stage in plan}
        assert folders["tokenizer"] == Path("runs/x/tokenizer") and folders["tokens"] == Path("runs/x/tokens")
        assert folders["prepare"] is folders["evaluate"] is None


def test_minutes_are_shared_by_both_trainings_and_fit_no_smoke_run(tmp_path):
    def training(**options):
        return {stage.name: stage.arguments[-2:] for stage in stages(Path("runs/x"), FULL, **options)
                if stage.module == "nbp.train"}

    assert training(minutes=9) == {"tokenizer": ("--minutes", "4.5"), "generator": ("--minutes", "4.5")}
    assert training() == {"tokenizer": ("--max-minutes", "6"), "generator": ("--max-minutes", "6")}
    with pytest.raises(ValueError, match="--minutes 9 with --smoke"):
        run_quickstart(smoke=True, out=tmp_path, minutes=9)


def test_progress_lines_become_a_bar():
    half, whole = _bar(b"train: 12/24 clips\n", b"12", b"24"), _bar(b"train: 24/24 clips\n", b"24", b"24")
    assert half.startswith(b"[############............] train: 12/24 clips") and half.endswith(b"\r")
    assert whole.startswith(b"[########################]") and whole.endswith(b"\n")


def test_centroid_clips_are_spread_over_every_class():
    labels = np.array([0] * 9 + [1] * 2)
    frames = np.arange(11 * 12, dtype=np.uint8).reshape(11, 1, 2, 2, 3)
    chosen, _ = some_of_each_class(Clips.from_array("train", frames, labels), 3)
    assert chosen.labels.tolist() == [0, 0, 0, 1, 1] and chosen.name == "train, 5 clips"
    assert [int(chosen[number][0, 0, 0, 0]) // 12 for number in range(5)] == [0, 4, 8, 9, 10]
    with pytest.raises(ValueError, match="train has clips without a class"):
        some_of_each_class(Clips.from_array("train", frames, labels - 1), 3)


def test_consistency_is_by_the_centroids_of_the_training_clips():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [10, 0], [0, 10]])
    labels = np.repeat([0, 1, 2], 5)
    result = consistency(centres[labels] + rng.normal(size=(15, 2)), labels, centres[[0, 1, 2, 2]],
                         np.array([0, 1, 2, 0]))
    assert result == {"clips": 4, "class_consistency": 0.75, "class_consistency_by_class": {0: 0.5, 1: 1.0, 2: 1.0}}


def test_scores_are_stated_with_protocol_seed_and_notes(capsys):
    state({"protocol": "quickstart", "protocol_fields": {"name": "quickstart", "network": "i3d-tf", "num_frames": None},
           "weights_sha256": "ab" * 32, "lpips_net": "alex", "seed": 3, "commit": "0123", "notes": ["few clips"],
           "sets": {"real": {"clips": 6, "class_consistency_by_class": {0: 1.0}}}})
    assert capsys.readouterr().out == (
        "protocol quickstart: network=i3d-tf, num_frames=None\n"
        "I3D weights sha256 abababababab, LPIPS network alex, seed 3, commit 0123\n"
        "real             clips 6\nnote: few clips\n")


@pytest.mark.filterwarnings("ignore")
def test_the_interval_of_a_distance_follows_its_seed():
    real, fake = np.random.default_rng(0).normal(size=(2, 40, 3))
    found = [distances(real, fake, 5, seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] and found[0]["fvd"] == found[2]["fvd"]
    assert found[0]["fvd_interval_95"] != found[2]["fvd_interval_95"]


@pytest.mark.slow(seconds=300)
def test_the_whole_pipeline_in_miniature_survives_a_kill(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "nbp.quickstart", "--smoke", "--out", str(out)]
    first = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    wait_for(lambda: first.poll() is not None or (out / "generator/checkpoints/last.ckpt").is_file(), seconds=900)
    assert first.poll() is None, (out / "logs").is_dir() and max((out / "logs").iterdir()).read_text()[-2000:]
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()

    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout[-2000:] + second.stderr
    assert second.stdout.count("done before") == 3
    found, plan = rows(out), stages(out, SMOKE)
    assert {name: row["attempts"] for name, row in found.items()} == {
        stage.name: 1 + (stage.name == "generator") for stage in plan}
    assert all(row["finished"] and row["peak_memory_bytes"] > 0 for row in found.values())
    assert "Restoring states" in (out / found["generator"]["log"]).read_text()
    check_report(out)

    third = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert third.returncode == 0 and third.stdout.count("done before") == len(plan)


def check_report(out):
    text, summary = (out / "report.html").read_text(), json.loads((out / "report.json").read_text())
    assert text.count("<video ") == 28 and text.count("<svg") == 4
    assert len(summary["checks"]) == 7 and len(summary["stages"]) == 11
    assert set(summary["scores"]["sets"]) == {"real", "train", "reconstruction", "pooled", "generated", "class_tokens",
                                              "uniform_tokens", "predicted", "frozen"}
    assert summary["benchmark"]["next_token"]["num_steps"] > summary["benchmark"]["next_block"]["num_steps"]
    assert {"train/loss", "val/loss", "val/top1"} <= set(summary["training"]["generator"])
    assert {"train/reconstruction", "val/psnr"} <= set(summary["training"]["tokenizer"])
    for name in ("sheet_reconstruction", "sheet_generated", "sheet_predicted", "figure_mask", "figure_tokenizer",
                 "figure_generator", "figure_consistency"):
        assert (out / f"{name}.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["quickstart.sh", "test.sh", "../.ci/run"])
def test_scripts_are_thin_and_sound(name):
    script = ROOT / "scripts" / name
    lines = script.read_text().splitlines()
    assert len(lines) <= 15 and "set -euo pipefail" in lines and os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
