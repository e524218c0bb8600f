"""Flax checkpoints of the metric networks -> tensors under the names of our modules.

The files are pickles, which can run code: they are read by an unpickler that knows only numpy arrays.
"""

import io
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays in plain containers and nothing else: a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.ndarray(0).__reduce__()[0]       # the same function, wherever this numpy has it
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise ValueError(f"the pickle wants {module}.{name}; only numpy arrays are read")


def read_arrays(data: bytes) -> Arrays:
    """Unpickle nested dicts of numpy arrays: "a/b/c" -> array. ValueError: the pickle holds anything else."""
    return dict(_flatten(_ArrayUnpickler(io.BytesIO(data)).load()))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, np.ndarray):
            yield prefix + key, value
        else:
            raise ValueError(f"{prefix}{key} is {type(value).__name__}; only numpy arrays are read")


def i3d_state(arrays: Arrays) -> Arrays:
    """Flax arrays of the I3D -> tensors under the PyTorch port's names: kernels thwio -> oithw, unit scale added."""
    state = {}
    for name, array in arrays.items():
        _, *path, _, leaf = name.split("/")
        module = _i3d_module(path)
        if leaf == "kernel":
            state[f"{module}.conv3d.weight"] = np.ascontiguousarray(array.transpose(4, 3, 0, 1, 2))
        elif module == "logits":
            state["logits.conv3d.bias"] = array
        else:
            parameter = {"bias": "bias", "mean": "running_mean", "var": "running_var"}[leaf]
            state[f"{module}.bn.{parameter}"] = np.ascontiguousarray(array.reshape(-1))
            state[f"{module}.bn.weight"] = np.ones(array.size, np.float32)
    return state


def _i3d_module(path: list[str]) -> str:
    """["Mixed_3b", "Branch_1", "Conv3d_0b_3x3"] -> "Mixed_3b.b1b"."""
    if path[0] == "Logits":
        return "logits"
    if len(path) == 1:
        return path[0]
    block, branch, unit = path
    number = branch.removeprefix("Branch_")
    letter = unit.removeprefix("Conv3d_0")[0]
    return f"{block}.b{number}" + {"0": "", "3": "b"}.get(number, letter)


def lpips_state(arrays: Arrays) -> Arrays:
    """Flax arrays of LPIPS -> tensors under the names of `nbp.evaluation.lpips.LPIPS`: kernels hwio -> oihw."""
    state = {}
    convs = _positions(next(iter(arrays)).split("/")[0])
    for name, array in arrays.items():
        module, conv, leaf = name.split("/")
        [digits] = re.findall(r"\d+$", module if module.startswith("NetLin") else conv)
        index = int(digits)
        if module.startswith("NetLin"):
            state[f"heads.{index}"] = np.ascontiguousarray(array.reshape(-1))
        elif leaf == "kernel":
            state[f"stages.{convs[index]}.weight"] = np.ascontiguousarray(array.transpose(3, 2, 0, 1))
        else:
            state[f"stages.{convs[index]}.bias"] = array
    return state


def _positions(network: str) -> list[str]:
    """Place "stage.layer" of each convolution, in order, inside `nbp.evaluation.lpips.LPIPS`."""
    if network.startswith("VGG"):
        # every stage but the first opens with a pooling layer; each convolution is followed by a ReLU
        return [f"{stage}.{2 * conv + (stage > 0)}" for stage, num in enumerate((2, 2, 3, 3, 3)) for conv in range(num)]
    return ["0.0", "1.1", "2.1", "3.0", "4.0"]
