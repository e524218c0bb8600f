import json

import numpy as np
import pytest
import torch

from nbp import evaluate
from nbp.data.video_io import write_video
from nbp.evaluation.features import Clips, Extraction
from nbp.evaluation.networks import FeatureNetwork, load_network
from nbp.evaluation.protocols import PROTOCOLS, get_protocol
from nbp.hub.fetch import FetchError
from nbp.workflows import scoring_sets, sensitivity

pytestmark = pytest.mark.filterwarnings("ignore:the .* set has only")


class Cells(torch.nn.Module):
    """Coarse means, contrasts and changes in time: answers to all kinds of damage, in milliseconds."""

    def forward(self, video):
        small = torch.nn.functional.adaptive_avg_pool2d(video.flatten(1, 2), 32).unflatten(1, video.shape[1:3])
        parts = [small, small.diff(dim=-1).abs(), small.diff(dim=2).abs()]
        return torch.cat([torch.nn.functional.adaptive_avg_pool3d(part, (1, 2, 2)).flatten(1) for part in parts], 1)


@pytest.fixture
def smooth():
    """Function(count, seed) -> uint8 (N,17,16,16,3): smooth patterns that drift."""
    def make(count, seed):
        rng = np.random.default_rng(seed)
        t, y, x = np.meshgrid(np.arange(17), np.arange(16), np.arange(16), indexing="ij")
        waves = [[np.sin((x * a + y * b + c * t) / 5 + d) for a, b, c, d in rng.normal(size=(3, 4))]
                 for _ in range(count)]
        return (127 + 100 * np.moveaxis(np.array(waves), 1, -1)).astype(np.uint8)
    return make


@pytest.mark.slow
def test_command(smooth, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scoring_sets, "load_network", stand_in)
    monkeypatch.setattr(scoring_sets, "fetch_i3d", lambda folder: "none")
    for name, seed in (("real", 0), ("fake", 1)):
        np.save(tmp_path / f"{name}.npy", smooth(11, seed))
    out = tmp_path / "out"
    evaluate.main(["--real", str(tmp_path / "real.npy"), "--fake", str(tmp_path / "fake.npy"), "--protocol",
                   "quickstart", "--sensitivity", "--sensitivity-clips", "8", "--out", str(out), "--cache",
                   str(tmp_path / "cache"),
                   "--device", "cpu", "--no-intervals"])
    report, printed = json.loads((out / "sensitivity.json").read_text()), capsys.readouterr().out
    rows = {row["preset"]: row for row in report["presets"]}
    assert set(rows) == set(PROTOCOLS)
    assert rows["tats-2048"]["protocol"] == "tats-2048+real=11+fake=11" and rows["tats-2048"]["fvd"] > 0
    assert rows["larp"]["left_out"] == "no weights" and "left out: no weights" in printed
    assert set(report["corruptions"]) == {"blur", "noise", "frozen", "shuffled", "shift", "mp4"}
    assert all(row["fvd"][-1] > 0 and len(row["fvd"]) == len(row["levels"]) for row in report["corruptions"].values())
    assert report["damaged_clips"] == 8 and report["curve"]["clips"][-1] == 11
    assert "note: fvd_infinite is unreliable: a set has fewer clips than the 36 features" in printed
    for name in ("presets", "sample_count", "corruptions"):
        assert (out / f"sensitivity_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_every_set_has_its_report_and_a_preset_names_the_rate_of_the_clips(smooth, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring_sets, "load_network", stand_in)
    monkeypatch.setattr(scoring_sets, "fetch_i3d", lambda folder: "none")
    monkeypatch.setattr(sensitivity, "CORRUPTIONS", {})
    monkeypatch.setattr(sensitivity, "mp4", lambda frames, level, rng: frames)
    for number, clip in enumerate(smooth(11, 0)):
        write_video(tmp_path / f"{number}.mp4", clip, 16, 18, "yuv444p")
    (tmp_path / "val.txt").write_text("".join(f"{number}.mp4\n" for number in range(11)))
    (tmp_path / "data.yaml").write_text(f"name: x\nroot: {tmp_path}\ntrain_list: val.txt\nval_list: val.txt\n"
                                        "resolution: 16\nnum_frames: 9\nfps: 8\n")
    fakes = [tmp_path / f"fake{seed}.npy" for seed in (1, 2)]
    for seed, path in enumerate(fakes, 1):
        np.save(path, smooth(11, seed)[:, :9])
    evaluate.main(["--real", str(tmp_path / "data.yaml"), "--fake", *map(str, fakes), "--protocol", "quickstart",
                   "--sensitivity", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--device",
                   "cpu", "--no-intervals"])
    for number, path in enumerate(fakes):
        report = json.loads((tmp_path / f"out/sensitivity_{number}.json").read_text())
        scored = [row for row in report["presets"] if "protocol" in row]
        assert report["fake"] == str(path) and scored
        assert all("+fps=8" in row["protocol"] for row in scored)


def stand_in(name, *_):
    if name == "i3d-styleganv":
        raise ValueError("no weights")
    return FeatureNetwork(name, Cells(), "0")


def test_weights_that_cannot_be_fetched_leave_their_presets_out(smooth):
    def load(protocol):
        raise FetchError("the package index cannot be reached")

    pair = Clips.from_array("real", smooth(8, 0)), Clips.from_array("fake", smooth(8, 1))
    rows = sensitivity.preset_scores(PROTOCOLS.values(), lambda protocol: pair, load, Extraction())
    assert rows and all("cannot be reached" in row["left_out"] for row in rows)


def test_a_metric_that_does_not_answer_is_found_out(smooth, tmp_path):
    class Blind(torch.nn.Module):
        def forward(self, video):
            return video[:, :, 0].mean((2, 3))   # sees the first frame only

    found = sensitivity.responses(Clips.from_array("set", smooth(8, 0)), get_protocol("quickstart"),
                                  FeatureNetwork("i3d-tf", Blind(), "0"))
    assert not found["frozen"]["monotone"] and found["frozen"]["fvd"] == pytest.approx([0, 0, 0], abs=1e-9)
    assert "DOES NOT RISE" in "\n".join(sensitivity.lines(
        {"presets": [], "curve": {"clips": [], "fvd": [], "infinite": 0.0, "notes": []}, "corruptions": found,
         "protocol": "p",
         "real": "r", "fake": "f", "damaged_clips": 10}))


@pytest.mark.slow(seconds=150)
def test_the_real_network_answers_to_every_damage_of_natural_clips(natural_frames, i3d_path, tmp_path):
    protocol = get_protocol("nbp-rfvd+frames=16")
    found = sensitivity.responses(Clips.from_array("natural", natural_frames[:12]), protocol,
                                  load_network(protocol.network, i3d_path))
    for name, row in found.items():
        print(f"{name}: {dict(zip(row['levels'], (round(value, 2) for value in row['fvd'])))}")
        assert row["monotone"], f"{name}: {row}"
