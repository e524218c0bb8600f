"""python -m nbp.convert official-to-native|native-to-official|checkpoint-to-native|deepspeed-to-fp32|native-to-half
SOURCE TARGET

All but the last are exact; all are strict and print how many tensors and parameters they wrote, buffers included.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import torch

from nbp import checkpoint, official
from nbp.files import atomic_path, read_json
from nbp.training import checkpoints

# What has no place in an official file and changes no logits: training options and how ids are drawn.
FREE_FIELDS = {"condition_dropout", "activation_checkpointing", "clamp_samples", "multinomial"}


def official_to_native(source, target, kind=None):
    """Write the model of an official file as a native folder.

    Args:
        source: official file.
        target: folder.
        kind: "tokenizer" or "generator"; needed where the file holds both and the tokenizer is wanted.

    Returns:
        (number of tensors, number of parameters).

    Raises:
        ValueError: see `nbp.official`; or no model of that kind in the file.
    """
    content = official.read_file(source)
    states = official.split_state(content, source)
    kind = kind or ("generator" if "generator" in states else "tokenizer")
    if kind not in states:
        raise ValueError(f"{source} holds a {' and a '.join(states)}, no {kind}")
    config, native = official.native_model(content, states[kind], kind, source)
    checkpoint.check_state_dict(checkpoint.empty_model(kind, config), native, source)
    checkpoint.save_model(target, kind, config, native)
    return checkpoint.count(native)


def native_to_official(source, target):
    """Write a native folder as a file that the official code reads.

    Raises:
        ValueError: a model the official code cannot express; the message names the fields.
    """
    kind, config, native = checkpoint.load_model(source)
    checkpoint.check_state_dict(checkpoint.empty_model(kind, config), native, source)
    if kind == "tokenizer":
        if config != official.tokenizer_config():
            raise ValueError(f"{source}: the official code builds only {official.tokenizer_config()}, this is {config}")
        state = official.to_official(native, official.tokenizer_table(config))
        content = {"model_state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    else:
        state = official.to_official(native, official.generator_table(config))
        content = generator_checkpoint(config, state, source)
    with atomic_path(target) as temporary:
        torch.save(content, temporary)
    return checkpoint.count(state)


def generator_checkpoint(config, state, source):
    """Lightning checkpoint of the official layout: {"state_dict", "hyper_parameters", ...}."""
    conditional = config.condition != "none"
    if config.condition == "text" and config.num_condition_ids != official.TEXT_VOCABULARY:
        raise ValueError(f"{source}: the official code has no text model with num_condition_ids="
                         f"{config.num_condition_ids} (it would be {official.TEXT_VOCABULARY})")
    args = argparse.Namespace(
        n_layer=config.num_layers, n_head=config.num_heads, n_embd=config.width, block_size=config.max_seq_len,
        token_number_per_step=config.block_size, hybrid=config.start == "hybrid", unconditional=not conditional,
        starts_with_bov=config.begin_token, cond_token_num=config.condition_len,
        cond_stage_key="text" if config.condition == "text" else "label",
        class_cond_dim=config.num_condition_ids if config.condition == "label" else None,
        sequence_length=4 * (config.grid[0] - 1) + 1, resolution=8 * config.grid[1], transformer_dropout=config.dropout,
        tokenizer="magvit2", tokenizer_path=None, llama_tokenizer=None, vtokens=False, vtokens_pos=False, semi_ar=True,
        n_unmasked=0, vocab_size=config.num_codes, first_stage_vocab_size=config.num_codes, p_drop_cond=None,
        grad_accumulates=1, grad_clip_val=1.0)
    hyper_parameters = dict(args=args, ckpt_path=None, ignore_keys=["mask"], first_stage_key="video",
                            cond_stage_key=args.cond_stage_key, pkeep=1.0, bov_token=0, tokenizer_path=None,
                            llama_tokenizer=None)
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


def deepspeed_to_fp32(source, target):
    """Gather a DeepSpeed checkpoint folder (ZeRO 1, 2 or 3) into one file with a float32 `state_dict`.

    DeepSpeed unpickles the folder: convert only what you or people you trust have trained.

    Raises:
        ValueError: the folder is not a DeepSpeed checkpoint.
    """
    if not (Path(source) / "latest").is_file():
        raise ValueError(f"{source} is not a DeepSpeed checkpoint folder: it has no file `latest`")
    from pytorch_lightning.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict

    with atomic_path(target) as temporary:
        content = convert_zero_checkpoint_to_fp32_state_dict(source, str(temporary))
    return checkpoint.count(content["state_dict"])


def checkpoint_to_native(source, target):
    """Write the model of a training checkpoint as a native folder: its moving average where it has one.

    Args:
        source: checkpoint of one device or DDP (a file), or of DeepSpeed (a folder; see `deepspeed_to_fp32`).
        target: folder.

    Raises:
        ValueError: damaged, or not a checkpoint of `nbp.train`.
    """
    if damage := checkpoints.find_damage(source):
        raise ValueError(f"checkpoint {source}: {damage}")
    if Path(source).is_dir():
        run = read_json(Path(source) / checkpoints.MANIFEST)["run"]
        Path(target).resolve().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=Path(target).resolve().parent) as folder:
            deepspeed_to_fp32(source, Path(folder) / "weights.ckpt")
            state = torch.load(Path(folder) / "weights.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    else:
        content = torch.load(source, map_location="cpu", weights_only=True)
        if "run" not in content.get("hyper_parameters", {}):
            raise ValueError(f"{source} is not a checkpoint of nbp.train: it holds no configuration")
        run, state = content["hyper_parameters"]["run"], content["state_dict"]
    prefix = "ema." if any(name.startswith("ema.") for name in state) else "model."
    native = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    config = checkpoint.read_config(run["kind"], run["model"], source)
    checkpoint.check_state_dict(checkpoint.empty_model(run["kind"], config), native, source)
    checkpoint.save_model(target, run["kind"], config, native)
    return checkpoint.count(native)


def native_to_half(source: Path | str, target: Path | str) -> tuple[int, int]:
    """Write a native folder with weights in float16, half the size; it is loaded in float32.

    Args:
        source: native folder.
        target: folder.

    Returns:
        (number of tensors, number of parameters).

    Raises:
        ValueError: a weight that float16 cannot hold.
    """
    kind, config, native = checkpoint.load_model(source)
    checkpoint.check_state_dict(checkpoint.empty_model(kind, config), native, source)
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in native.items()}
    if broken := [name for name, tensor in half.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"{source}: {len(broken)} tensors exceed float16, first {broken[0]}")
    checkpoint.save_model(target, kind, config, half)
    return checkpoint.count(half)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m nbp.convert", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, source, target in (("official-to-native", "official file", "folder"),
                                 ("native-to-official", "folder", "file"),
                                 ("checkpoint-to-native", "checkpoint file or folder", "folder"),
                                 ("deepspeed-to-fp32", "checkpoint folder", "file"),
                                 ("native-to-half", "folder", "folder")):
        command = commands.add_parser(name)
        command.add_argument("source", help=source)
        command.add_argument("target", help=target)
        if name == "official-to-native":
            command.add_argument("--kind", choices=("tokenizer", "generator"), help="which of two models in one file")
    args = parser.parse_args(argv)
    try:
        if args.command == "official-to-native":
            tensors, parameters = official_to_native(args.source, args.target, args.kind)
        elif args.command == "native-to-official":
            tensors, parameters = native_to_official(args.source, args.target)
        elif args.command == "checkpoint-to-native":
            tensors, parameters = checkpoint_to_native(args.source, args.target)
        elif args.command == "native-to-half":
            tensors, parameters = native_to_half(args.source, args.target)
        else:
            tensors, parameters = deepspeed_to_fp32(args.source, args.target)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{args.target}: {tensors} tensors, {parameters:,} parameters")


if __name__ == "__main__":
    main()
