"""The stages of the quickstart: which command makes what, from which settings."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from nbp.quickstart.runner import Stage, run_stages


@dataclass(frozen=True)
class Size:
    """How much a run does: its data set, its counts, and what is added to the commands of stages."""

    data: str
    root: str
    train_clips: int
    val_clips: int
    num_clips: int
    tokenizer: tuple[str, ...] = ()
    generator: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    benchmark: tuple[str, ...] = ()
    time: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())    # of training the tokenizer and the generator


# Chosen without held-out clips, docs/experiments.md.
SAMPLING = ("--temperature", "0.8", "--top-p", "0.95", "--cfg-scale", "3")
FULL = Size("configs/data/procgen.yaml", "data/procgen", train_clips=2400, val_clips=240, num_clips=240,
            benchmark=("--repeats", "2"),
            time=(("--max-minutes", "6"), ("--max-minutes", "6")))     # slow processors: docs/quickstart.md
SMOKE = Size(
    "configs/data/procgen_smoke.yaml", "data/procgen-smoke", train_clips=24, val_clips=12, num_clips=8,
    tokenizer=("curriculum=[{steps: 4, num_frames: 1, batch_size: 4}, {steps: 2, num_frames: 5, batch_size: 2}, "
               "{steps: 4, num_frames: 17, batch_size: 1}]", "trainer.val_every_steps=5", "trainer.val_batches=1",
               "trainer.checkpoint_every_steps=2", "trainer.log_every_steps=1", "loss.adversarial_start_step=6",
               "loss.adversarial_warmup_steps=0"),
    generator=("max_steps=6", "batch_size=4", "trainer.val_every_steps=3", "trainer.val_batches=1",
               "trainer.checkpoint_every_steps=2", "trainer.log_every_steps=1"),
    scores=("--clips-per-centroid", "1", "--fvd-clips-per-class", "1", "--draws", "4"), benchmark=("--repeats", "1"))


def run_quickstart(smoke: bool, out: str | Path | None = None, minutes: float | None = None) -> None:
    """Run the stages that are not done in OUT. ValueError: minutes for a smoke run, whose steps are fixed."""
    if smoke and minutes is not None:
        raise ValueError(f"--minutes {minutes:g} with --smoke: a smoke run takes a fixed number of steps")
    out = Path(out or ("runs/smoke" if smoke else "runs/quickstart"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is told to stop as well
    run_stages(stages(out, SMOKE if smoke else FULL, minutes), out)
    print(f"report: {out / 'report.html'}" + (" (a smoke run shows that everything works, not what it can reach)"
                                              if smoke else ""))


def stages(out: Path, size: Size, minutes: float | None = None) -> list[Stage]:
    """The commands of a run, in order; `minutes` of training are half for each model, None: the run files' steps as far
    as the size has time for them."""
    tokenizer, generator = f"{out}/tokenizer/model", f"{out}/generator/model"
    models = ("--tokenizer", tokenizer, "--generator", generator)
    real, data = f"{out}/reconstruction/real.npz", ("--data", size.data)
    how = ("--num-clips", str(size.num_clips), "--fps", "15", *SAMPLING)    # 15: the rate of Procgen's files
    time = size.time if minutes is None else (("--minutes", f"{minutes / 2:g}"),) * 2

    def stage(name: str, module: str, output: str | Path, *arguments: str) -> Stage:
        if isinstance(output, Path):      # the data set, which other runs use too: prepare makes it fit its arguments
            return Stage(name, f"nbp.{module}", arguments, output)
        top = Path(output).parts[0]
        return Stage(name, f"nbp.{module}", arguments, out / output, out / top if top != output else None)

    return [
        stage("prepare", "prepare", Path(size.root) / "train.txt", "procgen", "--root", size.root,
              "--train-clips", str(size.train_clips), "--val-clips", str(size.val_clips)),
        stage("tokenizer", "train", "tokenizer/model/config.json", "configs/tokenizer_procgen.yaml",
              f"trainer.out={out}/tokenizer", f"data.root={size.root}", *size.tokenizer, *time[0]),
        stage("tokens", "tokenize", "tokens/val/meta.json", "--tokenizer", tokenizer, *data, "--out", f"{out}/tokens"),
        stage("generator", "train", "generator/model/config.json", "configs/generator_procgen.yaml",
              f"trainer.out={out}/generator", f"tokenizer={tokenizer}", f"tokens={out}/tokens", *size.generator,
              *time[1]),
        stage("reconstruct", "reconstruct", "reconstruction/clips.npz", "--tokenizer", tokenizer, *data,
              "--lpips", "alex", "--no-fvd", "--out", f"{out}/reconstruction"),   # the distance: evaluate
        stage("generate", "generate", "generated/clips.npz", *models, *how, "--out", f"{out}/generated"),
        stage("predict", "generate", "predicted/clips.npz", *models, *how, *data, "--prefix-frames", "5",
              "--out", f"{out}/predicted"),
        stage("baselines", "quickstart.baselines", "baselines/uniform_tokens/clips.npz", "--real", real,
              "--generated", f"{out}/generated", "--predicted", f"{out}/predicted", "--tokenizer", tokenizer,
              "--tokens", f"{out}/tokens/train", "--prefix-frames", "5", "--out", f"{out}/baselines"),
        stage("evaluate", "quickstart.scores", "scores.json", str(out), *data, *size.scores),
        stage("benchmark", "benchmark", "benchmark.json", *models, "--out", f"{out}/benchmark.json",
              *size.benchmark),
        stage("report", "report", "report.html", str(out)),
    ]
