"""Ready-to-use models and weights: `load_magvit2`, `load_transformer`, `fetch_i3d`, `fetch_lpips`,
`fetch_samples`.

A path is an official file, a native model folder or a model hub id; what it is, its content says.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from nbp.config import GeneratorConfig
from nbp.generator.model import Generator
from nbp.hub.about import read_about
from nbp.hub.fetch import fetch_i3d, fetch_lpips, fetch_samples
from nbp.hub.locating import locate
from nbp.tokenizer.model import Tokenizer

__all__ = ["load_magvit2", "load_transformer", "fetch_i3d", "fetch_lpips", "fetch_samples"]


def load_magvit2(path: str | Path, resolution: int | Sequence[int] | None = None,
                 device: str | torch.device = "cuda") -> Tokenizer:
    """Load a tokenizer.

    Args:
        path: `magvit2_ucf.pt`, an official generator checkpoint that carries its tokenizer, or a native folder.
        resolution: pixels, a square's side or (height, width), of the video that flat tokens (B, t*h*w) become; None:
            what the folder says, and 128 for one that does not and for official files.
        device: "cuda", "cpu", ...

    Returns:
        `Tokenizer` in eval mode.

    Raises:
        ValueError: no tokenizer in there, or a file that can't be read; the message says what was expected.
    """
    tokenizer = Tokenizer.from_pretrained(path, resolution, device)
    if resolution is None:
        tokenizer.resolution = read_about(locate(path, "tokenizer")).resolution or 128
    return tokenizer


def load_transformer(path: str | Path, tokenizer: Tokenizer | None = None, device: str | torch.device = "cuda",
                     config: GeneratorConfig | None = None) -> Generator:
    """Load a generator.

    Args:
        path: an official Lightning or DeepSpeed-converted checkpoint, or a native folder. A tokenizer inside an
            official file is skipped; `load_magvit2` on the same path gives it.
        tokenizer: the `Tokenizer` it will be used with, to check that both have the same codes; or None.
        device: "cuda", "cpu", ...
        config: `GeneratorConfig` for an official file without hyper-parameters whose shapes are not released ones.

    Returns:
        `Generator` in eval mode.

    Raises:
        ValueError: no generator in there, a file that can't be read, or a tokenizer with other codes.
    """
    generator = Generator.from_pretrained(path, device, config)
    if tokenizer is not None and tokenizer.num_codes != generator.config.num_codes:
        raise ValueError(f"{path} predicts {generator.config.num_codes} codes, the tokenizer has {tokenizer.num_codes}")
    return generator
