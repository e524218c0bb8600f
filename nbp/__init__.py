"""Next-Block Prediction for video (arXiv 2502.07737): tokenizer, generator, evaluation.

The names below are loaded on first use, so that `import nbp` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbp.download import load_magvit2, load_transformer

__version__ = "0.1.0"
__all__ = ["load_magvit2", "load_transformer"]

_HOMES = {"load_magvit2": "nbp.download", "load_transformer": "nbp.download"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'nbp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
