"""YAML files and dotted overrides -> checked dataclasses. The only importer of omegaconf, when a file is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nbp.config.checking import AnySection, Section, build_config, check_layer
from nbp.config.runs import GeneratorRun, TokenizerRun
from nbp.system.files import AnyPath, write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

REMOVED = ("pooling_start",)    # fields of earlier runs that only said which weights they began with


def load_run(path: AnyPath, overrides: Iterable[str] = ()) -> TokenizerRun | GeneratorRun:
    """Load a run file: its `kind` field picks the schema. Raises as `load_config`."""
    kind = _read_yaml(path).get("kind")
    schemas: dict[str, type[TokenizerRun] | type[GeneratorRun]] = {"tokenizer": TokenizerRun, "generator": GeneratorRun}
    if kind not in schemas:
        raise ValueError(f"{path}: kind must be tokenizer or generator, got {kind!r}")
    run = load_config(schemas[kind], path, overrides)
    if run.kind != kind:
        raise ValueError(f"{path}: kind must stay {kind}, whose fields this file has, got {run.kind!r}")
    return run


def load_config(schema: type[AnySection], path: AnyPath, overrides: Iterable[str] = ()) -> AnySection:
    """Build a config dataclass from a YAML file, whose `base` entries (relative to it) are merged first, in order, and
    overrides: strings `section.field=value`, or YAML files that are merged in their place. ValueError: unknown field
    (with the nearest known name), wrong type, missing value or unreadable file; names the field and where it is from.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    layers: list[tuple[AnyPath, DictConfig]] = [(path, _read_yaml(path))]
    for item in overrides:
        if "=" not in item and item.endswith((".yaml", ".yml")):
            layers.append((item, _read_yaml(item)))
        elif "=" not in item:
            raise ValueError(f"override {item!r} is not of the form section.field=value, nor a YAML file")
        else:
            layers.append((f"command line {item!r}", _dotted(item)))
    for source, layer in layers:
        check_layer(schema, _plain(layer), source)
    try:
        values = _plain(OmegaConf.merge(*(layer for _, layer in layers)), resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {error.full_key}: {str(error).splitlines()[0]}") from error
    return build_config(schema, values, path, advice=": set it in the file or as NAME=VALUE")


def text_field(name: str, text: str) -> str:
    """NAME=TEXT as a command takes it, in quotes where YAML would make a number or something else of the text."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        plain = OmegaConf.from_dotlist([f"{name}={text}"])
        same = OmegaConf.select(plain, name) == text
    except (YAMLError, ValueError):
        same = False
    return f"{name}={text if same else json.dumps(text)}"


def config_digest(path: AnyPath) -> str:
    """Hex sha256 of what a YAML file says with its bases merged, without comments and order. ValueError: unreadable."""
    from omegaconf import OmegaConf

    return hashlib.sha256(OmegaConf.to_yaml(_read_yaml(path), sort_keys=True).encode()).hexdigest()


def to_dict(config: Section) -> dict[str, Any]:
    """Nested plain dict of a config dataclass."""
    return dataclasses.asdict(config)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of a nested dict by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def save_config(config: Section, path: AnyPath) -> None:
    """Write the resolved config as YAML, atomically."""
    from omegaconf import OmegaConf

    write_text(path, OmegaConf.to_yaml(OmegaConf.create(to_dict(config))))


def _read_yaml(path: AnyPath, readers: tuple[Path, ...] = ()) -> DictConfig:
    """A YAML file with its bases merged; `readers` are the files that have it as a base."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = Path(path)
    if path.resolve() in readers:
        raise ValueError(f"config file {path} is a base of itself, by {readers[-1]}")
    if not path.is_file():
        raise ValueError(f"config file {path} does not exist")
    try:
        layer = OmegaConf.load(path)
    except Exception as error:     # whatever the YAML parser raises
        raise ValueError(f"config file {path} is not valid YAML: {error}") from error
    if not OmegaConf.is_dict(layer):
        raise ValueError(f"config file {path} must hold a mapping of fields")
    layer = cast("DictConfig", layer)
    for name in REMOVED:        # a finished or stopped run's file is still read
        if layer.pop(name, False):
            warnings.warn(f"{path}: {name} is no longer offered and ignored; new runs start from random weights")
    bases = layer.pop("base", None)
    bases = [] if bases is None else bases
    if not OmegaConf.is_list(bases) and bases != [] or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"config file {path}: base must be a list of files, as [a.yaml], got {bases!r}")
    readers += (path.resolve(),)
    try:
        return cast("DictConfig", OmegaConf.merge(*[_read_yaml(path.parent / base, readers) for base in bases], layer))
    except OmegaConfBaseException as error:     # a list in one, named fields in the other
        raise ValueError(f"config file {path} does not fit its base {', '.join(bases)}: {error.full_key or 'a field'}: "
                         f"{str(error).splitlines()[0]}") from error


def _dotted(item: str) -> DictConfig:
    """An override `section.field=value`, whose value is YAML. ValueError: it is not."""
    from omegaconf import OmegaConf

    try:
        return OmegaConf.from_dotlist([item])
    except Exception as error:     # whatever the YAML parser raises
        raise ValueError(f"command line {item!r}: the value is not valid YAML, as number, [1, 2] or null: "
                         f"{' '.join(str(error).split())}") from error


def _plain(layer: object, resolve: bool = False) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return cast(dict[str, Any], OmegaConf.to_container(layer, resolve=resolve))
