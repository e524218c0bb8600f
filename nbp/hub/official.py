"""The official release's files: safe reading, one name table per kind of checkpoint, configs from their contents.

Kinds: tokenizer files `{"model_state_dict": {"module.<name>": ...}}`; generator files, Lightning checkpoints with
`transformer.<name>` and the tokenizer as `first_stage_model.<name>`, or DeepSpeed conversions that hold less.
A table maps each native name to the official names whose tensors, joined along axis 0, it holds.
Source: github.com/RenShuhuai-Andy/NBP at 421e936.
"""

import argparse
import math
import re
import zipfile
from pathlib import Path

import torch

from nbp.config import GeneratorConfig, TokenizerConfig

TOKENIZER_CONFIG = dict(widths=[128, 256, 256, 512], num_res_blocks=[4, 4, 4, 8],
                        strides=[[1, 2, 2], [2, 2, 2], [2, 2, 2]], fsq_levels=[8, 8, 8, 5, 5, 5])
TEXT_VOCABULARY = 32000     # LLaMA SentencePiece
TEXT_PAD = 2                # its end-of-sentence id fills up the condition


# ---- reading


def read_file(path):
    """Read a torch file memory-mapped, with no code run from it.

    Args:
        path: file that may hold tensors, plain Python values and `argparse.Namespace`.

    Returns:
        Its top-level object, on CPU.

    Raises:
        ValueError: missing, truncated or foreign file, or one that names any other global; the message says which.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist or is not a file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:     # foreign bytes make the unpickler raise anything
        found = re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", str(error))
        if found:
            raise ValueError(f"{path} is refused: it names {found[1]}, and only tensors, plain values and "
                             "argparse.Namespace are read from a checkpoint") from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is truncated or not a torch checkpoint: {reason}") from error


def split_state(content, path):
    """Sort the tensors of a file by the model they belong to.

    Args:
        content: what `read_file` gave.
        path: named in errors.

    Returns:
        dict with "tokenizer" and/or "generator": official name without prefix -> tensor.

    Raises:
        ValueError: no tensors, or tensors that belong to neither; the message says what was expected.
    """
    states = {"tokenizer": {}, "generator": {}}
    other = []
    for name, tensor in _tensors(content).items():
        while name.startswith(("module.", "_forward_module.")):
            name = name.split(".", 1)[1]
        if name.startswith("transformer."):
            states["generator"][name.removeprefix("transformer.")] = tensor
        elif name.startswith(("encoder_layers.", "decoder_layers.", "first_stage_model.")):
            states["tokenizer"][name.removeprefix("first_stage_model.")] = tensor
        else:
            other.append(name)
    states = {kind: state for kind, state in states.items() if state}
    if not states or other:
        found = f"{len(other)} tensors such as {other[0]}" if other else "no tensors"
        raise ValueError(f"{path} is not an official checkpoint: expected tensors encoder_layers.*, decoder_layers.* "
                         f"(tokenizer) or transformer.* and first_stage_model.* (generator), found {found}")
    return states


def _tensors(content):
    for key in ("model_state_dict", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        return {}
    return {name: value for name, value in content.items() if isinstance(name, str) and torch.is_tensor(value)}


# ---- name tables


def tokenizer_table(config):
    """Native name -> (official name,) of every module of a tokenizer; entries are prefixes that end in a dot."""
    return {**_coder_table("encoder", config.num_res_blocks, "downsamples", "conv.", slots=1),
            **_coder_table("decoder", config.num_res_blocks[::-1], "upsamples", "conv.conv.", slots=2)}


def _coder_table(side, num_units, resample, conv, slots):
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


def generator_table(config):
    """Native name -> official names of every module of a generator; entries are names or prefixes."""
    table = {"token_embedding.": ("tok_emb.",), "uncond_embedding": ("uncond_embedding",),
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


def to_native(state, table, path):
    """Rename official tensors, joining those that a native one holds together.

    Raises:
        ValueError: tensors that the table does not know.
    """
    native, taken = {}, set()
    for new, olds in table.items():
        for name in [n for n in state if n.startswith(olds[0])]:
            parts = [old + name.removeprefix(olds[0]) for old in olds]
            missing = [part for part in parts if part not in state]
            if missing:
                raise ValueError(f"{path}: tensor {missing[0]} is missing")
            native[new + name.removeprefix(olds[0])] = _join([state[part] for part in parts])
            taken.update(parts)
    unknown = sorted(set(state) - taken)
    if unknown:
        raise ValueError(f"{path}: {len(unknown)} unexpected tensors, such as {unknown[0]}")
    return native


def to_official(state, table):
    """Invert `to_native`; every tensor of a model built from the table's config is known to it."""
    official = {}
    for name, tensor in state.items():
        new = max((prefix for prefix in table if name.startswith(prefix)), key=len)
        for old, part in zip(table[new], tensor.chunk(len(table[new]))):
            official[old + name.removeprefix(new)] = part
    return official


def _join(parts):
    return parts[0] if len(parts) == 1 else torch.cat(parts)


# ---- configs


def native_model(content, state, kind, path, config=None):
    """Config and native tensors of one model of an official file.

    Args:
        content: what `read_file` gave.
        state: its part from `split_state`.
        kind: "tokenizer" or "generator".
        path: named in errors.
        config: replaces what the file says of itself.

    Returns:
        (config, dict of native name -> tensor).

    Raises:
        ValueError: from `generator_config` and `to_native`.
    """
    if kind == "tokenizer":
        config = config or tokenizer_config()
        return config, to_native(state, tokenizer_table(config), path)
    config = config or generator_config(state, content.get("hyper_parameters"), path)
    return config, to_native(state, generator_table(config), path)


def tokenizer_config():
    """Config of the released tokenizers."""
    return TokenizerConfig(**TOKENIZER_CONFIG)


def generator_config(state, hyper_parameters, path):
    """Config of an official generator, from the shapes of its tensors and its stored arguments.

    Args:
        state: official name -> tensor, without prefix.
        hyper_parameters: the checkpoint's `hyper_parameters`; without them (DeepSpeed conversions) the shapes
            must be those of a released model.
        path: named in errors.

    Raises:
        ValueError: a file without hyper-parameters whose architecture is not a released one, a feature that the
            released models do not have, missing tensors or arguments, or arguments that contradict the tensors.
    """
    if missing := [name for name in ("tok_emb.weight", "pos_emb", "uncond_embedding") if name not in state]:
        raise ValueError(f"{path}: tensor {missing[0]} is missing")
    rows, width = state["tok_emb.weight"].shape
    args = _arguments(state, hyper_parameters, path)
    block, text = args["token_number_per_step"], args["cond_stage_key"] == "text"
    hybrid, begin = bool(args["hybrid"]), bool(args["starts_with_bov"])
    if args["unconditional"]:
        condition, num_ids = "none", 0
    else:
        condition, num_ids = ("text", TEXT_VOCABULARY) if text else ("label", args["class_cond_dim"])
    special = block if hybrid else int(condition != "none")
    shift = block if hybrid else int(begin)
    pad = TEXT_PAD + 1 - shift          # what the official mask compares unshifted ids with
    config = GeneratorConfig(
        num_layers=_num_layers(state), num_heads=args["n_head"], width=width, num_codes=rows - num_ids - special,
        grid=_grid(args, block), block_shape=[1, 1, block],
        condition=condition, start="hybrid" if hybrid else "plain", begin_token=begin,
        num_condition_ids=num_ids, condition_len=len(state["uncond_embedding"]) if num_ids else 0,
        pad_token=pad if text and num_ids and pad >= 0 else None,
        max_seq_len=state["pos_emb"].shape[1], dropout=args["transformer_dropout"], condition_dropout=0.0,
        full_head=True, spare_id=condition != "none" and not begin, clamp_samples=True, multinomial=True,
        pad_visibility="causal" if hybrid else "decoding")
    try:
        config.check()
    except ValueError as error:
        raise ValueError(f"{path}: the stored arguments do not fit the tensors: {error}") from error
    return config


def _num_layers(state):
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")})


def _grid(args, block):
    """Grid of a clip by default: the stored one, where that is whole latent frames and blocks, or of 17x128x128."""
    time, side = (args["sequence_length"] - 1) / 4 + 1, args["resolution"] / 8
    for grid in ([time, side, side], [5, 16, 16]):
        if all(size == int(size) for size in grid) and math.prod(grid) % block == 0:
            return [int(size) for size in grid]
    return [1, 1, block]


COUNTS = ("n_head", "token_number_per_step", "resolution", "sequence_length")
DEFAULTS = dict(token_number_per_step=1, cond_stage_key="label", hybrid=False, starts_with_bov=False,
                unconditional=False, class_cond_dim=None, resolution=128, sequence_length=17, transformer_dropout=0.0)
RELEASED_HEADS = {(24, 1536): 16, (24, 2048): 32, (32, 3072): 32}     # (layers, width) -> heads


def _arguments(state, hyper_parameters, path):
    """Stored arguments over the defaults of the official code; those of a released model where none are stored."""
    if hyper_parameters:
        if not isinstance(hyper_parameters.get("args"), argparse.Namespace):
            raise ValueError(f"{path}: hyper_parameters hold no argparse.Namespace `args`")
        args = {**DEFAULTS, **vars(hyper_parameters["args"])}
        args["cond_stage_key"] = hyper_parameters.get("cond_stage_key", args["cond_stage_key"])
        labels = args["cond_stage_key"] != "text" and not args["unconditional"]
        for name in COUNTS + ("class_cond_dim",) * labels:
            if not isinstance(args.get(name), int) or args[name] < 1:
                raise ValueError(f"{path}: the stored argument {name} must be a positive integer, got {args.get(name)!r}")
        if args.get("vtokens_pos"):
            raise ValueError(f"{path}: vtokens_pos (position embeddings on a 3D grid) is not in any released model")
        return args
    rows, width = state["tok_emb.weight"].shape
    num_layers = _num_layers(state)
    kinds = {64000: dict(unconditional=True), 96016: dict(hybrid=True, starts_with_bov=True, cond_stage_key="text")}
    if rows not in kinds or (num_layers, width) not in RELEASED_HEADS:
        raise ValueError(f"{path} holds no hyper_parameters, and {num_layers} layers of width {width} with {rows} ids "
                         "are not a released model: pass config=GeneratorConfig(...)")
    return {**DEFAULTS, "token_number_per_step": 16, "n_head": RELEASED_HEADS[num_layers, width], **kinds[rows]}
