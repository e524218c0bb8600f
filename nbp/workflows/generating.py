"""What to generate, and how a batch of requests becomes clips; `nbp.generate` is the command around it."""

from dataclasses import dataclass

import numpy as np
import torch

from nbp.data.clips import video_to_frames


@dataclass(frozen=True)
class Request:
    """Clip `number` of a run: its class id (-1: none), text, and the validation item that it continues (-1: none)."""

    number: int
    label: int = -1
    text: str = ""
    item: int = -1
    path: str = ""


def plan(config, num_clips, labels=None, texts=None, dataset=None):
    """List the clips to make.

    Args:
        config: `GeneratorConfig` of the model.
        num_clips: how many, at least 1; with a dataset at most its length.
        labels: class ids to cycle through; None: all classes, or those of the continued clips.
        texts: prompts to cycle through, for text-conditioned models.
        dataset: `VideoDataset` whose clips are continued, evenly spread over its list; None: from nothing.

    Raises:
        ValueError: no clips, a label or text that the model cannot take, none where it needs one, or some beside a
            dataset, whose clips have their own.
    """
    if num_clips < 1:
        raise ValueError(f"--num-clips must be at least 1, got {num_clips}")
    if dataset is not None and (labels or texts):
        raise ValueError(f"--labels, --texts and --classes are for clips from nothing, those of --data have their own; "
                         f"got {labels or texts}")
    if config.condition == "text" and not texts and dataset is None:
        raise ValueError("this model is conditioned on text: give --texts")
    for label in labels or ():
        if config.condition != "label" or not 0 <= label < config.num_condition_ids:
            raise ValueError(f"label {label}: the model takes "
                             + (f"0..{config.num_condition_ids - 1}" if config.condition == "label" else "no labels"))
    if dataset is not None:
        num_clips = min(num_clips, len(dataset))
        items = [number * len(dataset) // num_clips for number in range(num_clips)]
        return [_continuation(number, item, dataset) for number, item in enumerate(items)]
    if config.condition == "label":
        labels = labels or range(config.num_condition_ids)
        return [Request(number, label=labels[number % len(labels)]) for number in range(num_clips)]
    if config.condition == "text":
        return [Request(number, text=texts[number % len(texts)]) for number in range(num_clips)]
    return [Request(number) for number in range(num_clips)]


def check_prefix(prefix_frames, generator, tokenizer, data):
    """Make sure that the given frames are whole latent frames, leave some to predict, and are in a clip of the data.

    Raises:
        ValueError: they do not.
    """
    stride = tokenizer.config.downsample[0]
    total = 1 + stride * (generator.grid[0] - 1)
    if prefix_frames % stride != 1 % stride or not 1 <= prefix_frames < total:
        raise ValueError(f"--prefix-frames must be 1 + {stride}k and below the {total} frames of a clip, got "
                         f"{prefix_frames}")
    if data.num_frames < prefix_frames:
        raise ValueError(f"data.num_frames is {data.num_frames}, which is less than --prefix-frames {prefix_frames}")


def _continuation(number, item, dataset):
    sample = dataset.facts(item)
    return Request(number, int(sample["label"]), sample["text"], item, sample["path"])


def generate_clips(generator, tokenizer, requests, encode_condition, dataset=None, prefix_frames=0, seed=0, **sampling):
    """Generate one batch.

    Args:
        generator, tokenizer: models in eval mode on one device.
        requests: list of `Request`.
        encode_condition: function(batch dict with label and text) -> ids (B, C); None: unconditional.
        dataset: `VideoDataset` of the clips that are continued.
        prefix_frames: frames of them that are given, 1 + 4k.
        seed: clip i draws from its own stream, seeded by (seed, i).
        sampling: arguments of `Generator.generate`.

    Returns:
        video uint8 (B, T, H, W, 3), the given frames as they were; indices int32 (B, t, h, w).
    """
    device = next(generator.parameters()).device
    streams = [torch.Generator(device).manual_seed(seed * 1_000_003 + r.number) for r in requests]
    condition = prefix = given = None
    if encode_condition is not None:
        batch = {"label": torch.tensor([r.label for r in requests]), "text": [r.text for r in requests]}
        condition = encode_condition(batch).to(device)
    if dataset is not None:
        given = torch.stack([dataset[r.item]["video"][:, :prefix_frames] for r in requests])
    with torch.inference_mode():
        if given is not None:
            prefix = tokenizer.encode(given.to(device))[1].long()
        indices = generator.generate(condition, prefix, generator=streams, **sampling)
        video = tokenizer.decode_from_code_indices(indices)
    frames = video_to_frames(video)
    if given is not None:
        frames[:, :prefix_frames] = video_to_frames(given)
    return frames, indices.cpu().numpy().astype(np.int32)
