"""From models to a clip set: what to generate; `nbp.generate` is the command around it, `making` makes the clips."""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from typing_extensions import Unpack

from nbp.config import DataConfig, GeneratorConfig, load_config, to_dict
from nbp.data import clip_set
from nbp.data.dataset import VideoDataset
from nbp.data.video_writing import frame_rate
from nbp.download import load_transformer
from nbp.generator.arguments import guidance
from nbp.generator.conditions import condition_encoder, text_ids_sha256
from nbp.generator.model import Generator
from nbp.generator.sampling import Sampling
from nbp.generator.sequence import Layout, check_grid
from nbp.hub.about import About, read_about
from nbp.hub.locating import locate
from nbp.hub.models import model_hash
from nbp.system.command import UserError
from nbp.system.distributed import barrier, held_by_ranks, rank_and_world
from nbp.system.files import read_json
from nbp.system.processor import multiplies_bfloat16
from nbp.system.profiling import Trace
from nbp.system.progress import progress
from nbp.tokenizer.model import Tokenizer
from nbp.workflows.asking import asked_clips, by_name, class_ids
from nbp.workflows.drafting import AskedSampling, SamplingOptions, check_length, check_window, random_streams
from nbp.workflows.making import Continued, Encoder, Made, Request, clip_pieces, generate_clips, stream_clips

DEFAULT_FPS = 8.0


def generate(*, generator: str, tokenizer: str, out: str | Path, num_clips: int, labels: Sequence[str | int] | None,
             texts: Sequence[str] | None, classes: str | None, text_tokenizer: str | None, data: str | None,
             clips_per_video: int, prefix_frames: int, unconditional: bool, seed: int, batch_size: int, precision: str,
             fps: float | None, device: str, num_frames: int | None = None, stream: bool = False, profile: bool = False,
             **sampling: Unpack[AskedSampling]) -> None:
    """Write a clip set with its videos and a picture; the arguments are those of the command. ValueError: requests that
    the models cannot meet, or a folder with clips of other settings."""
    tokens = Tokenizer.from_pretrained(tokenizer, device=device)
    home, model = locate(generator, "generator"), load_transformer(generator, tokens, device=device)
    about = read_about(home).or_else(read_about(locate(tokenizer, "tokenizer")))
    about.check_size(*(cells * side for cells, side in zip(model.config.grid[1:], tokens.config.downsample[1:])))
    fps = fps or about.fps or DEFAULT_FPS
    options = advised(about, not unconditional and model.config.condition != "none", **sampling)
    if text_tokenizer is not None and (unconditional or model.config.condition != "text"):
        raise ValueError(f"--text-tokenizer {text_tokenizer} is for clips that are made for texts, these are not")
    text_tokenizer = text_tokenizer or (str(home / about.text_tokenizer) if about.text_tokenizer else None)
    dataset = None
    if data:
        dataset = VideoDataset(at_rate(load_config(DataConfig, data), about), "val", False, clips_per_video)
        check_prefix(prefix_frames, model.config, tokens, dataset.data, whole=num_frames is None and not stream)
    ids, texts, requests = asked_clips(model.config, about, num_clips, labels, texts, classes, dataset, unconditional)
    encode = None if unconditional else condition_encoder(model.config, text_tokenizer)
    if encode is not None and dataset is not None and (own := class_ids(dataset.classes, about, model.config)):
        encode = by_name(encode, own)
    settings = {
        "tokenizer_hash": model_hash(tokens), "generator_hash": model_hash(model), "seed": seed,
        "num_clips": len(requests), "labels": ids, "texts": texts, "data": data,
        "data_config": to_dict(dataset.data) if dataset else None,
        **(dataset.digests() if dataset else {"annotations_sha256": None}),
        "clips_per_video": clips_per_video, "prefix_frames": prefix_frames,
        "unconditional": unconditional, "fps": fps, "precision": precision,
        **({} if num_frames is None else {"num_frames": num_frames}),
        **{name: value for name, value in options.items() if name != "lookahead" or precision == "bf16" and value}}
    if encode is not None and model.config.condition == "text":
        settings |= _text_ids(encode, requests, Path(out))
    # What cannot be drawn is refused before `out` records it.
    check_sampling(model.config, options, precision == "int8", encode is not None)
    random_streams(seed, [], device)
    frame_rate(fps)
    if num_frames is not None:
        check_window(model, tokens, num_frames, dataset is not None)
        if dataset is not None:
            check_length(prefix_frames, num_frames)
    _lower(model, tokens, precision)
    continued = None if dataset is None else Continued(dataset, prefix_frames)
    with held_by_ranks(out):
        parts = clip_set.Parts(out, settings)
        if stream:
            stream_clips(Path(out), requests, batch_size, fps, lambda batch: clip_pieces(
                model, tokens, batch, encode, continued, seed, num_frames, **options))
            return
        make = partial(generate_clips, model, tokens, encode=encode, continued=continued, seed=seed,
                       num_frames=num_frames, **options)
        fill(parts, requests, batch_size, Trace(Path(out) / "profile").of_first_call(make) if profile else make)
        barrier()
        if rank_and_world()[0] == 0:
            bad = 0 if dataset is None else dataset.data.max_bad_files * clips_per_video * math.ceil(
                len(requests) / len(dataset))
            _merge(parts, fps, len(requests), bad)


def _lower(model: Generator, tokens: Tokenizer, precision: str) -> None:
    if precision == "bf16":
        model.bfloat16()
        if tokens.fsq.device.type == "cpu" and multiplies_bfloat16("cpu"):
            tokens.decoder.bfloat16()       # not the encoder: tokens of given frames would be others
    model.pack(precision == "int8")


def _merge(parts: clip_set.Parts, fps: float, count: int, max_missing: int) -> None:
    parts.merge(count, max_missing)
    clip_set.write_pictures(parts.folder, fps)
    written = len(clip_set.load(parts.folder)["label"])
    print(f"wrote {written} clips to {parts.folder}"
          + (f"; {count - written} are left out, their files are bad" if written < count else ""))


def fill(parts: clip_set.Parts, requests: Sequence[Request], batch_size: int,
         make: Callable[[list[Request]], Made | None]) -> None:
    """Make this rank's clips that `parts` does not hold yet. Batches that a GPU's memory does not hold are halved."""
    rank, world = rank_and_world()
    done = parts.done()
    todo = [] if parts.finished else [request for request in requests[rank::world] if request.number not in done]
    batches = [todo[i:i + batch_size] for i in range(0, len(todo), batch_size)]
    halving = Halving(make, batch_size)
    for batch in progress(batches, len(batches), "generate", "batches"):
        for made in halving(batch):
            tokens = {} if made.indices is None else {"indices": made.indices}
            parts.add([r.number for r in made.requests], video=made.frames, **tokens,
                      label=np.array([r.label for r in made.requests]),
                      path=np.array([r.path for r in made.requests], dtype=np.str_))


class Halving:
    """`make` in batches as large as memory holds, at first of `batch_size`: a clip does not depend on its batch."""

    def __init__(self, make: Callable[[list[Request]], Made | None], batch_size: int) -> None:
        self.make, self.size = make, batch_size

    def __call__(self, batch: list[Request]) -> Iterator[Made]:
        """What is made of a batch, in order. UserError: memory does not hold a single clip."""
        while batch:
            made, fitted = self._try(batch[:self.size])
            if fitted:
                batch = batch[self.size:]
                if made is not None:
                    yield made
            elif min(self.size, len(batch)) == 1:
                raise UserError("the GPU's memory does not hold a single clip; --precision bf16 takes half of it")
            else:
                self.size = min(self.size, len(batch)) // 2
                torch.cuda.empty_cache()
                print(f"the GPU's memory does not hold so many clips; from here on {self.size} at a time",
                      file=sys.stderr, flush=True)

    def _try(self, batch: list[Request]) -> tuple[Made | None, bool]:
        try:
            return self.make(batch), True
        except torch.OutOfMemoryError:      # what it kept alive is free again behind this function
            return None, False


def _text_ids(encode: Encoder, requests: Sequence[Request], out: Path) -> dict[str, str]:
    """The digest of the texts' ids; sets that were begun before it was recorded go on without."""
    if (out / "meta.json").is_file() and "text_ids_sha256" not in read_json(out / "meta.json"):
        return {}
    return {"text_ids_sha256": text_ids_sha256(encode, (request.text for request in requests))}


def advised(about: About, conditional: bool, /, **asked: Unpack[AskedSampling]) -> SamplingOptions:
    """Sampling as it is asked for, and else as the model's folder recommends, guidance only for clips that are
    `conditional`. ValueError: another name."""
    advice: SamplingOptions = {**dataclasses.asdict(about.sampling)}  # type: ignore[typeddict-item]
    if not conditional:
        advice["cfg_scale"] = None
    if unknown := asked.keys() - advice.keys():
        raise ValueError(f"sampling has no {sorted(unknown)[0]}; known: {', '.join(advice)}")
    return {**advice, **{name: value for name, value in asked.items() if value is not None}}  # type: ignore[typeddict-item]


def check_sampling(config: GeneratorConfig, options: SamplingOptions, int8: bool, conditional: bool) -> None:
    """ValueError: values out of range, or that go not together or not with the model."""
    Sampling(options["greedy"], options["temperature"], options["top_k"], options["top_p"], config.multinomial,
             options["lookahead"], int8)
    guidance(options["cfg_scale"], config, conditional)


def at_rate(data: DataConfig, about: About) -> DataConfig:
    """The data at the model's frame rate, where they name none; says so on stderr where they name another."""
    if data.fps is not None and about.fps is not None and data.fps != about.fps:
        print(f"the model was trained at {about.fps:g} frames a second and is given {data.fps:g} by the data config",
              file=sys.stderr, flush=True)
    return dataclasses.replace(data, fps=data.fps or about.fps)


def check_prefix(prefix_frames: int, generator: GeneratorConfig, tokenizer: Tokenizer, data: DataConfig,
                 whole: bool) -> None:
    """ValueError: the clips have another size than the model's; the given frames are no whole latent frames, leave none
    to predict, are not in a clip, or, asked for as `whole`, no whole blocks; video of any length begins with those of
    them that are."""
    stride = tokenizer.config.downsample[0]
    total = 1 + stride * (generator.grid[0] - 1)
    if prefix_frames % stride != 1 % stride or not 1 <= prefix_frames < total:
        raise ValueError(f"--prefix-frames must be 1 + {stride}k and below the {total} frames of a clip, got "
                         f"{prefix_frames}")
    if whole:
        check_grid((1 + (prefix_frames - 1) // stride, *generator.grid[1:]), generator.block_shape, Layout(generator),
                   f"--prefix-frames {prefix_frames}: the given grid")
    size = tuple(cells * pixels for cells, pixels in zip(generator.grid[1:], tokenizer.config.downsample[1:]))
    if tuple(data.size) != size:
        raise ValueError(f"the model continues video of {size[0]}x{size[1]} pixels, the data config's have "
                         f"{data.size[0]}x{data.size[1]}; resolution: [{size[0]}, {size[1]}] in it fits them")
    if data.num_frames < prefix_frames:
        raise ValueError(f"data.num_frames is {data.num_frames}, which is less than --prefix-frames {prefix_frames}")
