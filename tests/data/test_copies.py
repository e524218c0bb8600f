"""A distance to copies of a set that were turned, trimmed or made gifs is that to their frames as pictures."""

import av
import numpy as np
import pytest
from files import TIMES, make, turn
from PIL import Image
from videos import number_of

from nbp import evaluate
from nbp.data.video_io import write_video
from nbp.workflows import scoring_sets

COPIES = {   # suffix, arguments of `make`, what is done to the decoded pictures
    "turned": ("mp4", {"setup": turn(-90)}, lambda frames: np.rot90(frames, -1, (1, 2))),
    "trimmed": ("mp4", {"hidden": 12, "codec_options": {"g": "30", "bf": "2"}}, lambda frames: frames[12:]),
    "gif": ("gif", {}, lambda frames: frames),
}
NUM_CLIPS = 8


def write_copies(folder, kind):
    """Copies as files and, decoded by FFmpeg with none of what the container says, as pictures."""
    suffix, how, shown = COPIES[kind]
    for number in range(NUM_CLIPS):
        path = folder / kind / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        first, hidden = 4 * number, how.get("hidden", 0)
        make(path, times=TIMES[first:first + 24], shift_ms=-40 * (first + hidden),
             **{name: value for name, value in how.items() if name != "hidden"})
        with av.open(str(path), options={"ignore_editlist": "1"} if kind == "trimmed" else {}) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        if kind != "gif":
            assert [number_of(frame) for frame in frames] == list(range(first, first + 24))
        for place, frame in enumerate(shown(frames)):
            picture = folder / f"{kind}-pictures" / str(number) / f"{place:03d}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(frame)).save(picture)


def distances(folder, kinds):
    """{kind: distance of its files, of its pictures} to a set of other clips."""
    rng = np.random.default_rng(0)
    for number in range(NUM_CLIPS):
        noise = rng.integers(0, 256, (12, 12, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        write_video(folder / "real" / f"{number}.mp4", noise, 25, preset="ultrafast")
    found = {}
    for kind in kinds:
        write_copies(folder, kind)
        found[kind] = [evaluate.main([
            "--real", str(folder / "real"), "--fake", str(folder / name), "--protocol", "quickstart", "--set",
            "frames=9", "resolution=64", "--no-intervals", "--device", "cpu", "--cache", str(folder / "cache"),
        ])[0]["scores"]["fvd"]
            for name in (kind, f"{kind}-pictures")]
    return found


@pytest.fixture
def small(monkeypatch, network):
    monkeypatch.setattr(scoring_sets, "load_network", lambda *_: network)
    monkeypatch.setattr(scoring_sets, "fetch_i3d", lambda folder: "none")


@pytest.mark.filterwarnings("ignore:the .* set has only")
def test_a_copy_is_scored_as_its_frames_are(small, tmp_path):
    found = distances(tmp_path, COPIES)
    assert all(files == pictures > 0 for files, pictures in found.values())
    assert len({files for files, _ in found.values()}) == len(COPIES)


@pytest.mark.slow(seconds=90)
@pytest.mark.filterwarnings("ignore:the .* set has only")
def test_a_copy_is_scored_as_its_frames_are_by_the_real_network(i3d_path, tmp_path):
    found = distances(tmp_path, COPIES)
    assert all(files == pictures > 1 for files, pictures in found.values())
