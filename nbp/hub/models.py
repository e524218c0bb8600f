"""Models as files: native folders, `model.safetensors` + `config.json`, and strict loading of any source.

A folder holds exactly one model and nothing that is executed on reading; it can be uploaded to a model hub as
it is. Files are replaced whole, weights first, so that an interrupted save never leaves a half-written file.
Which class a model has is the caller's business: `build` and `empty_model` take a function that makes it.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from nbp.config import GeneratorConfig, TokenizerConfig, build_config
from nbp.hub import official
from nbp.hub.locating import CONFIG, WEIGHTS, locate
from nbp.hub.run_checkpoints import CONFIG_CLASSES, StoredModel, model_of_run, stored_run
from nbp.hub.torch_files import read_file, refuse_placeholder
from nbp.system.distributed import check_device
from nbp.system.files import atomic_path, read_json, write_json

FORMAT_VERSION = 1
HALF = (torch.float16, torch.bfloat16)  # how weights may be kept, at half the size

State = dict[str, Tensor]
ModelConfig = GeneratorConfig | TokenizerConfig
Model = TypeVar("Model", bound=nn.Module)


def open_model(path: str | Path, kind: str, config: ModelConfig | None = None) -> StoredModel:
    """A model of `kind` "tokenizer" or "generator", whatever it is stored as: what `locate` takes, or a checkpoint file
    of a training run. `config` replaces what an official file says of itself. ValueError: no such model there, one
    that cannot be read, or a `config` for another than an official file; names the file."""
    found = locate(path, kind)
    content = read_file(found) if found.is_file() else None
    run = stored_run(content) if content is not None else None
    if config is not None and (content is None or run is not None):
        raise ValueError(f"config= is for official files; {path} knows its own")
    if content is None:
        return load_model(found, kind)
    if run is not None and run["kind"] != kind:
        raise ValueError(f"{path} is a checkpoint of a {run['kind']} run, expected a {kind}")
    model = (official.native_model(content, kind, found, config) if run is None else
             model_of_run(run, cast(dict[str, Any], content)["state_dict"], path))
    return model._replace(state=in_float32(model.state))


def in_float32(state: Mapping[str, Tensor]) -> State:
    """Tensors as they are used: those that are kept in 16 bits in float32."""
    return {name: tensor.float() if tensor.dtype in HALF else tensor for name, tensor in state.items()}


def save_model(folder: str | Path, kind: str, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Write a native model folder of `kind` "tokenizer" or "generator", which is created if missing."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_path(Path(folder) / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(Path(folder) / CONFIG, {"kind": kind, "format_version": FORMAT_VERSION,
                                       "config": dataclasses.asdict(config)})


def load_model(path: str | Path, kind: str | None = None) -> StoredModel:
    """Read a native model folder or hub id, its weights memory-mapped; those kept in 16 bits are given in float32.
    ValueError, which names the file: no such folder, another kind (None: any) or version, unknown or missing config
    fields, or damage."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = locate(path, kind)
    if folder.is_file():
        raise ValueError(f"{path} is not a model folder (expected {CONFIG} and {WEIGHTS} in it)")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a model folder: {name} is missing (expected {CONFIG} and {WEIGHTS})"
                             + _advice(folder))
    content = read_json(folder / CONFIG)
    if not isinstance(content, dict) or not {"kind", "format_version", "config"} <= set(content):
        raise ValueError(f"{folder / CONFIG} must hold kind, format_version and config")
    if content["kind"] not in ((kind,) if kind else CONFIG_CLASSES):
        raise ValueError(f"{folder} holds a {content['kind']}, expected a {kind or ' or '.join(CONFIG_CLASSES)}")
    if content["format_version"] != FORMAT_VERSION:
        raise ValueError(f"{folder / CONFIG} has format_version {content['format_version']}, "
                         f"this code reads {FORMAT_VERSION}")
    config = build_config(CONFIG_CLASSES[content["kind"]], content["config"], folder / CONFIG)
    refuse_placeholder(folder / WEIGHTS)
    try:
        return StoredModel(content["kind"], config, in_float32(load_file(folder / WEIGHTS)))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS} is truncated or not a safetensors file: {error}") from error


def _advice(folder: Path) -> str:
    """What to do with a folder of a training run."""
    if (folder / "model" / CONFIG).is_file():
        return f"; its model is {folder / 'model'}"
    parts = [part for part in CONFIG_CLASSES if (folder / part / CONFIG).is_file()]
    if parts:
        missing = " or ".join(part for part in CONFIG_CLASSES if part not in parts)
        return "; it holds " + " and ".join(f"a {part}, {folder / part}" for part in parts) + (
            f", but no {missing}" if missing else "")
    if (folder / "latest").is_file():
        return f"; it is a DeepSpeed checkpoint: python -m nbp.convert checkpoint-to-native {folder} FOLDER"
    return ""


def build(make: Callable[[], Model], state: Mapping[str, Tensor], source: str | Path,
          device: str | torch.device = "cpu") -> Model:
    """Model that takes over these tensors, in eval mode on `device`, without a second copy in memory. ValueError: they
    are not exactly the model's, with `source`, names and counts; or a GPU is asked for where there is none."""
    check_device(device)
    model = empty_model(make)
    check_state_dict(model, state, source)
    model.load_state_dict(state, assign=True)
    return model.to(device).eval()


def empty_model(make: Callable[[], Model]) -> Model:
    """Model whose parameters are on the meta device and whose buffers are computed, as the constructor does."""
    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    # What a hook returns is taken instead; torch's annotation does not know it.
    hook = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]
    try:
        return make()
    finally:
        hook.remove()


def check_state_dict(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """ValueError: missing, unexpected or wrongly shaped tensors, or ones that are neither 16-bit nor float32 where the
    model's are floats, with names, counts and `source`."""
    own = model.state_dict()
    expected = {name: f"{tuple(tensor.shape)}" for name, tensor in own.items()}
    found = {name: f"{tuple(tensor.shape)}{_other_type(tensor, own.get(name))}" for name, tensor in state.items()}
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


def _other_type(tensor: Tensor, own: Tensor | None) -> str:
    """The tensor's type in words where it cannot stand for the model's `own`, else nothing."""
    accepted = (*HALF, torch.float32) if own is not None and own.is_floating_point() else (getattr(own, "dtype", None),)
    return "" if own is None or tensor.dtype in accepted else f" of {tensor.dtype}"


def count(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """(number of tensors, number of parameters), buffers included."""
    return len(state), sum(tensor.numel() for tensor in state.values())


def model_hash(model: nn.Module) -> str:
    """Hex sha256 over the names, dtypes, shapes and bytes of a model's tensors; the same from whatever file it came."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
