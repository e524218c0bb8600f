"""YAML files and dotted overrides -> checked dataclasses. The only importer of omegaconf, when a file is read."""

import dataclasses
import difflib
import hashlib
import typing
from pathlib import Path

from nbp.config.runs import GeneratorRun, TokenizerRun


def load_run(path, overrides=()):
    """Load a run file: its `kind` field picks the schema. Raises as `load_config`."""
    kind = _read_yaml(path).get("kind")
    schemas = {"tokenizer": TokenizerRun, "generator": GeneratorRun}
    if kind not in schemas:
        raise ValueError(f"{path}: kind must be tokenizer or generator, got {kind!r}")
    return load_config(schemas[kind], path, overrides)


def load_config(schema, path=None, overrides=(), values=None):
    """Build a `schema` dataclass from a YAML file and dotted overrides.

    Args:
        schema: dataclass type.
        path: YAML file or None; its `base` entries (relative to the file) are merged first, in order.
        overrides: strings `section.field=value`, or YAML files that are merged in their place.
        values: nested dict merged between file and overrides.

    Returns:
        An instance of `schema`, with every nested dataclass built.

    Raises:
        ValueError: unknown field (with the nearest known name), wrong type, missing value or unreadable file;
            the message names the field and where it came from.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(schema)
    layers = [(path, _read_yaml(path))] if path is not None else []
    if values is not None:
        layers.append(("values", OmegaConf.create(values)))
    for item in overrides:
        if "=" not in item and item.endswith((".yaml", ".yml")):
            layers.append((item, _read_yaml(item)))
            continue
        if "=" not in item:
            raise ValueError(f"override {item!r} is not of the form section.field=value, nor a YAML file")
        layers.append((f"command line {item!r}", OmegaConf.from_dotlist([item])))
    for source, layer in layers:
        _check_names(schema, OmegaConf.to_container(layer), source)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise ValueError(f"{source}: {error.full_key}: {_first_line(error)}") from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ValueError(f"{path}: no value for {', '.join(missing)}: set it in the file or as NAME=VALUE")
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {_first_line(error)}") from error
    _check_all(config)
    return config


def config_digest(path):
    """Hex sha256 of what a YAML file says with its bases merged, whatever its comments and order of fields.

    Raises:
        ValueError: an unreadable file.
    """
    from omegaconf import OmegaConf

    return hashlib.sha256(OmegaConf.to_yaml(_read_yaml(path), sort_keys=True).encode()).hexdigest()


def to_dict(config):
    """Nested plain dict of a config dataclass."""
    return dataclasses.asdict(config)


def save_config(config, path):
    """Write the resolved config as YAML, atomically."""
    from omegaconf import OmegaConf

    from nbp.system.files import write_text

    write_text(path, OmegaConf.to_yaml(OmegaConf.create(to_dict(config))))


def _read_yaml(path):
    from omegaconf import OmegaConf

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config file {path} does not exist")
    try:
        layer = OmegaConf.load(path)
    except Exception as error:
        raise ValueError(f"config file {path} is not valid YAML: {error}") from error
    if not OmegaConf.is_dict(layer):
        raise ValueError(f"config file {path} must hold a mapping of fields")
    bases = layer.pop("base", [])
    return OmegaConf.merge(*[_read_yaml(path.parent / base) for base in bases], layer)


def _check_names(schema, values, source, prefix=""):
    """Reject unknown names with a suggestion, in optional sections and lists of sections too; OmegaConf's has none."""
    fields = {f.name: f.type for f in dataclasses.fields(schema)}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f", did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(sorted(fields))}"
            raise ValueError(f"{source}: unknown field {prefix}{name}{hint}")
        inner = next(filter(dataclasses.is_dataclass, (fields[name], *typing.get_args(fields[name]))), None)
        if inner is not None and isinstance(value, dict):
            _check_names(inner, value, source, f"{prefix}{name}.")
        if inner is not None and isinstance(value, list):
            for number, entry in enumerate(value):
                if isinstance(entry, dict):
                    _check_names(inner, entry, source, f"{prefix}{name}[{number}].")


def _check_all(config):
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            _check_all(value)
    if hasattr(config, "check"):
        config.check()


def _first_line(error):
    return str(error).splitlines()[0]
