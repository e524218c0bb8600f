"""What a training run knows of its model, for the model's folder."""

from pathlib import Path

from nbp.config import DataConfig, GeneratorRun, TokenizerRun, build_config
from nbp.data.dataset import class_names
from nbp.hub.about import About, write_about
from nbp.system.files import read_json


def describe_model(folder: str | Path, run: TokenizerRun | GeneratorRun) -> None:
    """Write about.json, the text tokenizer and a model card beside the exported model of a run."""
    text_tokenizer = run.text_tokenizer if isinstance(run, GeneratorRun) else None
    write_about(folder, about_run(run), run.kind, text_tokenizer)


def about_run(run: TokenizerRun | GeneratorRun) -> About:
    """Names of the data set and, for generators, of its classes; rate, size and length of its clips."""
    classes: list[str] = []
    data = run.data
    if isinstance(run, GeneratorRun) and run.tokens is not None:
        path = Path(run.tokens) / "train" / "meta.json"
        meta = read_json(path)
        classes = list(meta["classes"])
        known = {name: value for name, value in meta["data"].items() if name in DataConfig.__dataclass_fields__}
        data = build_config(DataConfig, known, path)
    elif isinstance(run, GeneratorRun) and data is not None:
        classes = class_names(data)
    assert data is not None
    return About(data.name, classes, data.fps, data.resolution, data.num_frames)
