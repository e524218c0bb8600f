"""Next-Block Prediction for video (arXiv 2502.07737): tokenizer, generator, evaluation.

The names below are loaded on first use, so that `import nbp` costs nothing. Video is float (3, T, H, W) or
(B, 3, T, H, W) in [0, 1]; what writes or scores also takes uint8 frames (T, H, W, 3).
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nbp.system.process import prepare_process

if TYPE_CHECKING:
    from nbp.data.video import read_video, write_video
    from nbp.data.video_io import probe
    from nbp.download import load_magvit2, load_transformer
    from nbp.pipeline import VideoPipeline
    from nbp.workflows.fvd import fvd

prepare_process()      # before torch starts its threads, and numpy

__version__ = "0.1.0"
__all__ = ["VideoPipeline", "fvd", "load_magvit2", "load_transformer", "probe", "read_video", "write_video"]

_HOMES = {"load_magvit2": "nbp.download", "load_transformer": "nbp.download", "VideoPipeline": "nbp.pipeline",
          "probe": "nbp.data.video_io", "read_video": "nbp.data.video", "write_video": "nbp.data.video",
          "fvd": "nbp.workflows.fvd"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'nbp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
