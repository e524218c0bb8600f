"""Ready-to-use models and weights: `load_magvit2`, `load_transformer`, `fetch_i3d`, `fetch_lpips`,
`fetch_samples`.

A path is an official file, a native model folder or a model hub id; what it is, its content says.
"""

from pathlib import Path

from nbp.hub import models, official
from nbp.hub.fetch import fetch_i3d, fetch_lpips, fetch_samples

__all__ = ["load_magvit2", "load_transformer", "fetch_i3d", "fetch_lpips", "fetch_samples"]


def load_magvit2(path, resolution=128, device="cuda"):
    """Load a tokenizer.

    Args:
        path: `magvit2_ucf.pt`, an official generator checkpoint that carries its tokenizer, or a native folder.
        resolution: pixels of the square video that flat tokens (B, t*h*w) are decoded to.
        device: "cuda", "cpu", ...

    Returns:
        `Tokenizer` in eval mode.

    Raises:
        ValueError: no tokenizer in there, or a file that can't be read; the message says what was expected.
    """
    if not Path(path).is_file():
        return models.load_pretrained(path, "tokenizer", device, resolution=resolution)
    config, native = _official(path, "tokenizer")
    return models.build("tokenizer", config, native, path, device, resolution=resolution)


def load_transformer(path, tokenizer=None, device="cuda", config=None):
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
    if Path(path).is_file():
        config, native = _official(path, "generator", config)
        generator = models.build("generator", config, native, path, device)
    else:
        generator = models.load_pretrained(path, "generator", device)
    if tokenizer is not None and tokenizer.num_codes != generator.config.num_codes:
        raise ValueError(f"{path} predicts {generator.config.num_codes} codes, the tokenizer has {tokenizer.num_codes}")
    return generator


def _official(path, kind, config=None):
    content = official.read_file(path)
    states = official.split_state(content, path)
    if kind not in states:
        raise ValueError(f"{path} holds a {' and a '.join(states)}, expected a {kind}")
    return official.native_model(content, states[kind], kind, path, config)
