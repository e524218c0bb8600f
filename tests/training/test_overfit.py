"""A few clips learnt by heart, through the commands themselves: pixels, tokens and the video that is sampled."""

import numpy as np
import pytest
import torch

from nbp import generate, tokenize, train
from nbp.config import DataConfig
from nbp.data.annotations import write_lists
from nbp.data.clip_set import load
from nbp.data.dataset import VideoDataset
from nbp.data.sources import procgen
from nbp.data.tokens import TokenDataset
from nbp.data.video_io import write_video
from nbp.tokenizer.model import Tokenizer
from nbp.training.metrics_log import read_metrics

NUM_CLIPS, NUM_FRAMES = 3, 5


@pytest.fixture
def data(tmp_path):
    """One class of three 5-frame clips, which are also the validation set, under other names."""
    rows = {"train": [], "val": []}
    for number, (_, frames) in enumerate(procgen.render("coinrun", "train", NUM_CLIPS)):
        for split in rows:
            name = f"{split}/{number}.mp4"
            write_video(tmp_path / "videos" / name, frames[:NUM_FRAMES], procgen.FPS, crf=6, pixel_format="yuv444p")
            rows[split].append((name, "coinrun"))
    write_lists(tmp_path / "videos", rows["train"], rows["val"])
    return DataConfig(name="few", root=str(tmp_path / "videos"), train_list="train.txt", val_list="val.txt",
                      resolution=32,
                      num_frames=NUM_FRAMES)


def train_tokenizer(data, out):
    train.main(["tests/fixtures/runs/tokenizer.yaml", f"data.root={data.root}", f"data.resolution={data.resolution}",
                f"data.num_frames={NUM_FRAMES}", f"trainer.out={out}", "model.widths=[16,24,32,48]",
                "loss.perceptual=0", "loss.adversarial=0", "loss.l2=4", "trainer.num_workers=0", "optim.lr=2.0e-3",
                "optim.decay_steps=200", "trainer.ema_decay=0", "trainer.val_every_steps=40",
                "trainer.precision=32-true",
                "trainer.checkpoint_every_steps=300",
                "curriculum=[{steps: 50, num_frames: 1, batch_size: 3}, {steps: 350, num_frames: 5, batch_size: 3}]"])
    return Tokenizer.from_pretrained(out / "model")


def train_generator(tokens, out):
    train.main(["tests/fixtures/runs/generator.yaml", f"tokenizer={out.parent / 'tokenizer' / 'model'}",
                f"tokens={tokens}", f"trainer.out={out}",
                "model.grid=[2,4,4]", "model.block_shape=[1,1,4]", "model.num_condition_ids=1",
                "model.dropout=0", "model.condition_dropout=0", "trainer.ema_decay=0", "trainer.num_workers=0",
                "model.num_layers=2", "optim.lr=2.0e-3", "optim.warmup_steps=20", "max_steps=200", "batch_size=3",
                "trainer.val_every_steps=100", "trainer.checkpoint_every_steps=300", "trainer.log_every_steps=1",
                "trainer.precision=32-true"])


@pytest.mark.slow(seconds=120)
def test_a_few_clips_are_learnt_by_heart(data, tmp_path):
    tokenizer = train_tokenizer(data, tmp_path / "tokenizer")
    clips = VideoDataset(data, "train", train=False)
    video = torch.stack([clips[item]["video"] for item in range(NUM_CLIPS)])
    with torch.inference_mode():
        error = (tokenizer.decode(tokenizer.encode(video)[0]).clamp(0, 1) - video).square().mean((1, 2, 3, 4))
    psnr = -10 * error.log10()
    assert psnr.min() >= 30, psnr

    (tmp_path / "data.yaml").write_text("".join(
        f"{name}: {getattr(data, name)}\n" for name in ("name", "root", "train_list", "val_list", "resolution",
                                                "num_frames")))
    tokenize.main(["--tokenizer", str(tmp_path / "tokenizer" / "model"), "--data", str(tmp_path / "data.yaml"),
                   "--out", str(tmp_path / "tokens"), "--num-workers", "0"])
    train_generator(tmp_path / "tokens", tmp_path / "generator")
    losses = read_metrics(tmp_path / "generator")["train/loss"]
    assert losses[max(losses)] < 0.1, losses[max(losses)]          # the floor is which clip: log(3) / 32 = 0.034

    # Given its first frame the rest of each clip is certain; from nothing it would be chance which one begins.
    generate.main(["--generator", str(tmp_path / "generator" / "model"), "--tokenizer",
                   str(tmp_path / "tokenizer" / "model"), "--data", str(tmp_path / "data.yaml"), "--prefix-frames", "1",
                   "--greedy", "--num-clips", "3", "--out", str(tmp_path / "generated"), "--device", "cpu",
                   "--batch-size", "3"])
    cache = TokenDataset(tmp_path / "tokens" / "val")
    known = np.stack([cache[item]["indices"].numpy() for item in range(NUM_CLIPS)])
    equal = [(clip == other).mean() for clip, other in zip(load(tmp_path / "generated")["indices"], known)]
    alike = max((known[i] == known[j]).mean() for i in range(NUM_CLIPS) for j in range(i))
    assert min(equal) > 0.9 > alike, (equal, alike)          # each clip is continued as itself, not as another
