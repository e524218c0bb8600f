"""What the report reads: the outputs of the stages, each required, and the machine."""

import itertools
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from nbp.config import GeneratorConfig, GeneratorRun, TokenizerRun, build_config, load_run
from nbp.data import clip_set
from nbp.data.tokens import TokenDataset
from nbp.system.files import read_json
from nbp.system.processor import processor_name
from nbp.training.metrics_log import read_metrics

Curves: TypeAlias = Mapping[str, tuple[Sequence[int], Sequence[float]]]  # metric -> (steps, values)
KINDS = ("tokenizer", "generator")
PACKAGES = ("torch", "pytorch-lightning", "numpy", "av", "einops", "safetensors")


@dataclass
class Run:
    """Everything of one run that the report shows."""

    folder: Path
    scores: dict[str, Any]
    benchmark: dict[str, Any]
    stages: list[dict[str, Any]]
    clips: dict[str, dict[str, np.ndarray]]     # arrays of clip sets by name, "real" among them
    curves: dict[str, Curves]                   # of "tokenizer" and "generator"
    phases: list[int]                           # steps at which the tokenizer's clips get longer
    seeds: dict[str, int]
    generator: GeneratorConfig
    classes: list[str]                          # names in id order
    num_train: int
    num_steps: dict[str, int]
    num_given: int                              # frames that predictions were given


def read_run(folder: str | Path) -> Run:
    """Read a run folder. ValueError: an output is missing, with the file and its stage, or cannot be read."""
    folder = Path(folder)
    clips = {"real": clip_set.read_arrays(_required(folder / "reconstruction/real.npz", "reconstruct"))}
    for name, stage in (("reconstruction", "reconstruct"), ("generated", "generate"), ("predicted", "predict"),
                        ("baselines/pooled", "baselines"), ("baselines/frozen", "baselines")):
        _required(folder / name / "clips.npz", stage)
        clips[Path(name).name] = clip_set.load(folder / name)
    tokenizer, generator = (load_run(_required(folder / kind / "config.yaml", kind)) for kind in KINDS)
    assert isinstance(tokenizer, TokenizerRun) and isinstance(generator, GeneratorRun)
    tokens = TokenDataset(_required(folder / "tokens/train/meta.json", "tokens").parent)
    phases = list(itertools.accumulate(phase.steps for phase in tokenizer.curriculum))
    model = read_json(_required(folder / "generator/model/config.json", "generator"))
    stages = read_json(_required(folder / "stages.json", "quickstart itself"))["stages"]
    return Run(
        folder=folder,
        scores=read_scores(folder, stages),
        benchmark=read_json(_required(folder / "benchmark.json", "benchmark")),
        stages=stages,
        clips=clips,
        curves={kind: read_curves(folder / kind) for kind in KINDS},
        phases=phases[:-1],
        num_steps={"tokenizer": phases[-1], "generator": generator.max_steps},
        seeds={"tokenizer": tokenizer.trainer.seed, "generator": generator.trainer.seed,
               "generate": read_json(_required(folder / "generated/meta.json", "generate"))["seed"]},
        generator=build_config(GeneratorConfig, model["config"], folder / "generator/model/config.json"),
        classes=tokens.classes, num_train=len(tokens),
        num_given=read_json(_required(folder / "predicted/meta.json", "predict"))["prefix_frames"])


def read_scores(folder: Path, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """scores.json of a run. ValueError: it is missing, or does not compare generated clips with reconstructions."""
    path = _required(folder / "scores.json", "evaluate")
    scores: dict[str, Any] = read_json(path)
    if "fvd_to_reconstructions" not in scores["sets"]["generated"]:
        command = next((row["command"] for row in stages if row["name"] == "evaluate"), "the stage `evaluate` again")
        raise ValueError(f"{path} lacks the distance of generated clips to reconstructions, which earlier versions "
                         f"did not measure: run {command}")
    return scores


def read_curves(folder: Path) -> Curves:
    """Curves that a training run has logged so far."""
    return {name: (sorted(points), [points[step] for step in sorted(points)])
            for name, points in read_metrics(folder).items()}


def _required(path: Path, stage: str) -> Path:
    if not path.is_file():
        raise ValueError(f"{path} is missing; the stage `{stage}` writes it: run `python -m nbp.quickstart` with the "
                         "same --out, it goes on where it stopped")
    return path


def machine() -> dict[str, str]:
    """Processor, cores, memory, system and versions of this machine, as {what: text}."""
    versions = {package: metadata.version(package) for package in PACKAGES}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": processor_name(), "cores": str(cores), "memory": f"{memory:.0f} GiB",
            "system": platform.platform(), "python": platform.python_version(), **versions}
