"""Encoding and decoding against the plain float32 path, and a long video chunk by chunk.

The plain path is the official one: padding copied in front of float32 convolutions. Weights are random, but for the
released model, whose reconstructions say what bfloat16 costs.
"""

import copy
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nbp.benchmarking.machine import PRECISIONS, Line, Machine, in_turns, line, measure_machine, report
from nbp.config import TokenizerConfig
from nbp.planning.memory import Allocations
from nbp.tokenizer.model import Tokenizer
from nbp.tokenizer.streaming import decode_chunks, encode_chunks
from nbp.training.flops import count_flops

# Widths, units, strides and levels; frames and pixels of the clip.
SIZES = {"smoke": (TokenizerConfig([8, 8], [1, 1], [[2, 2, 2]], [4, 4]), 5, 16),
         "paper": (TokenizerConfig([128, 256, 256, 512], [4, 4, 4, 8], [[1, 2, 2], [2, 2, 2], [2, 2, 2]],
                                   [8, 8, 8, 5, 5, 5]), 17, 128)}
RELEASED = "ckpt/NBP-procgen/tokenizer"
LONG, CHUNK = 257, 8
ALONE = 5       # frames on a CPU where float32 has nothing beside it: 17 of the paper's size take two minutes there


def benchmark_tokenizer(*, out: str | None, repeats: int, device: str, size: str) -> None:
    """Print what a clip and a long video take; the arguments are the command's."""
    machine = measure_machine(device)
    config, num_frames, side = SIZES["paper" if size not in SIZES else size]
    if device == "cpu" and "bfloat16" not in machine.rate:
        num_frames = min(num_frames, ALONE)
    lines = clip_lines(config, num_frames, side, machine, repeats, device)
    here = Path(RELEASED).is_dir()
    small = Tokenizer.from_pretrained(RELEASED, device=device) if here else Tokenizer(SIZES["smoke"][0]).to(device)
    lines += [stream_line(small, 33 if size == "smoke" else LONG), psnr_line(small, machine.rate)]
    report(machine, lines, out)


def clip_lines(config: TokenizerConfig, num_frames: int, side: int, machine: Machine, repeats: int,
               device: str) -> list[Line]:
    """Encoding and decoding of one clip in each precision, against float32."""
    plain, lines = Tokenizer(config).to(device).eval(), []
    models = {name: copy.deepcopy(plain).to(PRECISIONS[name]) for name in machine.rate}
    video = torch.rand(1, 3, num_frames, side, side, device=device)
    codes = torch.rand(1, len(config.fsq_levels), *config.latent_grid(num_frames, side, side), device=device)
    with torch.device("meta"):
        counted = Tokenizer(config)
    for what, argument in (("encode", video), ("decode", codes)):
        def call(model: Tokenizer, half: str = f"{what}r", x: Tensor = argument) -> None:
            with torch.no_grad():
                getattr(model, half)(x.to(model.encoder.conv_in.conv.weight))

        best = in_turns({name: partial(call, model) for name, model in models.items()}, repeats)
        operations = count_flops(partial(call, counted))
        lines += [line(f"{what} {num_frames}x{side}x{side}, {name}", best[name],
                       "float32" if name != "float32" else "", best["float32"] if name != "float32" else None,
                       machine.floor_s(0, operations, name)) for name in models]
    return lines


def texture(num_frames: int, side: int) -> Tensor:
    """A texture that moves, float32 (1, 3, T, H, W)."""
    coarse = np.random.default_rng(0).random((3, side, side), dtype=np.float32).repeat(8, 1).repeat(8, 2)
    return torch.from_numpy(np.stack([coarse[:, t % side:t % side + side, :side] for t in range(num_frames)], 1))[None]


def stream_line(tokenizer: Tokenizer, num_frames: int) -> Line:
    """A long video through encoder and decoder in chunks: time to the first frames, and memory against a clip's."""
    side = 8 * tokenizer.config.downsample[1]
    video = texture(num_frames, side).to(tokenizer.fsq.device)

    def chunks() -> Iterator[Tensor]:
        yield video[:, :, :1]
        yield from video[:, :, 1:].split(CHUNK, dim=2)

    indices: list[Tensor] = []

    def encoded() -> Iterator[Tensor]:
        for found in encode_chunks(tokenizer, chunks()):
            indices.append(found)
            yield found

    with Allocations([*tokenizer.parameters(), video]) as short, torch.no_grad():      # the first call sets things up
        tokenizer.decode(tokenizer.encode(video[:, :, :17])[0])
    start, first_s, parts = time.perf_counter(), 0.0, list[Tensor]()
    with Allocations([*tokenizer.parameters(), video]) as long:
        for part in decode_chunks(tokenizer, encoded()):
            first_s = first_s or time.perf_counter() - start
            parts.append(part)
    seconds = time.perf_counter() - start
    pixels = torch.cat(parts, dim=2)
    with torch.no_grad():
        codes, whole = tokenizer.encode(video)
        error = float((tokenizer.decode(codes) - pixels).abs().max())
    same = bool(torch.equal(torch.cat(indices, dim=1), whole))
    frames = sum(part.numel() * part.element_size() for part in parts)
    return line(f"{num_frames} frames of {side}x{side} in chunks of {CHUNK}", seconds, first_frame_s=first_s,
                share_until_the_first=first_s / seconds, same_tokens=same, largest_pixel_error=error,
                memory_of_a_17_frame_clips=(sum(long.peak) - frames) / sum(short.peak))


def psnr_line(tokenizer: Tokenizer, precisions: Iterable[str]) -> Line:
    """PSNR of each precision's reconstruction of one moving texture."""
    video = texture(17, 8 * tokenizer.config.downsample[1]).to(tokenizer.fsq.device)
    psnr = {}
    for name in precisions:
        model = copy.deepcopy(tokenizer).to(PRECISIONS[name])
        with torch.no_grad():
            error = (model.decode(model.encode(video)[0]).float().clamp(0, 1) - video).square().mean()
        psnr[name] = float(-10 * error.log10())
    return {"what": "PSNR of a reconstruction", "seconds": 0.0, "facts": psnr}
