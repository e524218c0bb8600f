"""Joint image and video training, through Lightning itself."""

import numpy as np
import pytest
from PIL import Image

from nbp import train
from nbp.config import load_run
from nbp.training import tokenizer as tokenizer_builder
from nbp.training.metrics_log import read_metrics
from nbp.training.tokenizer import TokenizerModule

TOKENIZER = "tests/fixtures/runs/tokenizer.yaml"
PHASE = "curriculum=[{steps: 6, num_frames: 5, batch_size: 2}]"


@pytest.fixture
def pictures(tmp_path):
    random = np.random.default_rng(0)
    for number in range(5):
        path = tmp_path / "pictures" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 48, 3), np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def shapes(monkeypatch):
    """Shapes of the batches that training steps see."""
    seen, step = [], TokenizerModule.training_step
    monkeypatch.setattr(TokenizerModule, "training_step", lambda self, batch, number: (
        seen.append(tuple(batch["video"].shape)), step(self, batch, number))[1])
    return seen


@pytest.mark.parametrize("source", ["pictures", "frames of the videos"])
def test_images_and_clips_take_turns(tokenizer_run, pictures, shapes, tmp_path, source):
    more = [f"images.root={pictures}"] if source == "pictures" else []
    train.main([TOKENIZER, *tokenizer_run(tmp_path / "run", PHASE, "images.share=0.5", "images.batch_size=3", *more)])
    assert shapes == 3 * [(2, 3, 5, 32, 32), (3, 3, 1, 32, 32)]
    assert len(read_metrics(tmp_path / "run")["train/loss"]) == 6


def test_no_images_unless_asked(load_tokenizer_run):
    _, data, _ = tokenizer_builder.build(load_tokenizer_run(PHASE))
    assert data.images is None and data.pictures is None


@pytest.mark.parametrize("override, message", [
    ("images.share=1", r"images.share must be in \[0, 1\), got 1.0"),
    ("images.batch_size=0", "images.batch_size must be at least 1"),
    ("images.train_list=list.txt", "needs images.root"),
])
def test_bad_shares(tokenizer_run, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        load_run(TOKENIZER, tokenizer_run(tmp_path, override))


@pytest.mark.slow
def test_two_processes_train_on_both(launch, tokenizer_run, pictures, tmp_path):
    """Unlike shapes on two ranks would make their gradients or losses differ from one process's larger batch."""
    common = [PHASE, "images.share=0.5", f"images.root={pictures}", "optim.gradient_clip=0", "loss.adversarial=0",
              "trainer.ema_decay=0"]
    one = PHASE.replace("batch_size: 2", "batch_size: 4")
    train.main([TOKENIZER, *tokenizer_run(tmp_path / "one", *common, one, "images.batch_size=4")])
    launch(2, TOKENIZER, *tokenizer_run(tmp_path / "two", *common, "images.batch_size=2", "trainer.strategy=ddp"))
    found = [read_metrics(tmp_path / name)["val/psnr"] for name in ("one", "two")]
    for step, value in found[0].items():
        assert found[1][step] == pytest.approx(value, abs=0.02), step


def test_other_pictures_are_refused_when_a_run_goes_on(tokenizer_run, pictures, tmp_path):
    more = ["images.share=0.5", f"images.root={pictures}", "trainer.val_samples=0"]
    train.main([TOKENIZER, *tokenizer_run(tmp_path / "run", PHASE, *more)])
    (pictures / "0.png").rename(pictures / "9.png")
    with pytest.raises(ValueError, match="trained with other pictures"):
        train.main([TOKENIZER, *tokenizer_run(tmp_path / "run", *more, PHASE, "trainer.resume="
                                              f"{tmp_path / 'run' / 'checkpoints' / 'step0000004.ckpt'}")])
