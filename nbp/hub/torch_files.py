"""Torch files, read without running anything from them, and their tensors sorted by the model they belong to.

Kinds: tokenizer files `{"model_state_dict": {"module.<name>": ...}}`; generator files, Lightning checkpoints with
`transformer.<name>` and the tokenizer as `first_stage_model.<name>`, or DeepSpeed conversions that hold less.
"""

import argparse
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor


def read_file(path: str | Path) -> object:
    """Top-level object of a torch file, memory-mapped on the CPU, with no code run from it: tensors, plain Python
    values and `argparse.Namespace`. ValueError: missing, truncated or foreign file, or one that names any other global.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist or is not a file")
    refuse_placeholder(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:     # foreign bytes make the unpickler raise anything
        found = re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", str(error))
        if found:
            raise ValueError(f"{path} is refused: it names {found[1]}, and only tensors, plain values and "
                             "argparse.Namespace are read from a checkpoint") from error
        # Torch's own text advises a way of loading that runs whatever code is in the file.
        found = re.search(r"WeightsUnpickler error: (.*)", str(error))
        reason = found[1] if found else (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is truncated or not a torch checkpoint: {reason}") from error


def refuse_placeholder(path: str | Path) -> None:
    """ValueError: a Git LFS pointer or a web page lies in place of a file of weights; says how to get the file."""
    with open(path, "rb") as file:
        head = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"version https://git-lfs.github.com/"):
        size = Path(path).stat().st_size
        raise ValueError(f"{path} is a Git LFS pointer ({size} bytes of text), not the file that it stands for: run "
                         "`git lfs pull` in the repository that it comes from")
    if head.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise ValueError(f"{path} is a web page, not a file of weights: download the file itself, not its page")


def split_state(content: object, path: str | Path) -> dict[str, dict[str, Tensor]]:
    """Sort the tensors of what `read_file` gave by model: "tokenizer" and/or "generator" -> official name without
    prefix -> tensor. ValueError: no tensors, or tensors that belong to neither; says what was expected."""
    states: dict[str, dict[str, Tensor]] = {"tokenizer": {}, "generator": {}}
    for key in ("model_state_dict", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    other = []
    for name, tensor in content.items() if isinstance(content, dict) else ():
        if not (isinstance(name, str) and torch.is_tensor(tensor)):
            continue
        while name.startswith(("module.", "_forward_module.")):
            name = name.split(".", 1)[1]
        if name.startswith("transformer."):
            states["generator"][name.removeprefix("transformer.")] = tensor
        elif name.startswith(("encoder_layers.", "decoder_layers.", "first_stage_model.")):
            states["tokenizer"][name.removeprefix("first_stage_model.")] = tensor
        else:
            other.append(name)
    if other and all(name.startswith(("model.", "ema.")) for name in other):
        raise ValueError(f"{path} holds the tensors of a training run without its configuration; take its checkpoint: "
                         "python -m nbp.convert checkpoint-to-native RUN/checkpoints/last.ckpt FOLDER")
    states = {kind: state for kind, state in states.items() if state}
    if not states or other:
        found = f"{len(other)} tensors such as {other[0]}" if other else "no tensors"
        raise ValueError(f"{path} is not an official checkpoint: expected tensors encoder_layers.*, decoder_layers.* "
                         f"(tokenizer) or transformer.* and first_stage_model.* (generator), found {found}")
    return states
