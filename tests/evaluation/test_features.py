import os
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nbp.evaluation import features, networks
from nbp.evaluation.features import Clips, Extraction, extract_features
from nbp.evaluation.networks import FeatureNetwork, load_network
from nbp.evaluation.protocols import get_protocol
from nbp.hub.fetch import tensors_sha256
from nbp.system.files import sha256


def test_independent_of_batch_size(network, protocol, make_frames):
    clips = Clips.from_array("set", make_frames(20))
    expected = extract_features(clips, network, protocol, Extraction(batch_size=1))
    assert expected.shape == (20, 24) and expected.dtype == np.float32
    for batch_size in (3, 16):
        assert np.allclose(extract_features(clips, network, protocol, Extraction(batch_size=batch_size)), expected,
                           rtol=1e-5)


@pytest.mark.parametrize("world", [2, 3])
def test_independent_of_sharding(world, network, protocol, make_frames, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 4)
    clips = Clips.from_array("set", make_frames(19))
    expected = extract_features(clips, network, protocol)
    for rank in range(1, world):   # the others first, so that rank 0 finds their chunks
        with pytest.raises(FileNotFoundError):
            extract_features(clips, network, protocol, Extraction(tmp_path, rank=rank, world=world, barrier=missing))
    got = extract_features(clips, network, protocol,
                           Extraction(tmp_path, rank=0, world=world, barrier=lambda problem: None))
    assert np.allclose(got, expected, rtol=1e-5)


def missing(problem):
    raise FileNotFoundError("a rank stops here in this test: the others are not running")


def test_ranks_need_a_folder(network, protocol, make_frames):
    with pytest.raises(ValueError, match="give cache_dir and barrier"):
        extract_features(Clips.from_array("set", make_frames(4)), network, protocol, Extraction(world=2))


class Counting(torch.nn.Module):
    """Counts the clips that it sees; can be told to fail."""

    def __init__(self):
        super().__init__()
        self.seen, self.fail_after = 0, None

    def forward(self, video):
        self.seen += len(video)
        if self.fail_after is not None and self.seen > self.fail_after:
            raise KeyboardInterrupt
        return video.mean((2, 3, 4))


def test_cache_and_resume(protocol, make_frames, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 4)
    network = FeatureNetwork("i3d-tf", Counting(), "0")
    clips = Clips.from_array("set", make_frames(10))
    network.module.fail_after = 6
    with pytest.raises(KeyboardInterrupt):
        extract_features(clips, network, protocol, Extraction(tmp_path, batch_size=2))
    network.module.fail_after, network.module.seen = None, 0
    resumed = extract_features(clips, network, protocol, Extraction(tmp_path, batch_size=2))
    assert network.module.seen == 6   # the first chunk of 4 was kept
    assert np.array_equal(resumed, extract_features(clips, network, protocol, Extraction(tmp_path)))
    assert network.module.seen == 6
    assert np.array_equal(resumed, extract_features(clips, network, protocol))


@pytest.mark.parametrize("labels", [["a"] * 4, np.zeros((4, 2), int), np.zeros(4)])
def test_labels_are_whole_numbers(make_frames, labels):
    with pytest.raises(ValueError, match="labels of set are .*accepted: integers"):
        Clips.from_array("set", make_frames(4), labels)


@pytest.mark.parametrize("damage, message", [
    (lambda path: np.save(path, np.zeros((5, 3), np.float32)), r"holds float32 \(5, 3\), expected are 4 rows"),
    (lambda path: np.save(path, np.full((4, 3), np.nan, np.float32)), "holds .* rows of finite numbers"),
    (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot be read"),
    (lambda path: path.write_bytes(b""), "cannot be read"),
])
def test_a_damaged_chunk_is_extracted_again(protocol, make_frames, tmp_path, monkeypatch, damage, message):
    monkeypatch.setattr(features, "CHUNK", 4)
    network, clips = FeatureNetwork("i3d-tf", Counting(), "0"), Clips.from_array("set", make_frames(10))
    expected = extract_features(clips, network, protocol, Extraction(tmp_path))
    [path] = tmp_path.rglob("00000004.npy")
    damage(path)
    network.module.seen = 0
    with pytest.warns(UserWarning, match=f"00000004.npy {message}"):
        assert np.array_equal(extract_features(clips, network, protocol, Extraction(tmp_path)), expected)
    assert network.module.seen == 4
    assert np.array_equal(extract_features(clips, network, protocol, Extraction(tmp_path)), expected)


def test_the_next_batch_is_read_while_the_network_runs(protocol, make_frames):
    frames, read_while_busy = make_frames(8), []
    busy, decoded = threading.Event(), threading.Event()

    def read(number):
        time.sleep(0.05)
        if busy.is_set():
            read_while_busy.append(number)
            decoded.set()
        return frames[number]

    class Slow(torch.nn.Module):
        def forward(self, video):
            busy.set()
            decoded.wait(30)
            busy.clear()
            return video.mean((2, 3, 4))

    got = extract_features(Clips("set", 8, read, "0"), FeatureNetwork("i3d-tf", Slow(), "0"), protocol,
                           Extraction(batch_size=1))
    assert read_while_busy
    network = FeatureNetwork("i3d-tf", Counting(), "0")
    clips = Clips.from_array("set", frames)
    assert np.array_equal(got, extract_features(clips, network, protocol, Extraction(batch_size=1)))


def test_a_reading_error_comes_out_and_leaves_no_thread(network, protocol, make_frames):
    frames = make_frames(9)

    def read(number):
        if number == 5:
            raise OSError("disk gone")
        return frames[number]

    before = threading.active_count()
    with pytest.raises(OSError, match="disk gone"):
        extract_features(Clips("set", 9, read, "0"), network, protocol, Extraction(batch_size=2))
    assert threading.active_count() == before


def test_worker_processes_give_the_same(network, protocol, make_frames):
    clips = Clips.from_array("set", make_frames(5))
    expected = extract_features(clips, network, protocol)
    assert np.array_equal(extract_features(clips, network, protocol, Extraction(num_workers=1)), expected)
    parent = os.getpid()

    def read(number):
        assert os.getpid() == parent
        return clips[number].numpy()

    here = Clips("set", 5, read, "0", forkable=False)
    assert np.array_equal(extract_features(here, network, protocol, Extraction(num_workers=1)), expected)


def test_subset(make_frames):
    frames = make_frames(5)
    clips = Clips.from_array("set", frames, [0, 1, 2, 3, 4])
    few = clips.subset(np.array([3, 1]))
    assert np.array_equal(few[0], frames[3]) and np.array_equal(few[1], frames[1]) and few.labels.tolist() == [3, 1]
    assert len({clips.fingerprint, few.fingerprint, clips.subset([1, 3]).fingerprint}) == 3


def test_cache_key_holds_all_that_matters(protocol, make_frames, tmp_path):
    module = Counting()
    network = FeatureNetwork("i3d-tf", module, "0")
    clips = Clips.from_array("set", make_frames(3))

    def runs(*arguments):
        before = module.seen
        extract_features(*arguments, Extraction(tmp_path))
        return module.seen - before

    assert runs(clips, network, protocol) == 3
    assert runs(Clips.from_array("other name, same clips", make_frames(3)), network, protocol) == 0
    assert runs(clips, network, protocol.replace(num_real=3)) == 0        # no feature depends on it
    assert runs(clips, network, protocol.replace(fit="crop")) == 3
    assert runs(clips, FeatureNetwork("i3d-tf", module, "1"), protocol) == 3
    assert runs(Clips.from_array("set", make_frames(3, seed=1)), network, protocol) == 3


def test_bad_sets_are_refused(network, protocol, make_frames):
    with pytest.raises(ValueError, match="uint8 with values 0 and 1 only; multiply"):
        Clips.from_array("set", make_frames(2, top=2))
    with pytest.raises(ValueError, match="set has shape .* accepted: \\(N,T,H,W,3\\)"):
        Clips.from_array("set", make_frames(2)[0])
    with pytest.raises(ValueError, match="set is int64; accepted: uint8"):
        Clips.from_array("set", make_frames(2).astype(np.int64))
    with pytest.raises(ValueError, match="set has 2 clips and 3 labels"):
        Clips.from_array("set", make_frames(2), [0, 1, 2])
    mixed = [*make_frames(3), *make_frames(1, size=20)]
    for batch_size in (1, 4):   # also where no batch holds both sizes
        with pytest.raises(ValueError, match=r" to 3: clips differ in size: \(9, 20, 20, 3\), .* --set resolution=N"):
            extract_features(Clips("set", 4, mixed.__getitem__, "0"), network, protocol,
                             Extraction(batch_size=batch_size))
    binary = make_frames(3, top=2)
    with pytest.raises(ValueError, match="set is uint8 with values 0 and 1 only; multiply"):
        extract_features(Clips("set", 3, binary.__getitem__, "0"), network, protocol)
    with pytest.raises(ValueError, match="set, clips 0 to 2: clips have 9 frames; protocol .* needs 16"):
        extract_features(Clips.from_array("set", make_frames(3)), network, protocol.replace(num_frames=16))


def test_clips_of_several_sizes_where_the_protocol_brings_them_to_one(network, protocol, make_frames, tmp_path):
    mixed = [*make_frames(2), *make_frames(2, 1, size=20), make_frames(1, 2, size=24)[0][:, :12]]
    mixed_set, to_16 = Clips("set", 5, mixed.__getitem__, "0"), protocol.replace(resolution=16)
    expected = np.concatenate([extract_features(Clips.from_array("one", clip[None]), network, to_16) for clip in mixed])
    for batch_size in (1, 2, 8):
        found = extract_features(mixed_set, network, to_16, Extraction(tmp_path / str(batch_size), batch_size))
        assert np.array_equal(found, expected), batch_size
    shorter = [*mixed, make_frames(1, num_frames=8)[0]]
    with pytest.raises(ValueError, match=r"clips differ in size: \(8, 16, 16, 3\).*; all must be of one length"):
        extract_features(Clips("set", 6, shorter.__getitem__, "0"), network, to_16)


def test_nan_features_are_refused(protocol, make_frames, tmp_path):
    class Broken(torch.nn.Module):
        def forward(self, video):
            return video.mean((2, 3, 4)) * torch.tensor([1, torch.nan, 1])

    with pytest.raises(ValueError, match="clips 0 to 2: the network returned NaN or infinity for 3 of 3 clips"):
        extract_features(Clips.from_array("set", make_frames(3)), FeatureNetwork("i3d-tf", Broken(), "0"), protocol,
                         Extraction(tmp_path))
    assert not list(tmp_path.glob("*/*.npy"))


def test_network_of_another_protocol(network, make_frames):
    with pytest.raises(ValueError, match="protocol nbp-rfvd needs network i3d-port, got i3d-tf"):
        extract_features(Clips.from_array("set", make_frames(3)), network, get_protocol("nbp-rfvd"))


def test_torchscript_is_trusted_by_hash_only(tmp_path, monkeypatch):
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(Script()).save(path)
    with pytest.raises(ValueError, match="A TorchScript file is a program: pass --trust-torchscript"):
        load_network("i3d-styleganv", path)
    network = load_network("i3d-styleganv", path, trust_torchscript=True)
    assert network.module(torch.ones(2, 3, 9, 224, 224)).tolist() == [[2.0], [2.0]]
    assert network.note == f"weights {path}: its sha256 {sha256(path)} is not that of StyleGAN-V's file"
    assert network.tensors_sha256 == tensors_sha256({"scale": np.ones(1)}) and network.weights_sha256 == sha256(path)
    monkeypatch.setattr(networks, "STYLEGANV_SHA256", sha256(path))
    assert load_network("i3d-styleganv", path).note == ""
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="i3d_torchscript.pt cannot be read as a TorchScript file"):
        load_network("i3d-styleganv", path, trust_torchscript=True)
    with pytest.raises(ValueError, match="weights .*none.pt of network i3d-styleganv do not exist"):
        load_network("i3d-styleganv", tmp_path / "none.pt")


class Script(torch.nn.Module):
    """Stands in for StyleGAN-V's file: 2 where it is asked for raw features, else 1."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False):
        scale = 2.0 if return_features and not resize and not rescale else 1.0
        return scale * self.scale * x.mean((1, 2, 3, 4))[:, None]


def test_weights_are_told_by_their_tensors(i3d_path, tmp_path):
    """The public I3D in another file is known; one changed number is stated."""
    state, path = load_file(i3d_path), tmp_path / "i3d_pretrained_400.pt"
    torch.save(state, path)
    fetched, copied = load_network("i3d-tf", i3d_path), load_network("i3d-port", path)
    assert fetched.tensors_sha256 == copied.tensors_sha256 and fetched.weights_sha256 != copied.weights_sha256
    assert fetched.note == copied.note == ""
    state["logits.conv3d.bias"][7] += 1
    torch.save(state, path)
    changed = load_network("i3d-port", path)
    assert changed.tensors_sha256 != fetched.tensors_sha256
    assert changed.note == f"weights {path}: its tensors are not those of the public Kinetics-400 I3D"


def test_features_of_the_real_network(i3d_path, make_frames):
    network = load_network("i3d-tf", i3d_path)
    got = extract_features(Clips.from_array("set", make_frames(2, size=32)), network, get_protocol("quickstart"))
    assert got.shape == (2, 400) and np.isfinite(got).all() and not np.allclose(got[0], got[1])
