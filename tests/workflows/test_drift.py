"""Scores of long video by stretches: a set that gets worse shows it, and stretches are what they say."""

import json

import numpy as np
import pytest

from nbp import evaluate
from nbp.evaluation.features import ALONE, Clips
from nbp.workflows import drift, scoring_sets

pytestmark = pytest.mark.filterwarnings("ignore:the .* set has only")


def test_windows_lie_behind_one_another(make_frames):
    frames = make_frames(3, 0, num_frames=20)
    parts = drift.windows(Clips.from_array("a", frames, [0, 1, 2]), 6)
    assert [first for first, _ in parts] == [0, 6, 12]
    assert all(np.array_equal(part[number].numpy(), frames[number, first:first + 6])
               for first, part in parts for number in range(3))
    assert len({part.fingerprint for _, part in parts}) == 3 and parts[1][1].labels.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="stretches of 11 frames of a clip, the clips of a have 20: at least 22"):
        drift.windows(Clips.from_array("a", frames), 11)


def test_the_command_shows_drift(monkeypatch, network, make_frames, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring_sets, "load_network", lambda *_: network)
    monkeypatch.setattr(scoring_sets, "fetch_i3d", lambda folder: "none")
    long = make_frames(12, 1, num_frames=27)
    fading = np.linspace(1, 0.1, 27)[:, None, None, None]
    np.save("real.npy", make_frames(12, 0, num_frames=9))
    np.save("fake.npy", (long * fading).astype(np.uint8))
    arguments = ["--real", "real.npy", "--fake", "fake.npy", "--protocol", "quickstart", "--set", "frames=9",
                 "--device", "cpu", "--out", "out", "--drift"]
    with pytest.raises(ValueError, match="compares stretches of 20 frames of a clip, the clips of fake.npy have 27"):
        evaluate.main([*arguments, "--set", "frames=20"])
    assert not (tmp_path / "out").exists(), "before anything is scored"
    first_window = evaluate.main(arguments)[0]["scores"]["fvd"]
    found, = json.loads((tmp_path / "out" / "drift.json").read_text())
    assert found["first_frames"] == [0, 9, 18] and found["fvd"] == sorted(found["fvd"])
    assert found["fvd"][0] == first_window and found["change"] == found["fvd"][2] / found["fvd"][0] > 1.5
    assert "the last is" in capsys.readouterr().out


def test_a_stretch_needs_a_length(network, protocol, make_frames, tmp_path):
    clips = Clips.from_array("a", make_frames(3))
    with pytest.raises(ValueError, match="protocol test looks at whole clips: --set frames=N"):
        drift.report_drift(clips, [clips], protocol, network, ALONE, str(tmp_path), True, 0)


def test_a_first_stretch_that_is_the_real_one_has_no_ratio(monkeypatch, network, make_frames, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring_sets, "load_network", lambda *_: network)
    monkeypatch.setattr(scoring_sets, "fetch_i3d", lambda folder: "none")
    long = make_frames(12, 1, num_frames=18)
    np.save("fake.npy", long)
    np.save("real.npy", long[:, :9])
    evaluate.main(["--real", "real.npy", "--fake", "fake.npy", "--protocol", "quickstart", "--set", "frames=9",
                   "--device", "cpu", "--out", "out", "--drift"])
    found, = json.loads((tmp_path / "out" / "drift.json").read_text())
    assert found["fvd"][1] > found["fvd"][0] and (found["fvd"][0] > 0 or found["change"] is None)
