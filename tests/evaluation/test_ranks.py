"""One score however the work is cut: batches, processes, interruptions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nbp.evaluation import features
from nbp.evaluation.features import Clips, Extraction
from nbp.evaluation.networks import load_network
from nbp.evaluation.protocols import get_protocol
from nbp.evaluation.scoring import evaluate_sets

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytestmark = pytest.mark.filterwarnings("ignore:the .* set has only")


def evaluate_by_ranks(ranks, real, fake, folder, *options, **environment):
    """What a real torchrun of `nbp.evaluate` with a network that needs no weights printed, errors last."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
               str(HERE / "scored_by_ranks.py"), "--real", str(real), "--fake", str(fake), "--device", "cpu",
               "--out", str(folder / "out"), "--cache", str(folder / "cache"), *options]
    paths = os.pathsep.join([str(ROOT), str(HERE), str(ROOT / "tests")])
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800,
                            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment)
    assert result.returncode == 0 or environment, result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.fixture
def score(make_frames, tmp_path):
    """Function(ranks, batch size, folder, environment) -> scores, None if there are none."""
    np.save(tmp_path / "real.npy", make_frames(23, 0))
    np.save(tmp_path / "fake.npy", make_frames(19, 1))

    def run(ranks, batch_size, folder, **environment):
        evaluate_by_ranks(ranks, tmp_path / "real.npy", tmp_path / "fake.npy", tmp_path / folder, "--protocol",
                          "quickstart", "--batch-size", str(batch_size), **environment)
        path = tmp_path / folder / "out" / "scores.json"
        return json.loads(path.read_text())[0]["scores"] if path.is_file() else None
    return run


def alike(scores, expected):
    assert scores.keys() == expected.keys()
    for name in expected:
        assert scores[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-9), name


@pytest.mark.slow
def test_ranks_batches_and_interruptions(score, tmp_path):
    expected = score(1, 16, "one")
    assert expected["fvd"] > 0
    alike(score(2, 3, "two"), expected)
    alike(score(3, 1, "three"), expected)
    assert score(2, 2, "stopped", STOP_AFTER="11") is None
    kept = len(list((tmp_path / "stopped" / "cache").rglob("*.npy")))
    assert 0 < kept < 9   # 5 chunks of the real set and 4 of the fake one
    alike(score(3, 16, "stopped"), expected)


@pytest.mark.slow
def test_sensitivity_and_memorisation_by_ranks(make_frames, tmp_path):
    """One clip is too short for one preset, and one rank alone meets it: all leave that preset out and go on."""
    from nbp.data.video_io import write_video

    for seed, (name, count) in enumerate({"real": 11, "fake": 9, "train": 10}.items()):
        for number, clip in enumerate(make_frames(count, seed, num_frames=17)):
            short = (name, number) == ("real", 6)   # in the chunk of rank 1, and none that is looked at beforehand
            write_video(tmp_path / name / f"{number}.mp4", clip[:8] if short else clip, 8, preset="ultrafast")
    reports = {}
    for ranks in (1, 2):
        folder = tmp_path / f"by{ranks}"
        printed = evaluate_by_ranks(ranks, tmp_path / "real", tmp_path / "fake", folder, "--protocol",
                                    "quickstart+frames=9", "--batch-size", "5", "--sensitivity", "--train",
                                    str(tmp_path / "train"))
        reports[ranks] = {name: json.loads((folder / "out" / f"{name}.json").read_text())
                          for name in ("sensitivity", "memorisation")}
        assert printed.count("wrote ") == 3 and printed.count("damage to 11 real clips") == 1
    one, two = (report["sensitivity"] for report in reports.values())
    left_out = {row["preset"]: row["left_out"] for row in two["presets"] if "left_out" in row}
    assert set(left_out) == {"nbp-rfvd", "quickstart"}
    assert "6.mp4: too short: 8 frames give 8 of 17 clip frames" in left_out["nbp-rfvd"]
    same(two, one)
    same(reports[2]["memorisation"], reports[1]["memorisation"])


def same(got, expected):
    """Equal documents, numbers to 1e-6; of the code's commit, which may move while they are made, nothing is said."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        got, expected = ([value for name, value in document.items() if name != "commit"]
                         for document in (got, expected))
    if isinstance(expected, list):
        assert len(got) == len(expected)
        for x, y in zip(got, expected):
            same(x, y)
    else:
        assert got == (pytest.approx(expected, rel=1e-6, abs=1e-6) if isinstance(expected, float) else expected)


@pytest.mark.slow(seconds=90)
def test_batch_sizes_with_the_real_network(natural_frames, i3d_path, tmp_path, monkeypatch):
    """Also after an interruption in the middle of the second set."""
    monkeypatch.setattr(features, "CHUNK", 4)
    protocol = get_protocol("nbp-rfvd+frames=16")
    network = load_network(protocol.network, i3d_path)
    parts = {"real": natural_frames[:9], "fake": natural_frames[9:18]}
    sets = [Clips.from_array(name, part) for name, part in parts.items()]

    def scores(batch_size, cache=None):
        [report] = evaluate_sets(sets[0], sets[1:], protocol, network, Extraction(cache, batch_size), intervals=True)
        return report["scores"]

    expected = scores(16)
    for batch_size in (1, 3):
        got = scores(batch_size)
        print(f"batch size {batch_size}: fvd differs by {abs(got['fvd'] / expected['fvd'] - 1):.1e} relative")
        alike(got, expected)

    forward, calls = network.module.forward, []

    def interrupted(video):
        calls.append(len(video))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return forward(video)

    network.module.forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        scores(3, tmp_path)
    network.module.forward = forward
    alike(scores(1, tmp_path), expected)


@pytest.mark.slow
def test_scripts(natural_frames, i3d_path, tmp_path):
    """`scripts/fvd.sh` with two processes on video files, as a user calls it."""
    from nbp.data.video_io import write_video

    for number, clip in enumerate(natural_frames[:20]):
        write_video(tmp_path / ("real" if number % 2 else "fake") / f"{number:02d}.mp4", clip, 8, crf=1)
    command = ["bash", "scripts/fvd.sh", "2", "1", str(tmp_path / "real"), str(tmp_path / "fake"), "--set", "frames=9",
               "clips_per_video=1", "--allow-fewer", "--device", "cpu", "--no-intervals", "--ckpt",
               str(i3d_path.parent), "--out",
               str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    [report] = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert report["protocol"] == "tats-2048+frames=9+clips_per_video=1+real=10+fake=10" and report["scores"]["fvd"] > 0
    assert f"protocol   {report['protocol']}" in result.stdout
    usage = subprocess.run(["bash", "scripts/fvd.sh", "2"], cwd=ROOT, capture_output=True, text=True)
    assert usage.returncode and "usage: fvd.sh NGPUS NNODES REAL FAKE" in usage.stderr
