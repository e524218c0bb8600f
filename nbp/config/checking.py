"""Nested dicts -> checked dataclasses: what run files, the command line and `config.json` have in common."""

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

MISSING: Any = "???"   # default of a field that must be given; omegaconf's mark for it


@dataclass
class Section:
    """Base of every config dataclass. Its fields are numbers, texts, lists and other sections, or None."""

    def check(self) -> None:
        """ValueError: values out of range or that do not go together; names field, value and what is accepted."""


AnySection = TypeVar("AnySection", bound=Section)


def build_config(schema: type[AnySection], values: Mapping[str, Any], source: object, advice: str = "") -> AnySection:
    """Dataclass of a nested dict, with every section built and checked; messages name `source`, that about missing
    fields ends in `advice`. ValueError: unknown field (with the nearest known name), wrong type, missing value, or what
    `check` refuses."""
    missing: list[str] = []
    config = _section(schema, values, source, "", missing)
    if missing:
        raise ValueError(f"{source}: no value for {', '.join(sorted(missing))}{advice}")
    try:
        _check_all(config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return config


def check_layer(schema: type[Section], values: Mapping[str, Any], source: object) -> None:
    """ValueError, as `build_config` for this layer: unknown names or wrong types in values that others complete."""
    _section(schema, values, source, "", None)


def _section(schema: type[AnySection], values: Mapping[str, Any], source: object, prefix: str,
             missing: list[str] | None) -> AnySection:
    """Section without `check`; names of missing fields are added to the list, None: anything may be missing."""
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f", did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(sorted(fields))}"
            raise ValueError(f"{source}: unknown field {prefix}{name}{hint}")
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values and values[name] != MISSING:
            arguments[name] = _value(field.type, values[name], source, prefix + name, missing)
        elif isinstance(field.type, type) and issubclass(field.type, Section):
            arguments[name] = _section(field.type, {}, source, f"{prefix}{name}.", missing)
        elif field.default == MISSING and missing is not None:
            missing.append(prefix + name)
    return schema(**arguments)


def _value(expected: object, value: object, source: object, name: str, missing: list[str] | None) -> object:
    """`value` as the field's type; an integer will do for a float and a number for a text, a bool for neither."""
    if missing is None and isinstance(value, str) and "${" in value:
        return value                                   # omegaconf's reference to another field, not yet resolved
    union = typing.get_origin(expected) in (types.UnionType, typing.Union)
    kinds = [kind for kind in typing.get_args(expected) if kind is not types.NoneType] if union else [expected]
    optional = union and types.NoneType in typing.get_args(expected)
    if value is None and optional:
        return None
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    kind = next((kind for kind in kinds if (typing.get_origin(kind) is list) == is_list), kinds[0])
    if isinstance(kind, type) and issubclass(kind, Section) and isinstance(value, Mapping):
        return _section(kind, value, source, f"{name}.", missing)
    if typing.get_origin(kind) is list and isinstance(value, Sequence) and is_list:
        return [_value(typing.get_args(kind)[0], item, source, f"{name}[{place}]", missing)
                for place, item in enumerate(value)]
    if kind in (float, str) and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if kind is float else str(value)
    if kind in (int, bool, str) and type(value) is kind:
        return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value
    accepted = " or ".join([*map(_words, kinds), *(["null"] if optional else [])])
    raise ValueError(f"{source}: {name} must be {accepted}, got {value!r}")


def _words(kind: object) -> str:
    if typing.get_origin(kind) is list:
        return "a list"
    words: dict[object, str] = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
    return words.get(kind, "a section with fields")


def _check_all(config: Section) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Section):
                _check_all(item)
    config.check()


def check_least(least: int, section: str, config: Section, *names: str) -> None:
    """ValueError: one of the fields, called `section` and its name, is below `least` or not finite; None is fine."""
    for name in names:
        if (value := getattr(config, name)) is not None and not (value >= least and math.isfinite(value)):
            raise ValueError(f"{section}{name} must be at least {least}, got {value}")


def check_one_of(name: str, value: str, accepted: Sequence[str]) -> None:
    """ValueError: `value` of the field `name` is none of the accepted ones."""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")
