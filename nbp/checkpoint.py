"""Native model folders, `model.safetensors` + `config.json`, and strict loading of any state dict.

A folder holds exactly one model and nothing that is executed on reading; it can be uploaded to a model hub as
it is. Files are replaced whole, weights first, so that an interrupted save never leaves a half-written file.
"""

import dataclasses
import hashlib
import typing
from pathlib import Path

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from nbp.config import GeneratorConfig, TokenizerConfig
from nbp.files import atomic_path, read_json, write_json

FORMAT_VERSION = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
KINDS = ("tokenizer", "generator")
HALF = (torch.float16, torch.bfloat16)    # how weights may be kept, at half the size
FILE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")   # a name with one is a file's, no model hub id


def save_model(folder, kind, config, state_dict):
    """Write a native model folder.

    Args:
        folder: created if missing.
        kind: "tokenizer" or "generator".
        config: its config dataclass.
        state_dict: name -> tensor.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    with atomic_path(Path(folder) / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(Path(folder) / CONFIG, {"kind": kind, "format_version": FORMAT_VERSION,
                                       "config": dataclasses.asdict(config)})


def load_model(path, kind=None):
    """Read a native model folder, its weights memory-mapped; those kept in 16 bits are given in float32.

    Args:
        path: folder, or a model hub id such as "name/model" where huggingface_hub is online.
        kind: the kind that is expected; None for any.

    Returns:
        (kind, config, dict of name -> tensor).

    Raises:
        ValueError: no such folder, another kind or version, unknown or missing config fields, or a damaged file;
            the message names the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = _folder(path)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a model folder: {name} is missing (expected {CONFIG} and {WEIGHTS})")
    content = read_json(folder / CONFIG)
    if not isinstance(content, dict) or not {"kind", "format_version", "config"} <= set(content):
        raise ValueError(f"{folder / CONFIG} must hold kind, format_version and config")
    if content["kind"] not in ((kind,) if kind else KINDS):
        raise ValueError(f"{folder} holds a {content['kind']}, expected a {kind or ' or '.join(KINDS)}")
    if content["format_version"] != FORMAT_VERSION:
        raise ValueError(f"{folder / CONFIG} has format_version {content['format_version']}, "
                         f"this code reads {FORMAT_VERSION}")
    try:
        config = read_config(content["kind"], content["config"], folder / CONFIG)
        state = {name: tensor.float() if tensor.dtype in HALF else tensor
                 for name, tensor in load_file(folder / WEIGHTS).items()}
        return content["kind"], config, state
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS} is truncated or not a safetensors file: {error}") from error


def save_pretrained(model, kind, folder):
    """Write a model as a native folder."""
    save_model(folder, kind, model.config, model.state_dict())


def load_pretrained(path, kind, device="cpu", **arguments):
    """Model of a native folder, in eval mode.

    Args:
        path, kind: as for `load_model`.
        device: where its tensors go.
        arguments: further constructor arguments of the model.

    Raises:
        ValueError: from `load_model` and `build`.
    """
    _, config, state_dict = load_model(path, kind)
    return build(kind, config, state_dict, path, device, **arguments)


def build(kind, config, state_dict, source, device="cpu", **arguments):
    """Model that takes over these tensors, in eval mode on `device`, without a second copy in memory.

    Raises:
        ValueError: the tensors are not exactly the model's; the message holds `source`, names and counts. Or a GPU
            is asked for where there is none.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f'device {device!r} is not available here: pass device="cpu"')
    model = empty_model(kind, config, **arguments)
    check_state_dict(model, state_dict, source)
    model.load_state_dict(state_dict, assign=True)
    return model.to(device).eval()


def empty_model(kind, config, **arguments):
    """Model whose parameters are on the meta device and whose buffers are computed, as the constructor does."""
    hook = register_module_parameter_registration_hook(
        lambda module, name, parameter: torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad))
    try:
        return _classes(kind)[0](config, **arguments)
    finally:
        hook.remove()


def check_state_dict(model, state_dict, source):
    """Refuse weights that are not exactly the model's.

    Raises:
        ValueError: missing, unexpected or wrongly shaped tensors, with names, counts and `source`.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    problems = []
    for label, names in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if names:
            problems.append(f"{len(names)} {label} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})")
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            problems.append(f"{name} is {found[name]}, expected {expected[name]}")
            break
    if problems:
        raise ValueError(f"{source}: weights of {len(found)} tensors do not fit a model of {len(expected)}: "
                         + "; ".join(problems))


def count(state_dict):
    """(number of tensors, number of parameters), buffers included."""
    return len(state_dict), sum(tensor.numel() for tensor in state_dict.values())


def model_hash(model):
    """Hex sha256 over the names, dtypes, shapes and bytes of a model's tensors; the same from whatever file it came."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _classes(kind):
    if kind == "tokenizer":
        from nbp.tokenizer.model import Tokenizer

        return Tokenizer, TokenizerConfig
    from nbp.generator.model import Generator

    return Generator, GeneratorConfig


def _folder(path):
    folder = Path(path)
    if folder.is_dir():
        return folder
    parts = str(path).split("/")
    if folder.suffix in FILE_SUFFIXES and not folder.exists():
        raise ValueError(f"{path} does not exist")
    if folder.exists() or len(parts) != 2 or not all(parts) or str(path).startswith("."):
        raise ValueError(f"{path} is not a model folder (expected {CONFIG} and {WEIGHTS} in it)")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(str(path), allow_patterns=[WEIGHTS, CONFIG]))
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"{path} is neither a model folder nor a model hub id that can be read: {error}") from error


def read_config(kind, values, source):
    """Config dataclass of a model from a dict.

    Args:
        kind: "tokenizer" or "generator".
        values: its fields.
        source: names them in errors.

    Raises:
        ValueError: unknown or missing fields, wrong types or values.
    """
    config_class = _classes(kind)[1]
    names = {field.name for field in dataclasses.fields(config_class)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise ValueError(f"{source}: unknown config fields {', '.join(unknown)}; known: {', '.join(sorted(names))}")
    config = config_class(**values)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == "???":
            raise ValueError(f"{source}: config field {field.name} is missing")
        if not _has_type(value, field.type):
            raise ValueError(f"{source}: config field {field.name} must be {field.type}, got {value!r}")
    try:
        config.check()
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return config


def _has_type(value, expected):
    """Whether a JSON value has a dataclass field's type; an int will do for a float, a bool never for an int."""
    origin, inner = typing.get_origin(expected), typing.get_args(expected)
    if origin is list:
        return isinstance(value, list) and all(_has_type(item, inner[0]) for item in value)
    if origin is typing.Union:
        return any(_has_type(value, option) for option in inner)
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, (int, float) if expected is float else expected)
