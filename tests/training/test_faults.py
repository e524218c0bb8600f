"""What goes wrong on real machines: signals, full disks, dead processes, bad files, bad numbers."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from killing import train_in_a_fork
from moving import moving_square

from nbp import train
from nbp.data.annotations import write_lists
from nbp.data.video_io import VideoError, write_video
from nbp.generator.model import Generator
from nbp.system.command import UserError
from nbp.system.distributed import rank_and_world
from nbp.system.files import held
from nbp.training import checkpoints, fit
from nbp.training import tokenizer as tokenizer_builder
from nbp.training.metrics_log import read_metrics

GENERATOR, TOKENIZER = "tests/fixtures/runs/generator.yaml", "tests/fixtures/runs/tokenizer.yaml"
STOP_WITHIN_S = 1800    # bounds a hang; how long a loaded machine takes is no matter


class SignalAt(pl.Callback):
    """Sends its own process a signal at a step, in training or in the validation after it."""

    def __init__(self, step, signum, validating=False):
        self.step, self.signum, self.validating = step, signum, validating

    def _send(self, trainer):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)

    def on_train_batch_end(self, trainer, *_):
        if not self.validating:
            self._send(trainer)

    def on_validation_start(self, trainer, module):
        if self.validating:
            self._send(trainer)


@pytest.mark.parametrize("signum, step, validating", [(signal.SIGTERM, 3, False), (signal.SIGUSR1, 4, True),
                                                      (signal.SIGINT, 3, False)])
def test_a_signal_saves_and_stops_and_the_run_goes_on_as_if_undisturbed(generator_run, tmp_path, signum, step,
                                                                        validating):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    more = ("trainer.val_samples=0", "trainer.checkpoint_every_steps=100")
    train.main([GENERATOR, *generator_run(whole, *more)])
    arguments = [GENERATOR, *generator_run(stopped, *more)]
    code, text = train_in_a_fork(arguments, SignalAt(step, signum, validating))
    assert code == 128 + signum
    assert f"stopped by {signum.name}; the same command goes on from here" in text and "Traceback" not in text
    assert checkpoints.newest_complete(stopped / "checkpoints") == checkpoints.checkpoint_path(
        stopped / "checkpoints", step)
    train.main(arguments)
    assert read_metrics(stopped)["train/loss"] == read_metrics(whole)["train/loss"]
    assert read_metrics(stopped)["val/loss"] == read_metrics(whole)["val/loss"]
    one, other = (Generator.from_pretrained(out / "model").state_dict() for out in (whole, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_validation_that_was_stopped_still_chooses_the_best(generator_run, tmp_path):
    more = ("trainer.val_samples=0", "trainer.checkpoint_every_steps=100", "max_steps=3")
    train.main([GENERATOR, *generator_run(tmp_path / "whole", *more)])
    arguments = [GENERATOR, *generator_run(tmp_path / "stopped", *more)]
    assert train_in_a_fork(arguments, SignalAt(2, signal.SIGUSR1, True))[0] == 128 + signal.SIGUSR1
    train.main(arguments)
    best = {name: (tmp_path / name / "checkpoints" / checkpoints.BEST).resolve().name for name in ("whole", "stopped")}
    assert best["whole"] == best["stopped"] == "step0000002.ckpt"


@pytest.mark.slow
def test_loader_workers_outlive_a_signal_to_the_whole_group(generator_run, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "nbp.train", GENERATOR, *generator_run(
            tmp_path, "trainer.num_workers=1", "trainer.val_samples=0", "max_steps=100000",
            "trainer.val_every_steps=100000", "trainer.checkpoint_every_steps=100000")],
        stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob("logs/version_0/metrics.csv")):
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    _, text = process.communicate(timeout=STOP_WITHIN_S)
    assert process.returncode == 128 + signal.SIGTERM, text[-3000:]
    assert checkpoints.newest_complete(tmp_path / "checkpoints")


def test_a_full_disk_leaves_the_older_checkpoint_and_says_what_to_do(generator_run, tmp_path):
    class SmallDisk(pl.Callback):
        """No file may grow beyond 20 kB from step 3 on: a real failure of write(2)."""

        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    arguments = [GENERATOR, *generator_run(tmp_path, "trainer.val_samples=0")]
    code, text = train_in_a_fork(arguments, SmallDisk())
    assert code == 1
    assert f"cannot write checkpoint {tmp_path}/checkpoints/step0000004.ckpt" in text
    assert "Earlier checkpoints are whole; make room and run the same command again" in text
    found = tmp_path / "checkpoints"
    assert checkpoints.list_checkpoints(found) == [checkpoints.checkpoint_path(found, 2)]
    assert checkpoints.find_damage(found / "step0000002.ckpt") is None and not list(found.glob(".step*"))
    assert train.main(arguments) == 0
    assert sorted(read_metrics(tmp_path)["train/loss"]) == list(range(6))


@pytest.mark.parametrize("out", ["/proc/nbp", "{tmp_path}/file/run"])
def test_an_unwritable_run_folder_is_refused_before_any_work(tokenizer_run, tmp_path, out):
    (tmp_path / "file").write_text("")
    out = out.format(tmp_path=tmp_path)
    with pytest.raises(ValueError, match=f"trainer.out={out} cannot be written"):
        train.main([TOKENIZER, *tokenizer_run(out)])


@pytest.fixture(scope="module")
def mixed_root(tmp_path_factory):
    """Six good videos; among them garbage, an empty file, one cut in half, and one of three frames."""
    root = tmp_path_factory.mktemp("mixed")
    rows = {"train": [], "val": []}
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            name = f"{split}/{number}.mp4"
            write_video(root / name, moving_square(number), fps=8, crf=10)
            rows[split].append((name, "ab"[number % 2]))
    good = (root / "train/0.mp4").read_bytes()
    for name, data in (("garbage", b"no video" * 100), ("empty", b""), ("cut", good[:len(good) // 2])):
        (root / f"train/{name}.mp4").write_bytes(data)
        rows["train"].append((f"train/{name}.mp4", "a"))
    write_video(root / "train/short.mp4", moving_square(9, count=3), fps=8)
    (root / "val/bad.mp4").write_bytes(b"no video")
    rows["train"].append(("train/short.mp4", "b"))
    rows["val"].insert(0, ("val/bad.mp4", "a"))
    write_lists(root, rows["train"], rows["val"])
    return root


def test_bad_and_short_videos_among_good_ones(tokenizer_run, mixed_root, tmp_path, caplog):
    one_phase = "curriculum=[{steps: 6, num_frames: 17, batch_size: 2}]"
    train.main([TOKENIZER, *tokenizer_run(tmp_path, f"data.root={mixed_root}", "data.max_bad_files=5", one_phase)])
    assert len(read_metrics(tmp_path)["train/loss"]) == 6
    assert len(read_metrics(tmp_path)["val/psnr"]) == 3, "a good clip stands in for the bad one"
    for name in ("garbage", "empty", "cut", "short"):
        assert f"{name}.mp4" in caplog.text, f"{name} was not reported"


def test_bad_videos_are_an_error_unless_allowed(tokenizer_run, mixed_root, tmp_path):
    with pytest.raises(VideoError, match=r"(garbage|empty|cut|short)\.mp4"):
        train.main([TOKENIZER, *tokenizer_run(tmp_path, f"data.root={mixed_root}")])


@pytest.mark.parametrize("pixel", [float("nan"), float("inf")])
def test_a_bad_batch_costs_one_step(load_tokenizer_run, monkeypatch, pixel):
    run = load_tokenizer_run("loss.lecam=0.001", "trainer.ema_decay=0.9", "trainer.val_samples=0")
    module, data, extra = tokenizer_builder.build(run)
    step = module.training_step

    def poisoned(batch, batch_idx):
        if batch_idx == 2:
            batch["video"][0, 0, 0, 0, 0] = pixel
        return step(batch, batch_idx)

    monkeypatch.setattr(module, "training_step", poisoned)
    fit.build_trainer(run, module.max_steps, extra).fit(module, data)
    assert int(module.skipped_steps) == 1
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())
    found = read_metrics(run.trainer.out)["train/loss"]
    assert np.isfinite([found[number] for number in (0, 1, 3, 4, 5)]).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind, strategy", [("generator", "ddp"), ("generator", "deepspeed_2"), ("tokenizer", "ddp"),
                                            ("generator", "deepspeed_3"), ("tokenizer", "deepspeed_2")])
def test_a_bad_batch_of_one_process_costs_both_the_same_step(request, tmp_path, kind, strategy):
    config, overrides = {"generator": GENERATOR, "tokenizer": TOKENIZER}[kind], request.getfixturevalue(f"{kind}_run")
    out = tmp_path / "run"
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "tests/training/poisoning.py", "3", "1", str(tmp_path), config, *overrides(
             out, f"trainer.strategy={strategy}", "trainer.devices=2", "trainer.ema_decay=0", "trainer.val_samples=0",
             "optim.gradient_clip=0")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])},
        capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stderr[-3000:]
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    skips = strategy != "deepspeed_3"           # which goes back one checkpoint instead
    for state in (one, other):
        assert (state["skipped"], state["rollbacks"]) == ((1, 0) if skips else (0, 1))
    assert ("ZeRO-3 cannot skip a step" in result.stderr) != skips
    for name, weight in one["weights"].items():
        assert torch.isfinite(weight).all() and torch.equal(weight, other["weights"][name]), name
    assert sorted(read_metrics(out)["train/loss"]) == list(range(6))


def test_torchrun_with_more_processes_than_configured_is_refused(load_tokenizer_run, monkeypatch):
    from nbp.training.strategies import check_processes

    config = load_tokenizer_run("trainer.devices=2").trainer
    environment = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4"}
    with pytest.raises(ValueError, match="torchrun started 4 processes, but trainer.devices=2 x trainer.num_nodes=1"):
        check_processes(config, environment)
    check_processes(config, environment | {"WORLD_SIZE": "2"})


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_2"])
def test_when_one_process_dies_the_others_stop_and_say_why(generator_run, tmp_path, strategy):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               "tests/training/killing.py", "3", "0.0", "1", GENERATOR, *generator_run(
                   tmp_path, f"trainer.strategy={strategy}", "trainer.devices=2", "trainer.ema_decay=0",
                   "max_steps=100000", "trainer.val_every_steps=100000")]
    paths = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True,
                               env=os.environ | {"PYTHONPATH": paths})
    while not (tmp_path / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.2)
    _, text = process.communicate(timeout=STOP_WITHIN_S)  # the kill comes with the checkpoint
    assert process.returncode != 0
    assert "rank: 1" in text.replace("      ", " ") or "local_rank: 1" in text, text[-3000:]
    assert "SIGKILL" in text


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_on_every_rank(generator_run, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "nbp.train",
               GENERATOR, *generator_run(tmp_path, "trainer.strategy=deepspeed_1", "trainer.devices=2",
                                         "trainer.ema_decay=0", "max_steps=100000", "trainer.val_every_steps=100000",
                                         "trainer.checkpoint_every_steps=100000")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob("logs/version_0/metrics.csv")):
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=STOP_WITHIN_S)
    assert "stopped by SIGTERM; the same command goes on from here" in text, text[-3000:]
    assert checkpoints.find_damage(checkpoints.newest_complete(tmp_path / "checkpoints")) is None


@pytest.mark.parametrize("word", ["auto", "ddp"])
def test_several_processes_wait_ten_minutes_for_one_that_hangs(word, load_tokenizer_run):
    from nbp.training.resume import Resume
    from nbp.training.strategies import PATIENCE, build_strategy

    assert build_strategy(word, 2, 1.0, Resume(load_tokenizer_run()))._timeout == PATIENCE


def test_a_second_training_in_a_folder_is_refused(load_tokenizer_run, tmp_path):
    run = load_tokenizer_run()
    os.makedirs(run.trainer.out, exist_ok=True)
    with held(run.trainer.out), pytest.raises(UserError, match="another process is working in .*; wait"):
        fit.fit(run)
    assert not (Path(run.trainer.out) / "checkpoints").exists()


def test_one_process_inside_a_job_of_several_tasks_trains_alone(load_tokenizer_run, monkeypatch):
    for name, value in {"SLURM_JOB_NAME": "nbp", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):      # which DeepSpeed leaves behind in a process
        monkeypatch.delenv(name, raising=False)
    trainer = fit.build_trainer(load_tokenizer_run(), 1, [])
    assert trainer.world_size == 1 and rank_and_world() == (0, 1)
