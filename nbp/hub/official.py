"""Models of the official release's files: their configs, from stored arguments and shapes, and their native tensors.

Source: github.com/RenShuhuai-Andy/NBP at 421e936.
"""

import argparse
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nbp.config import GeneratorConfig, OfficialQuirks, TokenizerConfig
from nbp.hub.name_tables import name_table, to_native
from nbp.hub.run_checkpoints import StoredModel
from nbp.hub.torch_files import split_state

TEXT_VOCABULARY = 32000     # LLaMA SentencePiece
NUM_CODES = 64000           # in the source, not in checkpoints
FEWEST_TEXT_IDS = 8         # the source asserts so
TEXT_PAD = 2                # its end-of-sentence id fills up the condition
RELEASED_HEADS = {(24, 1536): 16, (24, 2048): 32, (32, 3072): 32}     # (layers, width) -> heads


def native_model(content: object, kind: str, path: str | Path, config: GeneratorConfig | TokenizerConfig | None = None,
                 ) -> StoredModel:
    """The model of `kind` "tokenizer" or "generator" in what `read_file` gave, with native names; `config` replaces
    what the file says of itself. ValueError: no such model in the file, or from `generator_config` and `to_native`."""
    states = split_state(content, path)
    if kind not in states:
        raise ValueError(f"{path} holds a {' and a '.join(states)}, expected a {kind}")
    if config is None and kind == "tokenizer":
        config = tokenizer_config()
    elif config is None:
        stored = content.get("hyper_parameters") if isinstance(content, dict) else None
        config = generator_config(states[kind], stored, path)
    return StoredModel(kind, config, to_native(states[kind], name_table(config), path))


def tokenizer_config() -> TokenizerConfig:
    """Config of the released tokenizers."""
    return TokenizerConfig(widths=[128, 256, 256, 512], num_res_blocks=[4, 4, 4, 8],
                           strides=[[1, 2, 2], [2, 2, 2], [2, 2, 2]], fsq_levels=[8, 8, 8, 5, 5, 5])


def quirks(hybrid: bool, conditional: bool, begin_token: bool) -> OfficialQuirks:
    """What the official code does with a model of this kind."""
    return OfficialQuirks(full_head=True, spare_id=conditional and not begin_token, clamp_samples=True,
                          multinomial=True, pad_visibility="causal" if hybrid else "decoding")


def generator_config(state: Mapping[str, Tensor], hyper_parameters: Mapping[str, Any] | None,
                     path: str | Path) -> GeneratorConfig:
    """Config of an official generator, from the shapes of its tensors (official names) and the checkpoint's
    `hyper_parameters`; without them (DeepSpeed conversions) the shapes must be those of a released model. ValueError:
    they are not, a feature that no released model has, missing tensors or arguments, or arguments that contradict the
    tensors."""
    if missing := [name for name in ("tok_emb.weight", "pos_emb", "uncond_embedding") if name not in state]:
        raise ValueError(f"{path}: tensor {missing[0]} is missing")
    rows, width = state["tok_emb.weight"].shape
    args = _stored(hyper_parameters, path) if hyper_parameters else _released(state, path)
    hybrid, begin = bool(args.hybrid), bool(args.starts_with_bov)
    condition, num_ids = "none", 0
    if not args.unconditional and args.cond_stage_key == "text":
        condition, num_ids = "text", TEXT_VOCABULARY
    elif not args.unconditional:
        condition, num_ids = "label", args.class_cond_dim or 0
    block = args.token_number_per_step
    special = block if hybrid else int(condition != "none")
    pad = TEXT_PAD + 1 - (block if hybrid else int(begin))     # what the official mask compares unshifted ids with
    config = GeneratorConfig(
        num_layers=_num_layers(state), num_heads=args.n_head, width=width, num_codes=rows - num_ids - special,
        grid=_grid(args), block_shape=[1, 1, block], condition=condition, start="hybrid" if hybrid else "plain",
        begin_token=begin, num_condition_ids=num_ids, condition_len=len(state["uncond_embedding"]) if num_ids else 0,
        pad_token=pad if condition == "text" and pad >= 0 else None, max_seq_len=state["pos_emb"].shape[1],
        dropout=args.transformer_dropout, condition_dropout=0.0,
        **dataclasses.asdict(quirks(hybrid, condition != "none", begin)))
    try:
        config.check()
    except ValueError as error:
        raise ValueError(f"{path}: the stored arguments do not fit the tensors: {error}") from error
    return config


def _num_layers(state: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")})


@dataclass(frozen=True)
class _Arguments:
    """The stored arguments that describe a model, with the defaults of the official code."""

    n_head: int = 0
    token_number_per_step: int = 1
    hybrid: bool = False
    starts_with_bov: bool = False
    unconditional: bool = False
    cond_stage_key: str = "label"
    class_cond_dim: int | None = None
    resolution: int = 128
    sequence_length: int = 17
    transformer_dropout: float = 0.0
    vtokens_pos: bool = False


def _stored(hyper_parameters: Mapping[str, Any], path: str | Path) -> _Arguments:
    """Stored arguments over the defaults of the official code."""
    if not isinstance(hyper_parameters.get("args"), argparse.Namespace):
        raise ValueError(f"{path}: hyper_parameters hold no argparse.Namespace `args`")
    known = {field.name for field in dataclasses.fields(_Arguments)}
    values = {name: value for name, value in vars(hyper_parameters["args"]).items() if name in known}
    if "cond_stage_key" in hyper_parameters:
        values["cond_stage_key"] = hyper_parameters["cond_stage_key"]
    args = _Arguments(**values)
    counts = ["n_head", "token_number_per_step", "resolution", "sequence_length"]
    if args.cond_stage_key != "text" and not args.unconditional:
        counts.append("class_cond_dim")
    for name in counts:
        if not isinstance(getattr(args, name), int) or getattr(args, name) < 1:
            found = values.get(name)
            raise ValueError(f"{path}: the stored argument {name} must be a positive integer, got {found!r}")
    if args.vtokens_pos:
        raise ValueError(f"{path}: vtokens_pos (position embeddings on a 3D grid) is not in any released model")
    return args


def _released(state: Mapping[str, Tensor], path: str | Path) -> _Arguments:
    """Arguments of the released model that has these shapes."""
    rows, width = state["tok_emb.weight"].shape
    num_layers = _num_layers(state)
    heads = RELEASED_HEADS.get((num_layers, width))
    if heads is not None and rows == 64000:
        return _Arguments(n_head=heads, token_number_per_step=16, unconditional=True)
    if heads is not None and rows == 96016:
        return _Arguments(n_head=heads, token_number_per_step=16, hybrid=True, starts_with_bov=True,
                          cond_stage_key="text")
    raise ValueError(f"{path} holds no hyper_parameters, and {num_layers} layers of width {width} with {rows} ids "
                     "are not a released model: pass config=GeneratorConfig(...)")


def _grid(args: _Arguments) -> list[int]:
    """Grid of a clip by default: the stored one where that is whole latent frames and blocks, else of 17x128x128."""
    block, steps, side = args.token_number_per_step, args.sequence_length - 1, args.resolution
    stored = [steps // 4 + 1, side // 8, side // 8]
    if steps % 4 == 0 and side % 8 == 0 and math.prod(stored) % block == 0:
        return stored
    return [5, 16, 16] if 5 * 16 * 16 % block == 0 else [1, 1, block]
