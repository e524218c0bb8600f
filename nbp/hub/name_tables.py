"""Names of the official release's tensors and ours: one table per kind of model, used in both directions.

A table maps each native name, or the prefix of several, to the official names whose tensors it holds, joined along
axis 0. Source: github.com/RenShuhuai-Andy/NBP at 421e936.
"""

from pathlib import Path

import torch
from torch import Tensor

from nbp.config import GeneratorConfig, TokenizerConfig

NameTable = dict[str, tuple[str, ...]]


def name_table(config: TokenizerConfig | GeneratorConfig) -> NameTable:
    return tokenizer_table(config) if isinstance(config, TokenizerConfig) else generator_table(config)


def tokenizer_table(config: TokenizerConfig) -> NameTable:
    """Native name -> (official name,) of every module of a tokenizer; entries are prefixes that end in a dot."""
    return {**_coder_table("encoder", config.num_res_blocks, "downsamples", "conv.", slots=1),
            **_coder_table("decoder", config.num_res_blocks[::-1], "upsamples", "conv.conv.", slots=2)}


def _coder_table(side: str, num_units: list[int], resample: str, conv: str, slots: int) -> NameTable:
    """The official layers are numbered through; an upsampling takes two numbers, the second without tensors."""
    table = {f"{side}.conv_in.": f"{side}_layers.0."}
    index = 1
    for stage, count in enumerate(num_units):
        for unit in range(count):
            table[f"{side}.stages.{stage}.{unit}.layers."] = f"{side}_layers.{index}.fn."
            table[f"{side}.stages.{stage}.{unit}.shortcut."] = f"{side}_layers.{index}.residual_fn.0.conv."
            index += 1
        if stage < len(num_units) - 1:
            table[f"{side}.{resample}.{stage}.{conv}"] = f"{side}_layers.{index}.conv."
            index += slots
    for offset in range(3):
        table[f"{side}.head.{offset}."] = f"{side}_layers.{index + offset}."
    return {native: (official,) for native, official in table.items()}


def generator_table(config: GeneratorConfig) -> NameTable:
    """Native name -> official names of every module of a generator; entries are names or prefixes."""
    table: NameTable = {
        "token_embedding.": ("tok_emb.",), "uncond_embedding": ("uncond_embedding",),
        "transformer.position_embedding": ("pos_emb",), "transformer.norm.": ("ln_f.",), "head.": ("head.",)}
    for i in range(config.num_layers):
        native, official = f"transformer.layers.{i}.", f"blocks.{i}."
        table |= {
            native + "norm1.": (official + "ln1.",),
            native + "attention.qkv.": tuple(f"{official}attn.{part}." for part in ("query", "key", "value")),
            native + "attention.proj.": (official + "attn.proj.",),
            native + "norm2.": (official + "ln2.",),
            native + "mlp.": (official + "mlp.",),
        }
    return table


def to_native(state: dict[str, Tensor], table: NameTable, path: str | Path) -> dict[str, Tensor]:
    """Rename official tensors, joining those that a native one holds together. ValueError: unknown tensors."""
    native: dict[str, Tensor] = {}
    taken: set[str] = set()
    for new, olds in table.items():
        for name in [n for n in state if n.startswith(olds[0])]:
            parts = [old + name.removeprefix(olds[0]) for old in olds]
            missing = [part for part in parts if part not in state]
            if missing:
                raise ValueError(f"{path}: tensor {missing[0]} is missing")
            tensors = [state[part] for part in parts]
            # A tensor of its own stays as it is, mapped from the file.
            native[new + name.removeprefix(olds[0])] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            taken.update(parts)
    unknown = sorted(set(state) - taken)
    if unknown:
        raise ValueError(f"{path}: {len(unknown)} unexpected tensors, such as {unknown[0]}")
    return native


def to_official(state: dict[str, Tensor], table: NameTable) -> dict[str, Tensor]:
    """Invert `to_native`; every tensor of a model built from the table's config is known to it."""
    official: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = max((prefix for prefix in table if name.startswith(prefix)), key=len)
        for old, part in zip(table[new], tensor.chunk(len(table[new]))):
            official[old + name.removeprefix(new)] = part
    return official
