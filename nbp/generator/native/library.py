"""Sampling and parts of training in C++, as setup.py has built it for this processor."""

import ctypes
import sysconfig
import warnings
import zlib
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from nbp.system.processor import multiplies_bfloat16

FOLDER = Path(__file__).parent
SOURCES = ("attention.cpp", "draw.cpp", "loss.cpp", "products.h", "step.cpp", "vectors.h")
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX") or ".so"


class Layer(ctypes.Structure):
    """Addresses of a layer's weights and cache, as in `step.cpp`."""

    _fields_ = [(name, ctypes.c_void_p) for name in (
        "norm1_weight", "norm1_bias", "qkv", "qkv_bias", "proj", "proj_bias", "norm2_weight", "norm2_bias", "up",
        "up_bias", "down", "down_bias", "keys", "values")]


class Step(ctypes.Structure):
    """Arguments of `transform`, as in `step.cpp`."""

    _fields_ = [*((name, ctypes.c_int) for name in ("clips", "rows", "start", "length", "width", "heads", "layers",
                                                    "threads")),
                ("x", ctypes.c_void_p), ("mask", ctypes.c_void_p), ("mask_stride", ctypes.c_int64),
                *((name, ctypes.c_void_p) for name in ("turn", "norm_weight", "norm_bias"))]


class Span(ctypes.Structure):
    """Queries and what they see, as in `attention.cpp`."""

    _fields_ = [*((name, ctypes.c_int) for name in ("first", "last", "keys")), ("mask", ctypes.c_void_p),
                ("stride", ctypes.c_int64)]


class Attention(ctypes.Structure):
    """Arguments of `attend` and `attend_backward`, as in `attention.cpp`."""

    _fields_ = [*((name, ctypes.c_int) for name in ("clips", "rows", "heads", "size", "spans", "threads")),
                ("span", ctypes.POINTER(Span)),
                *((name, ctypes.c_void_p) for name in ("projected", "turn", "out", "sums", "out_grad",
                                                       "projected_grad"))]


class Loss(ctypes.Structure):
    """Arguments of `differentiate_loss`, as in `loss.cpp`."""

    _fields_ = [*((name, ctypes.c_int) for name in ("rows", "columns", "threads")),
                *((name, ctypes.c_void_p) for name in ("logits", "target")), ("share", ctypes.c_float),
                ("losses", ctypes.c_void_p)]


def traced() -> bool:
    """Whether torch.compile or torch.func run what is called, whose tensors have no numbers of their own."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def address(tensor: Tensor | None) -> int | None:
    """Of a tensor's numbers; None for no tensor."""
    return None if tensor is None else tensor.data_ptr()


def build_name(dtype: torch.dtype) -> str | None:
    """Which of setup.py's builds computes in `dtype` on this processor; None: none does. ATEN_CPU_CAPABILITY counts as
    it does for torch."""
    capability = torch.backends.cpu.get_cpu_capability()
    if dtype == torch.bfloat16:
        able = multiplies_bfloat16("cpu") and torch.cpu._is_avx512_bf16_supported()
        return "bfloat16_avx512" if able else None
    if dtype == torch.float32 and capability in ("AVX2", "AVX512"):
        return f"float32_{capability.lower()}"
    return None


@cache
def load(name: str) -> ctypes.CDLL | None:
    """A build and its functions; None, with a warning that says what to do, where it was not built or is one of other
    sources."""
    path = FOLDER / f"{name}{SUFFIX}"
    if not path.exists():
        _warn(f"{path} was not built, which takes g++ 11 or newer")
        return None
    try:
        library = ctypes.CDLL(str(path))
        library.source.restype = ctypes.c_uint
        same = library.source() == source()
    except (OSError, AttributeError) as error:
        _warn(f"{path} cannot be used ({error})")
        return None
    if not same:
        _warn(f"{path} was built from other sources than those beside it")
        return None
    library.transform.argtypes = [ctypes.POINTER(Step), ctypes.POINTER(Layer)]
    for function in (library.transform, library.multiply, library.draw, library.fill, library.attend,
                     library.attend_backward, library.differentiate_loss):
        function.restype = None
    library.attend.argtypes = library.attend_backward.argtypes = [ctypes.POINTER(Attention)]
    library.differentiate_loss.argtypes = [ctypes.POINTER(Loss)]
    library.use_tiles.argtypes = [ctypes.c_int]
    library.multiply.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int,
                                 ctypes.c_void_p, ctypes.c_int]
    library.draw.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_float,
                             ctypes.c_int, ctypes.c_void_p]
    library.fill.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p]
    return library


def of(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The build that computes in `dtype` on this processor, if there is one."""
    build = build_name(dtype)
    return None if build is None else load(build)


def loaded(build: str) -> ctypes.CDLL:
    """`load` of what must be there. RuntimeError: it is not."""
    if (found := load(build) if build else None) is None:
        raise RuntimeError(f"the build {build or 'for this processor'} is gone; install NBP again: sh setup.sh")
    return found


def source() -> int:
    """Checksum of the sources, which setup.py compiles into each build."""
    return zlib.crc32(b"".join((FOLDER / name).read_bytes() for name in SOURCES))


def _warn(why: str) -> None:
    warnings.warn("sampling takes up to five times as long as it could on this CPU, and training longer too: "
                  f"{why}. Install NBP again: sh setup.sh")
