"""The model inside a checkpoint of a training run: Lightning's files, and what is gathered from DeepSpeed's folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from nbp.config import GeneratorConfig, TokenizerConfig, build_config

CONFIG_CLASSES: dict[str, type[GeneratorConfig] | type[TokenizerConfig]] = {
    "tokenizer": TokenizerConfig, "generator": GeneratorConfig}


class StoredModel(NamedTuple):
    """A model as it is stored: "tokenizer" or "generator", config, and name -> tensor."""

    kind: str
    config: GeneratorConfig | TokenizerConfig
    state: dict[str, Tensor]


def stored_run(content: object) -> dict[str, Any] | None:
    """Configuration of the run that wrote a checkpoint, as a nested dict; None for any other file."""
    stored = content.get("hyper_parameters") if isinstance(content, dict) else None
    return stored.get("run") if isinstance(stored, dict) else None


def model_of_run(run: Mapping[str, Any], state: Mapping[str, Tensor], source: str | Path) -> StoredModel:
    """The model that a run (from `stored_run`) trains: its moving average where it has one. ValueError: a configuration
    that does not fit this code."""
    prefix = "ema." if any(name.startswith("ema.") for name in state) else "model."
    native = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return StoredModel(run["kind"], build_config(CONFIG_CLASSES[run["kind"]], run["model"], source), native)
