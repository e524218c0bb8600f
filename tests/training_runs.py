"""Fixtures that train tiny models and make what they are trained on, once for all tests of a process."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from moving import moving_square

from nbp.config import load_run
from nbp.data.annotations import write_lists
from nbp.data.video_io import write_video
from nbp.training.metrics_log import read_metrics

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def clips_root(tmp_path_factory):
    """Two classes, four training and one validation video each, 20 frames of 32x32."""
    root = tmp_path_factory.mktemp("clips")
    rows = {"train": [], "val": []}
    for split, clips in (("train", 4), ("val", 1)):
        for number, label in enumerate(("a", "b")):
            for clip in range(clips):
                name = f"{split}/{label}{clip}.mp4"
                write_video(root / name, moving_square(100 * number + clip + 10 * (split == "val")), fps=8, crf=10)
                rows[split].append((name, label))
    write_lists(root, rows["train"], rows["val"])
    return root


@pytest.fixture(scope="session")
def tokenizer_run(clips_root):
    """Overrides that make the quickstart's tokenizer run tiny, as a function of the run folder."""
    def overrides(out, *more):
        return [f"data.root={clips_root}", "data.resolution=32", f"trainer.out={out}", "model.widths=[8,8,16,16]",
                "model.fsq_levels=[5,5,5]", "trainer.num_workers=0", "loss.perceptual=0", "discriminator.width=8",
                "discriminator.num_layers=2", "loss.adversarial_start_step=1", "loss.adversarial_warmup_steps=0",
                "optim.warmup_steps=0", "trainer.val_every_steps=2", "trainer.val_batches=1",
                "trainer.checkpoint_every_steps=2", "trainer.log_every_steps=1", "trainer.precision=32-true",
                "curriculum=[{steps: 2, num_frames: 1, batch_size: 2}, {steps: 4, num_frames: 5, batch_size: 2}]",
                *more]
    return overrides


@pytest.fixture
def load_tokenizer_run(tokenizer_run, tmp_path):
    def load(*more):
        return load_run("tests/fixtures/runs/tokenizer.yaml", tokenizer_run(tmp_path / "run", *more))
    return load


@contextmanager
def work_on_cpu():
    """In the repository, without GPUs and with one thread, here and in started processes: losses are compared bit for
    bit."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@pytest.fixture
def on_cpu():
    with work_on_cpu():
        yield


@pytest.fixture(scope="session")
def finished(tokenizer_run, tmp_path_factory):
    """A finished tiny tokenizer run on one device."""
    from nbp import train

    out = tmp_path_factory.mktemp("finished")
    with work_on_cpu():
        train.main(["tests/fixtures/runs/tokenizer.yaml", *tokenizer_run(out)])
    return out


@pytest.fixture(scope="session")
def data_config(clips_root, tmp_path_factory):
    """Data config of `clips_root`."""
    path = tmp_path_factory.mktemp("data") / "data.yaml"
    path.write_text(f"name: clips\nroot: {clips_root}\ntrain_list: train.txt\nval_list: val.txt\nresolution: 32\n")
    return path


@pytest.fixture(scope="session")
def tokens(finished, data_config, tmp_path_factory):
    """Token cache of `clips_root` by the tokenizer of `finished`."""
    from nbp import tokenize

    out = tmp_path_factory.mktemp("tokens")
    tokenize.main(["--tokenizer", str(finished / "model"), "--data", str(data_config), "--out", str(out),
                   "--num-workers", "0", "--device", "cpu"])
    return out


@pytest.fixture(scope="session")
def generator_run(finished, tokens):
    """Overrides that make the quickstart's generator run tiny, as a function of the run folder."""
    def overrides(out, *more):
        return [f"trainer.out={out}", f"tokenizer={finished / 'model'}", f"tokens={tokens}", "model.num_layers=2",
                "model.num_heads=2", "model.width=32", "model.num_codes=125", "model.grid=[5,4,4]",
                "model.block_shape=[1,1,4]", "model.num_condition_ids=2", "trainer.num_workers=0", "max_steps=6",
                "batch_size=2", "optim.warmup_steps=1", "trainer.val_every_steps=2", "trainer.val_batches=1",
                "trainer.checkpoint_every_steps=2", "trainer.log_every_steps=1", "trainer.precision=32-true", *more]
    return overrides


@pytest.fixture
def launch():
    """Run `python -m nbp.train` under torchrun with some processes; returns what it printed."""
    def run(processes, config, *overrides):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m",
                   "nbp.train", config, *overrides, f"trainer.devices={processes}"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stderr
    return run


@pytest.fixture
def losses_by_engine(launch, tmp_path):
    """Function(config, overrides of a run folder, strategies) -> training losses of two processes by strategy; the
    runs are in tmp_path/STRATEGY."""
    def run(config, overrides, *strategies):
        for strategy in strategies:
            launch(2, config, *overrides(tmp_path / strategy), f"trainer.strategy={strategy}")
        return {strategy: list(read_metrics(tmp_path / strategy)["train/loss"].values()) for strategy in strategies}
    return run


def equal_losses(found, steps):
    """DDP logged as many losses, one for each optimizer step, and the other engines the same."""
    assert len(found["ddp"]) == steps
    for strategy, values in found.items():
        assert values == pytest.approx(found["ddp"], rel=1e-4), strategy
