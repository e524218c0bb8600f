import json

import numpy as np
import pytest
import torch

from nbp import clipset, evaluate
from nbp.clipsource import open_clips
from nbp.data.video_io import VideoError, write_video

pytestmark = pytest.mark.filterwarnings("ignore:the .* set has only")


def read_all(clips):
    return torch.stack([clips[number] for number in range(len(clips))]).numpy()


def test_arrays(make_frames, tmp_path):
    frames = make_frames(4)
    np.save(tmp_path / "a.npy", frames)
    np.savez(tmp_path / "one.npz", frames)
    np.savez(tmp_path / "named.npz", video=frames, label=np.arange(4))
    clipset.save(tmp_path / "set", frames, [3, 2, 1, 0])
    opened = [open_clips(tmp_path / name) for name in ("a.npy", "one.npz", "named.npz", "set")]
    for clips in opened:
        assert np.array_equal(read_all(clips), frames)
    assert len({clips.fingerprint for clips in opened}) == 1
    assert [None if clips.labels is None else clips.labels.tolist() for clips in opened] == [
        None, None, [0, 1, 2, 3], [3, 2, 1, 0]]


def test_videos_give_their_middle_frames(make_frames, tmp_path):
    ramp = np.stack([np.full((16, 16, 3), 8 * t, np.uint8) for t in range(21)])
    write_video(tmp_path / "sub" / "b.mp4", ramp, 10, crf=0)
    write_video(tmp_path / "a.mp4", ramp[::-1], 10, crf=0)
    (tmp_path / "list.txt").write_text("sub/b.mp4\tclass\na.mp4\tclass\n")
    folder, rows = open_clips(tmp_path, num_frames=9), open_clips(tmp_path / "list.txt", num_frames=9)
    expected = np.arange(6, 15) * 8
    assert np.abs(folder[1].float().mean((1, 2, 3)).numpy() - expected).max() < 2
    assert torch.equal(rows[0], folder[1]) and torch.equal(rows[1], folder[0])
    assert len(open_clips(tmp_path)[0]) == 21
    with pytest.raises(VideoError, match="a.mp4: has 21 frames, 22 are needed"):
        open_clips(tmp_path, num_frames=22)[0]


def test_picture_sequences(make_frames, tmp_path):
    from PIL import Image

    frames = make_frames(2, num_frames=3)
    for number, clip in enumerate(frames):
        (tmp_path / f"clip{number}").mkdir()
        for t, frame in enumerate(clip):
            Image.fromarray(frame).save(tmp_path / f"clip{number}" / f"{t:03d}.png")
    assert np.array_equal(read_all(open_clips(tmp_path)), frames)
    with pytest.raises(ValueError, match="clip0 holds 3 pictures, 4 are needed"):
        open_clips(tmp_path, num_frames=4)[0]


def test_nothing_to_read(tmp_path, make_frames):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        open_clips(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no clips.npz, no videos .* and no pictures"):
        open_clips(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(ValueError, match="a.zip: accepted are a folder"):
        open_clips(tmp_path / "a.zip")
    (tmp_path / "list.txt").write_text("gone.mp4\t\n")
    with pytest.raises(ValueError, match="1 of 1 files do not exist, the first .*gone.mp4"):
        open_clips(tmp_path / "list.txt")
    np.savez(tmp_path / "two.npz", a=make_frames(1), b=make_frames(1))
    with pytest.raises(ValueError, match="two.npz holds a, b; expected an array `video`"):
        open_clips(tmp_path / "two.npz")


def test_a_corrupt_file_among_good_ones_is_named(make_frames, network, protocol, tmp_path):
    from nbp.evaluation.features import extract_features

    for number, clip in enumerate(make_frames(3)):
        write_video(tmp_path / f"{number}.mp4", clip, 10)
    (tmp_path / "1.mp4").write_bytes(b"not a video")
    with pytest.raises(VideoError, match="1.mp4"):
        extract_features(open_clips(tmp_path), network, protocol)


@pytest.fixture
def fast(monkeypatch, network):
    """The command with a network that needs no weights."""
    monkeypatch.setattr(evaluate, "load_network", lambda *_: network)
    monkeypatch.setattr(evaluate, "fetch_i3d", lambda folder: "none")


def test_command(fast, make_frames, tmp_path, capsys):
    for name, seed in (("real", 0), ("fake", 1), ("other", 2)):
        np.save(tmp_path / f"{name}.npy", make_frames(12, seed))
    real, fake, other = (str(tmp_path / f"{name}.npy") for name in ("real", "fake", "other"))
    arguments = ["--real", real, "--fake", fake, other, "--protocol", "quickstart", "--set", "num_frames=9",
                 "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    reports = evaluate.main(arguments)
    printed = capsys.readouterr().out
    assert "protocol   quickstart+num_frames=9" in printed and "network = i3d-tf" in printed and "| fvd |" in printed
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == reports and len(reports) == 2
    assert evaluate.main(arguments)[0]["scores"] == reports[0]["scores"]


def test_command_refuses(fast, make_frames, tmp_path):
    np.save(tmp_path / "real.npy", make_frames(12, 0))
    real = str(tmp_path / "real.npy")
    common = ["--real", real, "--fake", real, "--cache", str(tmp_path / "c"), "--device", "cpu", "--protocol"]
    with pytest.raises(ValueError, match="have the same content"):
        evaluate.main([*common, "quickstart"])
    with pytest.raises(ValueError, match="unknown protocol 'quickstrat'"):
        evaluate.main([*common, "quickstrat"])
    with pytest.raises(ValueError, match="--set 'num_frames' is not of the form field=value"):
        evaluate.main([*common, "quickstart", "--set", "num_frames"])


def test_styleganv_weights_are_the_users(tmp_path):
    options = evaluate.parse(["--real", "a", "--fake", "b", "--protocol", "larp", "--ckpt", str(tmp_path)])
    protocol = evaluate.choose_protocol(options)
    assert evaluate.weights_path(protocol, options) == tmp_path / "i3d_torchscript.pt"
