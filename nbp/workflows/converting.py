"""One form of a model into another: official files, native folders, and checkpoints of training runs.

Every conversion but `native_to_half` is exact; all are strict and return (number of tensors, number of parameters),
buffers included.
"""

import argparse
import dataclasses
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from nbp.config import GeneratorConfig, TokenizerConfig
from nbp.generator.model import Generator
from nbp.hub import models, name_tables, official
from nbp.hub.about import ABOUT, CARD, read_about, write_about
from nbp.hub.locating import locate
from nbp.hub.run_checkpoints import StoredModel, model_of_run, stored_run
from nbp.hub.torch_files import read_file, split_state
from nbp.system.files import atomic_path, read_json, write_text
from nbp.tokenizer.model import Tokenizer
from nbp.training import checkpoints

# What has no place in an official file and changes no logits: training options and how ids are drawn.
FREE_FIELDS = {"condition_dropout", "activation_checkpointing", "clamp_samples", "multinomial"}


def official_to_native(source: str | Path, target: str | Path, kind: str | None = None) -> tuple[int, int]:
    """Write the model of an official file as a native folder; `kind` is needed where the file holds both and the
    tokenizer is wanted. ValueError: see `nbp.hub.official`; or no model of that kind in the file."""
    content = read_file(source)
    if kind is None:
        kind = "generator" if "generator" in split_state(content, source) else "tokenizer"
    return _write_native(target, official.native_model(content, kind, source), source)


def native_to_official(source: str | Path, target: str | Path) -> tuple[int, int]:
    """Write a native folder as a file that the official code reads. ValueError: as `generator_checkpoint`."""
    _, config, native = models.load_model(source)
    models.check_state_dict(_empty_model(config), native, source)
    if not isinstance(config, GeneratorConfig) and config != official.tokenizer_config():
        raise ValueError(f"{source}: the official code builds only {official.tokenizer_config()}, this is {config}")
    state = name_tables.to_official(native, name_tables.name_table(config))
    if isinstance(config, GeneratorConfig):
        content = generator_checkpoint(config, state, source)
    else:
        content = {"model_state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    with atomic_path(target) as temporary:
        torch.save(content, temporary)
    return models.count(state)


def generator_checkpoint(config: GeneratorConfig, state: Mapping[str, Tensor], source: str | Path) -> dict[str, Any]:
    """Lightning checkpoint of the official layout: {"state_dict", "hyper_parameters", ...}. ValueError: a model the
    official code cannot express; the message names the fields."""
    if config.condition == "text" and config.num_condition_ids != official.TEXT_VOCABULARY:
        raise ValueError(f"{source}: the official code has no text model with num_condition_ids="
                         f"{config.num_condition_ids} (it would be {official.TEXT_VOCABULARY})")
    if config.grid[1] != config.grid[2]:
        raise ValueError(f"{source}: the official code has no model of clips that are not square (grid={config.grid})")
    if config.condition == "none" and (config.start == "hybrid" or config.begin_token):
        raise ValueError(f"{source}: the official code has no model without a condition that begins by itself "
                         f"(start={config.start}, begin_token={config.begin_token})")
    if config.condition == "text" and config.condition_len < official.FEWEST_TEXT_IDS:
        raise ValueError(f"{source}: the official code has no text model with condition_len={config.condition_len} "
                         f"(at least {official.FEWEST_TEXT_IDS})")
    if config.num_codes != official.NUM_CODES:
        warnings.warn(f"{source}: the official code counts on {official.NUM_CODES} codes, this model has "
                      f"{config.num_codes}; only readers that ask the file will take it")
    hyper_parameters = _hyper_parameters(config)
    read_back = official.generator_config(state, hyper_parameters, source)
    free = FREE_FIELDS | ({"pad_visibility"} if config.pad_token is None else set())
    differing = [field.name for field in dataclasses.fields(config) if field.name not in free
                 and getattr(read_back, field.name) != getattr(config, field.name)]
    if differing:
        raise ValueError(f"{source}: the official code has no model with " + ", ".join(
            f"{name}={getattr(config, name)} (it would be {getattr(read_back, name)})" for name in differing))
    return {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "1.5.4", "hparams_name": "kwargs",
            "state_dict": {f"transformer.{name}": tensor for name, tensor in state.items()},
            "hyper_parameters": hyper_parameters}


def _hyper_parameters(config: GeneratorConfig) -> dict[str, Any]:
    """What the official trainer stores beside the tensors."""
    args = argparse.Namespace(
        n_layer=config.num_layers, n_head=config.num_heads, n_embd=config.width, block_size=config.max_seq_len,
        token_number_per_step=config.block_size, hybrid=config.start == "hybrid",
        unconditional=config.condition == "none", starts_with_bov=config.begin_token,
        cond_token_num=config.condition_len, cond_stage_key="text" if config.condition == "text" else "label",
        class_cond_dim=config.num_condition_ids if config.condition == "label" else None,
        sequence_length=4 * (config.grid[0] - 1) + 1, resolution=8 * config.grid[1], transformer_dropout=config.dropout,
        tokenizer="magvit2", tokenizer_path=None, llama_tokenizer=None, vtokens=False, vtokens_pos=False, semi_ar=True,
        n_unmasked=0, vocab_size=config.num_codes, first_stage_vocab_size=config.num_codes, p_drop_cond=None,
        grad_accumulates=1, grad_clip_val=1.0)
    return dict(args=args, ckpt_path=None, ignore_keys=["mask"], first_stage_key="video",
                cond_stage_key=args.cond_stage_key, pkeep=1.0, bov_token=0, tokenizer_path=None, llama_tokenizer=None)


def deepspeed_to_fp32(source: str | Path, target: str | Path) -> tuple[int, int]:
    """Gather a DeepSpeed checkpoint folder (ZeRO 1, 2 or 3; ValueError: any other) into one file with a float32
    `state_dict`. DeepSpeed unpickles the folder: convert only what you or people you trust have trained."""
    if not (Path(source) / "latest").is_file():
        raise ValueError(f"{source} is not a DeepSpeed checkpoint folder: it has no file `latest`")
    from pytorch_lightning.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict

    with atomic_path(target) as temporary:
        content = convert_zero_checkpoint_to_fp32_state_dict(source, str(temporary))
    return models.count(content["state_dict"])


def checkpoint_to_native(source: str | Path, target: str | Path) -> tuple[int, int]:
    """Write the model of a training checkpoint, of one device or DDP (a file) or of DeepSpeed (a folder), as a native
    folder: its moving average where it has one. ValueError: damaged, or not a checkpoint of `nbp.train`."""
    if damage := checkpoints.find_damage(source):
        raise ValueError(f"checkpoint {source}: {damage}")
    if Path(source).is_dir():
        run = read_json(Path(source) / checkpoints.MANIFEST)["run"]
        Path(target).resolve().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=Path(target).resolve().parent) as folder:
            deepspeed_to_fp32(source, Path(folder) / "weights.ckpt")
            state = torch.load(Path(folder) / "weights.ckpt", map_location="cpu", weights_only=True)["state_dict"]
        return _write_native(target, model_of_run(run, state, source), source)
    content = read_file(source)
    stored = stored_run(content)
    if stored is None:
        raise ValueError(f"{source} is not a checkpoint of nbp.train: it holds no configuration")
    return _write_native(target, model_of_run(stored, cast(dict[str, Any], content)["state_dict"], source), source)


def native_to_half(source: str | Path, target: str | Path) -> tuple[int, int]:
    """Write a native folder in float16, which is loaded in float32. ValueError: a weight that float16 cannot hold."""
    model = models.load_model(source)
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state.items()}
    if broken := [name for name, tensor in half.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"{source}: {len(broken)} tensors exceed float16, first {broken[0]}")
    written = _write_native(target, model._replace(state=half), source)
    home, text_tokenizer = locate(source, model.kind), None
    if (home / ABOUT).is_file():       # without it the copy would be sampled otherwise
        about = read_about(home)
        if about.text_tokenizer:
            text_tokenizer = home / about.text_tokenizer
        if (home / CARD).is_file() and not (Path(target) / CARD).exists():
            write_text(Path(target) / CARD, (home / CARD).read_text(encoding="utf-8"))
        write_about(target, about, model.kind, text_tokenizer)
    return written


def _write_native(target: str | Path, model: StoredModel, source: str | Path) -> tuple[int, int]:
    models.check_state_dict(_empty_model(model.config), model.state, source)
    if isinstance(model.config, GeneratorConfig) and model.config.code_levels is not None:
        trained = Generator(model.config)
        trained.load_state_dict(model.state)
        plain = trained.without_code_levels()
        model = model._replace(config=plain.config, state=plain.state_dict())
    models.save_model(target, *model)
    return models.count(model.state)


def _empty_model(config: models.ModelConfig) -> Tokenizer | Generator:
    if isinstance(config, TokenizerConfig):
        return models.empty_model(lambda: Tokenizer(config))
    return models.empty_model(lambda: Generator(config))
