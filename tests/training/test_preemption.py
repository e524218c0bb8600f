"""A stop signal reaches a run that a script launched, whichever processes of the job receive it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nbp.training import checkpoints, saving

ROOT = Path(__file__).parents[2]
STOP_WITHIN_S = 1800    # bounds a hang


@pytest.mark.slow
@pytest.mark.parametrize("signum, to_all", [(signal.SIGTERM, True), (signal.SIGUSR1, True), (signal.SIGUSR1, False)])
def test_a_script_saves_before_it_stops(generator_run, tmp_path, signum, to_all):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        ["bash", str(ROOT / "scripts/lm_train/train_ucf.sh"), "2", "1", "trainer.strategy=ddp",
         "trainer.global_batch=null",
         *generator_run(tmp_path, "max_steps=100000", "trainer.val_every_steps=100000", "trainer.ema_decay=0",
                        "trainer.checkpoint_every_steps=100000")],
        env=os.environ | {"PATH": path, "CONFIG": "tests/fixtures/runs/generator.yaml"},
        stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 600
        while not list(tmp_path.glob("logs/version_0/metrics.csv")):
            assert process.poll() is None, process.stderr.read()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        if to_all:
            os.killpg(process.pid, signum)   # as SLURM does with a job step
        else:
            process.send_signal(signum)      # as a person does who looks up the script's process
        _, text = process.communicate(timeout=STOP_WITHIN_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0 and "the same command goes on from here" in text, text[-3000:]
    assert checkpoints.find_damage(checkpoints.newest_complete(tmp_path / "checkpoints")) is None


@pytest.mark.parametrize("world, device, asked", [(1, "cuda", 25), (2, "cpu", 25), (2, "cuda", 3)])
def test_processes_on_gpus_agree_every_ten_steps(monkeypatch, world, device, asked):
    """To agree they would wait for their devices; a process alone asks itself, and a CPU waits anyway."""
    config = SimpleNamespace(out="nowhere", checkpoint_every_steps=100, keep_last=1)
    writer = saving.Checkpoints(None, SimpleNamespace(run=SimpleNamespace(trainer=config, accumulate=1)))
    calls = []
    monkeypatch.setattr(writer, "stop_if_asked", lambda *_: calls.append(1))
    monkeypatch.setattr(writer, "_improved", lambda *_: False)
    for step in range(25):
        trainer = SimpleNamespace(global_step=step, world_size=world,
                                  strategy=SimpleNamespace(root_device=torch.device(device)))
        writer.on_train_batch_start(trainer, None, None, step)
    assert len(calls) == asked
