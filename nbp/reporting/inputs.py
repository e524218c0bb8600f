"""What the report reads: the outputs of the stages, each required, and the machine."""

import itertools
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from nbp.config import GeneratorConfig, load_config, load_run
from nbp.data import clip_set
from nbp.data.tokens import TokenDataset
from nbp.system.files import read_json
from nbp.training.metrics_log import read_metrics

PACKAGES = ("torch", "pytorch-lightning", "numpy", "av", "einops", "safetensors")


@dataclass
class Run:
    """Everything of one run that the report shows.

    clips: {name: arrays of a clip set}, "real" among them; curves: {"tokenizer", "generator"} -> {metric:
    (steps, values)}; classes: names in id order; phases: steps at which the tokenizer's clips get longer;
    num_steps: of both trainings; num_given: frames that predictions were given.
    """

    folder: Path
    scores: dict
    benchmark: dict
    stages: list
    clips: dict
    curves: dict
    phases: list
    seeds: dict
    generator: GeneratorConfig
    classes: list
    num_train: int
    num_steps: dict
    num_given: int


def read_run(folder):
    """Read a run folder.

    Raises:
        ValueError: an output is missing, with the file and the stage that writes it, or cannot be read.
    """
    folder = Path(folder)
    clips = {"real": clip_set.read_arrays(_required(folder / "reconstruction/real.npz", "reconstruct"))}
    for name, stage in (("reconstruction", "reconstruct"), ("generated", "generate"), ("predicted", "predict"),
                        ("baselines/pooled", "baselines"), ("baselines/frozen", "baselines")):
        _required(folder / name / "clips.npz", stage)
        clips[Path(name).name] = clip_set.load(folder / name)
    runs = {kind: load_run(_required(folder / kind / "config.yaml", kind)) for kind in ("tokenizer", "generator")}
    tokens = TokenDataset(_required(folder / "tokens/train/meta.json", "tokens").parent)
    phases = list(itertools.accumulate(phase.steps for phase in runs["tokenizer"].curriculum))
    model = read_json(_required(folder / "generator/model/config.json", "generator"))
    return Run(
        folder=folder,
        scores=read_json(_required(folder / "scores.json", "evaluate")),
        benchmark=read_json(_required(folder / "benchmark.json", "benchmark")),
        stages=read_json(_required(folder / "stages.json", "quickstart itself"))["stages"],
        clips=clips,
        curves={kind: _curves(folder / kind) for kind in runs},
        phases=phases[:-1],
        num_steps={"tokenizer": phases[-1], "generator": runs["generator"].max_steps},
        seeds={"tokenizer": runs["tokenizer"].trainer.seed, "generator": runs["generator"].trainer.seed,
               "generate": read_json(_required(folder / "generated/meta.json", "generate"))["seed"]},
        generator=load_config(GeneratorConfig, values=model["config"]),
        classes=tokens.classes, num_train=len(tokens),
        num_given=read_json(_required(folder / "predicted/meta.json", "predict"))["prefix_frames"])


def _curves(folder):
    return {name: tuple(zip(*sorted(points.items()))) for name, points in read_metrics(folder).items()}


def _required(path, stage):
    if not path.is_file():
        raise ValueError(f"{path} is missing; the stage `{stage}` writes it: run `python -m nbp.quickstart` with the "
                         "same --out, it goes on where it stopped")
    return path


def machine():
    """Processor, cores, memory, system and versions of this machine, as {what: text}."""
    versions = {package: metadata.version(package) for package in PACKAGES}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": _processor(), "cores": str(cores), "memory": f"{memory:.0f} GiB",
            "system": platform.platform(), "python": platform.python_version(), **versions}


def _processor():
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
