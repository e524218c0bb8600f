"""Next-block against next-token prediction: the same clip, the same transformer, two block sizes.

From one run on one machine. Block size 1 has other special ids, so its weights are random: the time does not depend
on them. Legend: B batch, t h w latent grid.
"""

import dataclasses

import torch
from torch import Tensor
from typing_extensions import TypedDict

from nbp.download import load_transformer
from nbp.evaluation.statement import device_name
from nbp.generator.model import Generator
from nbp.system.files import write_json
from nbp.system.timing import timed
from nbp.tokenizer.model import Tokenizer

CLIPS = 4
LOOKAHEADS = (1, 2, 4, 8)


class Ahead(TypedDict):
    """Clips drawn with several steps in a pass, beside those of one step after the other."""

    lookahead: int
    passes: float
    seconds: float
    equal: int


class Row(TypedDict):
    """One clip by one generator."""

    block_shape: list[int]
    num_steps: int
    seconds: float


def benchmark_blocks(*, generator: str, tokenizer: str, out: str | None, repeats: int, device: str) -> None:
    """Print steps and seconds of one clip and their ratio, and write them to OUT; the arguments are the command's."""
    codec = Tokenizer.from_pretrained(tokenizer, device=device)
    blocks = load_transformer(generator, codec, device=device)
    tokens = Generator(dataclasses.replace(blocks.config, block_shape=[1, 1, 1])).to(device).eval()
    rows = compare({"next_block": blocks, "next_token": tokens}, repeats)
    indices = generate_one(blocks)
    ahead = look_ahead(blocks, repeats)
    decode_s = min(timed(lambda: codec.decode_from_code_indices(indices)) for _ in range(repeats))
    speedup = rows["next_token"]["seconds"] / rows["next_block"]["seconds"]
    for name in ("next_token", "next_block"):
        row = rows[name]
        print(f"{name}: block {row['block_shape']}, {row['num_steps']} steps, {row['seconds']:.3f} s a clip")
    print(f"next-block prediction is {speedup:.2f} times as fast; decoding the clip to pixels takes {decode_s:.3f} s "
          "more")
    for drawn in ahead:
        print(f"{drawn['lookahead']} steps in a pass: {drawn['passes']:.1f} passes, {drawn['seconds']:.3f} s a clip, "
              f"{drawn['equal']} of {CLIPS} clips equal to those of one step after the other")
    if out:
        write_json(out, {**rows, "lookahead": ahead, "decode_s": decode_s, "speedup": speedup,
                         "device": device_name(device), "torch": torch.__version__,
                         "num_threads": torch.get_num_threads()})


def look_ahead(generator: Generator, repeats: int) -> list[Ahead]:
    """Passes and the best seconds of a clip, means over `CLIPS` of different seeds, drawn with several lookaheads."""
    rows: list[Ahead] = [{"lookahead": steps, "passes": 0.0, "seconds": float("inf"), "equal": 0}
                         for steps in LOOKAHEADS if steps == 1 or not generator.config.multinomial]
    for _ in range(repeats):
        plain: list[Tensor] = []
        for row in rows:
            clips: list[Tensor] = []
            seconds = timed(lambda: clips.extend(generate_one(generator, seed, row["lookahead"])  # noqa: B023
                                                 for seed in range(CLIPS))) / CLIPS
            plain = plain or clips
            row["seconds"] = min(row["seconds"], seconds)
            row["equal"] = sum(torch.equal(clip, other) for clip, other in zip(clips, plain))
    for row in rows:
        row["passes"] = sum(count_steps(generator, seed, row["lookahead"]) for seed in range(CLIPS)) / CLIPS
    return rows


def compare(generators: dict[str, Generator], repeats: int) -> dict[str, Row]:
    """Steps and the best seconds of one clip for each of several generators, measured in turns."""
    rows: dict[str, Row] = {
        name: {"block_shape": list(generator.config.block_shape), "num_steps": count_steps(generator),
               "seconds": float("inf")} for name, generator in generators.items()}
    for _ in range(repeats):
        for name, generator in generators.items():
            rows[name]["seconds"] = min(rows[name]["seconds"], timed(lambda: generate_one(generator)))  # noqa: B023
    return rows


@torch.inference_mode()
def generate_one(generator: Generator, seed: int = 0, lookahead: int = 1) -> Tensor:
    """One clip with the default sampling, from one latent frame of zeros where the model cannot start from nothing."""
    config, device = generator.config, next(generator.parameters()).device
    condition = prefix = None
    if config.condition != "none":
        condition = torch.full((1, config.condition_len), seed % config.num_condition_ids, device=device)
    if not config.begin_token:
        prefix = torch.zeros(1, 1, *config.grid[1:], dtype=torch.long, device=device)
    stream = torch.Generator(device).manual_seed(seed)
    return generator.generate(condition, prefix, generator=stream, lookahead=lookahead)  # (1, t, h, w)


def count_steps(generator: Generator, seed: int = 0, lookahead: int = 1) -> int:
    """Forward passes of the transformer for one clip."""
    calls: list[int] = []
    hook = generator.transformer.register_forward_hook(lambda *_: calls.append(1))
    try:
        generate_one(generator, seed, lookahead)
    finally:
        hook.remove()
    return len(calls)
