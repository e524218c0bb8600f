"""Which clips are asked for: classes, prompts and data in the words of a command or call -> requests."""

import difflib
from collections.abc import Sequence
from numbers import Integral
from typing import TypeVar

import torch

from nbp.config import GeneratorConfig
from nbp.data.classes import class_text, read_classes
from nbp.data.dataset import VideoDataset
from nbp.generator.conditions import ConditionEncoder
from nbp.hub.about import About
from nbp.workflows.making import Request

T = TypeVar("T")


def asked_clips(config: GeneratorConfig, about: About, num_clips: int, labels: Sequence[str | int] | None,
                texts: Sequence[str] | None, classes: str | None, dataset: VideoDataset | None,
                unconditional: bool) -> tuple[list[int] | None, list[str] | None, list[Request]]:
    """(labels, texts, clips to make) of what the command was given. ValueError: what the model cannot make."""
    if unconditional and (labels or texts or classes):
        raise ValueError("--unconditional takes no --labels, no --texts and no --classes, got "
                         f"{labels or texts or classes}")
    if dataset is None and not config.begin_token:
        raise ValueError("this model has no begin token, it continues videos: give --data CONFIG")
    if dataset is not None and (labels or texts or classes):
        raise ValueError(f"--labels, --texts and --classes are for clips from nothing, those of --data have their own; "
                         f"got {labels or texts or classes}")
    if unconditional and dataset is None:       # what plays no part is not written down
        return None, None, [Request(number) for number in range(num_clips)]
    texts = texts or (prompts_of(classes, config) if classes else None)
    if dataset is None:
        ids, prompts = wanted(config, about, labels, texts)
        return ids, prompts, list_requests(config, num_clips, ids, prompts)
    requests = list_requests(config, num_clips, dataset=dataset)
    if config.condition == "label" and not unconditional and (without := [r.path for r in requests if r.label < 0]):
        raise ValueError(f"{len(without)} of the clips to continue have no class, which the model is told, first "
                         f"{without[0]}; --unconditional leaves classes out")
    return None, None, requests


def list_requests(config: GeneratorConfig, num_clips: int, labels: Sequence[int] | None = None,
                  texts: Sequence[str] | None = None, dataset: VideoDataset | None = None) -> list[Request]:
    """List the clips to make.

    Args:
        num_clips: how many, at least 1.
        labels: class ids to cycle through; None: all classes, or those of the continued clips.
        texts: prompts to cycle through, for text-conditioned models.
        dataset: whose clips are continued, evenly spread over its list, each several times, and each time otherwise,
            where there are fewer; None: from nothing.

    Raises:
        ValueError: no clips, a label or text that the model cannot take, none where it needs one, or some beside a
            dataset, whose clips have their own.
    """
    if not isinstance(num_clips, Integral):
        raise ValueError(f"num_clips must be a whole number, got {num_clips!r}")
    if num_clips < 1:
        raise ValueError(f"num_clips must be at least 1, got {num_clips}")
    if config.condition == "text" and not texts and dataset is None:
        raise ValueError("this model is conditioned on text: give prompts (--texts)")
    for label in labels or ():
        if config.condition != "label" or not 0 <= label < config.num_condition_ids:
            raise ValueError(f"label {label}: the model takes "
                             + (f"0..{config.num_condition_ids - 1}" if config.condition == "label" else "no labels"))
    if dataset is not None:
        items = [number * len(dataset) // num_clips for number in range(num_clips)]
        samples = [(item, dataset.facts(item)) for item in items]
        return [Request(number, int(sample["label"]), sample["text"], item, sample["path"])
                for number, (item, sample) in enumerate(samples)]
    if config.condition == "label":
        labels = labels or range(config.num_condition_ids)
        return [Request(number, label=labels[number % len(labels)]) for number in range(num_clips)]
    if config.condition == "text" and texts:
        return [Request(number, text=texts[number % len(texts)]) for number in range(num_clips)]
    return [Request(number) for number in range(num_clips)]


def wanted(config: GeneratorConfig, about: About, classes: Sequence[str | int] | None = None,
           prompts: Sequence[str] | None = None) -> tuple[list[int] | None, list[str] | None]:
    """(labels, texts) of classes (names, or ids, also as text) and prompts (None: the names of the classes), for
    `list_requests`; each None where it plays no part. ValueError: a class that the model does not know, classes or
    prompts for a model that takes none, or both; no list."""
    classes, prompts = _as_list("classes", classes), _as_list("prompts", prompts)
    if prompts and config.condition != "text":
        kind = "classes" if config.condition == "label" else "no condition"
        raise ValueError(f"prompts are for models conditioned on text; this one takes {kind}")
    if prompts and classes:
        raise ValueError(f"give classes or prompts, not both; got {classes} and {prompts}")
    if classes and config.condition == "none":
        raise ValueError("this model takes no classes: its clips are unconditional")
    ids = [_class_id(name, about.classes, config) for name in classes] if classes else None
    if config.condition != "text":
        return ids, None
    names = about.classes if ids is None else [about.classes[number] for number in ids]
    return None, prompts or [class_text(name) for name in names] or None


def _as_list(name: str, given: Sequence[T] | None) -> list[T] | None:
    """A list of what may also be an array; a single name would be taken letter by letter."""
    if given is not None and (isinstance(given, str) or not hasattr(given, "__len__")):
        raise ValueError(f"{name} must be a list, got {given!r}; write [{given!r}]")
    return None if given is None else [*getattr(given, "tolist", lambda: given)()]


def class_ids(names: Sequence[str], about: About, config: GeneratorConfig) -> list[int] | None:
    """The model's ids of a data set's classes, by name; None where the model does not know names or takes none.
    ValueError: classes that the model lacks."""
    if config.condition != "label" or not about.classes:
        return None
    if unknown := [name for name in names if name not in about.classes]:
        raise ValueError(f"--data: the model has no class {', '.join(unknown)}; it knows {', '.join(about.classes)} "
                         "(--unconditional leaves classes out)")
    return [about.classes.index(name) for name in names]


def by_name(encode: ConditionEncoder, own: Sequence[int]) -> ConditionEncoder:
    """`encode` for labels of a data set, whose classes are these of the model."""
    ids = torch.tensor(own)
    return lambda batch: encode({**batch, "label": torch.where(batch["label"] < 0, -1, ids[batch["label"]])})


def prompts_of(classes: str, config: GeneratorConfig) -> list[str] | None:
    """Names of a classes.txt as prompts; None for a model of as many labels, which all have their turn without it.
    ValueError: no such file, or a model of other classes."""
    names = read_classes(classes)
    if config.condition != "label":
        return names
    if len(names) != config.num_condition_ids:
        raise ValueError(f"--classes {classes} has {len(names)} classes; this model takes {config.num_condition_ids}")
    return None


def _class_id(name: str | int, names: Sequence[str], config: GeneratorConfig) -> int:
    """Id of a class given by name or number."""
    if isinstance(name, str) and name in names:
        return names.index(name)
    count = config.num_condition_ids if config.condition == "label" else len(names)
    if str(name).isdecimal() and int(name) < count:
        return int(name)
    close = difflib.get_close_matches(str(name), names, 1)
    known = f", or {', '.join(names)}" if names else ""
    raise ValueError(f"class {name}: the model takes 0..{count - 1}{known}"
                     + (f"; did you mean {close[0]!r}?" if close else ""))
