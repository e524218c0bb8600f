import dataclasses
import json
import subprocess

import numpy as np
import pytest
import torch

import nbp
from nbp.evaluation import scoring
from nbp.evaluation.features import Clips, Extraction, extract_features
from nbp.evaluation.fvd import frechet_distance
from nbp.evaluation.networks import FeatureNetwork
from nbp.evaluation.scoring import choose_parts, evaluate_sets, nearest_centroid_accuracy
from nbp.evaluation.statement import device_name, finite, markdown_table, provenance, table
from nbp.workflows.clip_sources import Cut, open_clips

pytestmark = pytest.mark.filterwarnings("ignore:the .* set has only")


@pytest.fixture
def sets(make_frames):
    """A real set and two fake ones, the second darker and so farther away."""
    arrays = make_frames(30, 0), make_frames(30, 1), make_frames(30, 2, top=128)
    return [Clips.from_array(name, array) for name, array in zip(("real", "near", "far"), arrays)]


def test_a_commit_is_this_code_s_or_unknown(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "another project"], check=True)
    for folder, known in ((tmp_path / "nbp", True), (tmp_path / "site-packages" / "nbp", False)):
        folder.mkdir(parents=True)
        monkeypatch.setattr(nbp, "__path__", [str(folder)])
        assert (provenance()["commit"] != "unknown") == known


def test_scoring_leaves_the_caller_s_random_numbers_alone(sets, network, protocol):
    before = torch.get_rng_state()
    evaluate_sets(sets[0], sets[1:], protocol, network)
    assert torch.equal(torch.get_rng_state(), before)


def test_short_clips_are_refused_before_anything_is_extracted(make_frames, network, protocol, monkeypatch):
    monkeypatch.setattr(scoring, "extract_features", None)
    long, short = Clips.from_array("long", make_frames(30)), Clips.from_array("short", make_frames(30, 1)[:, :5])
    with pytest.raises(ValueError, match="clips of short have 5 frames; protocol .* needs 9"):
        evaluate_sets(long, [short], protocol.replace(num_frames=9), network)


@pytest.mark.parametrize("clips", [np.zeros((8, 16, 32, 32, 3), np.float32), [1, 2], None,
                                   torch.zeros(8, 16, 3, 32, 32)])
def test_clips_of_another_form_are_told(clips):
    with pytest.raises(ValueError, match=r"the real clips must be float \(N, 3, T, H, W\) in \[0, 1\] or uint8"):
        nbp.fvd(clips, torch.zeros(8, 3, 16, 32, 32), device="cpu")


def test_clips_of_the_same_videos_are_pairs(make_frames, network, protocol):
    frames, names = make_frames(30, 0), [f"{number}.mp4" for number in range(30)]
    noisy = (frames * 0.99).astype(np.uint8)

    def interval(*paths):
        real, fake = (Clips.from_array(name, array, paths=own) for name, array, own in
                      zip(("real", "fake"), (frames, noisy), paths))
        [report] = evaluate_sets(real, [fake], protocol, network, intervals=True, allow_fewer=True)
        return report["scores"]["fvd_folds_mean"] if "fvd_folds_mean" in report["scores"] else report["scores"]["kvd"]

    assert interval(names, names) != interval(names, names[::-1]) == interval(names, None) == interval(
        [""] * 30, [""] * 30)


def test_many_fake_sets_against_one(sets, network, protocol, tmp_path):
    near, far = evaluate_sets(sets[0], sets[1:], protocol, network, Extraction(tmp_path))
    assert 0 <= near["scores"]["fvd"] < far["scores"]["fvd"]
    expected = frechet_distance(*(extract_features(clips, network, protocol) for clips in sets[:2]))
    assert near["scores"]["fvd"] == pytest.approx(expected, rel=1e-5)
    assert far["fake"] == {"name": "far", "clips": 30, "of": 30, "frames": 9, "height": 16, "width": 16,
                           "dtype": "uint8", "fps": None, "sha256": sets[2].fingerprint}
    assert near["protocol"] == "test" and near["protocol_fields"]["fit"] == "squash"
    assert {"weights_sha256", "seed", "versions", "commit"} <= set(near) and near["device"] == "cpu"
    assert {"nbp", "torch", "numpy", "av", "python"} == set(near["versions"])
    assert any("biased upwards" in note for note in near["notes"])
    assert json.loads(json.dumps(near)) == near


def test_output_states_the_protocol(sets, network, protocol, tmp_path):
    [report] = evaluate_sets(sets[0], sets[1:2], protocol, network, Extraction(tmp_path), intervals=True)
    text = table(report)
    for part in ("protocol   test", "quantize = round", "near: 30 of 30 clips, 9 frames of 16x16 uint8, sha256", "fvd ",
                 "fvd_interval_95", "biased", "device cpu"):
        assert part in text
    other = report | {"scores": {"psnr": None, "lpips": 0.5}, "lpips_net": "alex"}
    header, rule, *rows = markdown_table([other, report]).splitlines()
    assert len(rows) == 2 and len({line.count("|") for line in (header, rule, *rows)}) == 1
    assert header.startswith("| set | protocol | fake / real clips | psnr | lpips (alex) | fvd |")
    assert rows[0].startswith("| near | test | 30 / 30 | - | 0.5 | - |") and "lpips      alex" in table(other)


def test_values_that_json_cannot_hold():
    scores, notes = finite({"psnr": float("inf"), "interval": [0.0, float("nan")], "ssim": 1.0})
    assert scores == {"psnr": None, "interval": None, "ssim": 1.0} and json.dumps(scores, allow_nan=False)
    assert notes == ["psnr is inf, stated as null", "interval is [0.0, nan], stated as null"]


def test_unknown_weights_are_stated(sets, network, protocol):
    unknown = dataclasses.replace(network, note="weights w.pt: its sha256 12 is not that of StyleGAN-V's file",
                                  tensors_sha256="cd")
    [report] = evaluate_sets(sets[0], sets[1:2], protocol, unknown)
    assert unknown.note in report["notes"] and f"note: {unknown.note}" in table(report)
    assert report["weights_tensors_sha256"] == "cd" and report["weights_sha256"] == network.weights_sha256


def test_what_of_files_is_scored_is_stated(network, protocol, make_frames, tmp_path):
    from nbp.data.video_io import write_video

    for number, clip in enumerate(make_frames(20, num_frames=20)):
        write_video(tmp_path / ("real" if number < 10 else "fake") / f"{number}.mp4", clip, (8, 10)[number % 2])
    asked = protocol.replace(num_frames=9)
    for cut, rates in ((Cut(9, fps=5.0), [5.0]), (Cut(9), [8.0, 10.0])):
        real, fake = open_clips(tmp_path / "real", cut), open_clips(tmp_path / "fake", Cut(9))
        [report] = evaluate_sets(real, [fake], asked, network)
        assert report["real"]["fps"] == rates and report["fake"]["fps"] == [8.0, 10.0]
        assert f"16x16 uint8 at {', '.join(f'{rate:g}' for rate in rates)} fps" in table(report)


def test_limit_of_few_clips_is_marked(sets, network, protocol, make_frames):
    [report] = evaluate_sets(sets[0], sets[1:2], protocol, network, intervals=True)
    assert "fvd_infinite" not in report["scores"]   # 30 clips are too few for a line
    real, fake = (Clips.from_array(name, make_frames(42, seed)) for name, seed in (("real", 0), ("fake", 1)))
    wide = FeatureNetwork("i3d-tf", Wide(), "0")
    for feature_network, marked in ((network, False), (wide, True)):
        [report] = evaluate_sets(real, [fake], protocol, feature_network, intervals=True)
        assert any("fvd_infinite is unreliable" in note for note in report["notes"]) == marked


class Wide(torch.nn.Module):
    """60 features."""

    def forward(self, video):
        return torch.nn.functional.adaptive_avg_pool3d(video, (5, 2, 2)).flatten(1)


def test_same_content_is_refused(sets, network, protocol, make_frames):
    copy = Clips.from_array("copy", make_frames(30, 0))
    with pytest.raises(ValueError, match="real set real and fake set copy have the same content"):
        evaluate_sets(sets[0], [copy], protocol, network)


def test_sets_that_reach_the_network_in_other_ways_are_refused(sets, network, protocol, make_frames):
    larger = Clips.from_array("larger", make_frames(30, 1, size=32))
    with pytest.raises(ValueError, match="real have 16x16 pixels and clips of larger 32x32: .*--set resolution=N"):
        evaluate_sets(sets[0], [larger], protocol, network)
    assert evaluate_sets(sets[0], [larger], protocol.replace(resolution=16), network)
    longer = Clips.from_array("longer", make_frames(30, 1, num_frames=10))
    with pytest.raises(ValueError, match="real have 9 frames and clips of longer 10; --set frames=N"):
        evaluate_sets(sets[0], [longer], protocol, network)
    assert evaluate_sets(sets[0], [longer], protocol.replace(frames=9), network)


def test_counts_of_the_protocol(sets, network, protocol):
    asked = protocol.replace(num_real=20, num_fake=100)
    with pytest.raises(ValueError, match="asks for 20 real and 1 x 100 fake clips; real has 30 and near 30.*allow-f"):
        evaluate_sets(sets[0], sets[1:2], asked, network)
    [report] = evaluate_sets(sets[0], sets[1:2], asked, network, allow_fewer=True)
    assert report["protocol"] == "test+real=20+fake=30"
    assert (report["real"]["clips"], report["fake"]["clips"]) == (20, 30)


def test_repeats_use_disjoint_fakes(sets, network, protocol):
    [report] = evaluate_sets(sets[0], sets[1:2], protocol.replace(num_fake=10, repeats=3), network)
    assert report["fake"]["clips"] == 10 and report["scores"]["fvd_deviation"] > 0


def test_every_repeat_of_a_set_ordered_by_class_is_a_mixture(network, protocol, make_frames):
    real = np.concatenate([make_frames(30, 0, top=80), make_frames(30, 1)])
    ordered = np.concatenate([make_frames(30, 2, top=80), make_frames(30, 3)])
    three = protocol.replace(num_fake=20, repeats=3)
    [report] = evaluate_sets(Clips.from_array("real", real), [Clips.from_array("fake", ordered)], three, network)
    alone = Clips.from_array("one class", ordered[:20])
    [one_class] = evaluate_sets(Clips.from_array("real", real), [alone], protocol, network)
    assert report["scores"]["fvd"] < 0.3 * one_class["scores"]["fvd"]
    parts = choose_parts(60, 20, 3, seed=0)
    assert sorted(np.concatenate(parts)) == list(range(60)) and all((np.diff(part) > 0).all() for part in parts)
    assert all(5 <= (part < 30).sum() <= 15 for part in parts)


def test_subsets_follow_the_seed(sets, network, protocol, tmp_path):
    few = protocol.replace(num_real=12, num_fake=12)
    first, again, other = [evaluate_sets(sets[0], sets[1:2], few, network, Extraction(tmp_path),
                                         seed=seed)[0]["scores"]["fvd"]
                           for seed in (0, 0, 1)]
    assert first == again != other


def test_too_few_clips_for_any_distance_are_refused_before_any_work(sets, network, protocol, make_frames, tmp_path):
    tiny = Clips.from_array("tiny", make_frames(5, 3))
    with pytest.raises(ValueError, match="the fake set has 5 clips; a Frechet distance needs at least 8"):
        evaluate_sets(sets[0], [sets[1], tiny], protocol, network, Extraction(tmp_path))
    with pytest.raises(ValueError, match="the real set has 5 clips; a Frechet distance needs at least 8"):
        evaluate_sets(tiny, sets[1:], protocol.replace(num_real=20), network, Extraction(tmp_path), allow_fewer=True)
    with pytest.raises(ValueError, match="the fake set has 7 clips; a Frechet distance needs at least 8"):
        evaluate_sets(sets[0], sets[1:], protocol.replace(repeats=4), network, Extraction(tmp_path))
    assert not list(tmp_path.iterdir())


def test_labelled_sets_get_a_class_accuracy(network, protocol, make_frames):
    frames = np.concatenate([make_frames(10, 0, top=60), make_frames(10, 1)])
    other = np.concatenate([make_frames(10, 2, top=60), make_frames(10, 3)])
    labels = [0] * 10 + [1] * 10
    [report] = evaluate_sets(Clips.from_array("real", frames, labels), [Clips.from_array("fake", other, labels)],
                             protocol, network)
    assert report["scores"]["class_accuracy"] == 1
    other_classes = Clips.from_array("fake", other, [0] * 10 + [7] * 9 + [9])
    [report] = evaluate_sets(Clips.from_array("real", frames, labels), [other_classes], protocol, network)
    assert "class_accuracy" not in report["scores"] and report["scores"]["fvd"] > 0
    assert "class_accuracy is left out: fake has classes that the scored real clips lack: 7, 9" in report["notes"]


def test_only_the_scored_clips_are_classified(network, protocol, make_frames):
    """Labels of the other ones are wrong."""
    real, fake = make_frames(40, 0), make_frames(40, 2)
    chosen = choose_parts(40, 20, 1, seed=0)[0]
    for frames in (real, fake):
        frames[chosen[:10]] //= 4
    labels = np.full(40, 3)
    labels[chosen] = [0] * 10 + [1] * 10
    [report] = evaluate_sets(Clips.from_array("real", real, labels), [Clips.from_array("fake", fake, labels)],
                             protocol.replace(num_real=20, num_fake=20), network)
    assert report["scores"]["class_accuracy"] == 1


def test_interval_is_of_the_mean_over_repeats(sets, network, protocol):
    [report] = evaluate_sets(sets[0], sets[1:2], protocol.replace(num_fake=10, repeats=3), network, intervals=True)
    low, high = report["scores"]["fvd_interval_95"]
    assert low < report["scores"]["fvd"] < high


def test_nearest_centroid():
    train = np.array([[0.0, 0], [0, 2], [10, 0], [10, 2]])
    assert nearest_centroid_accuracy(train, [3, 3, 7, 7], [[1, 1], [9, 1], [2, 1], [8, 1]], [3, 7, 7, 7]) == 0.75
    # A feature with a large scale must not decide alone.
    scaled = train * [1e-3, 1]
    assert nearest_centroid_accuracy(scaled, [3, 3, 7, 7], np.array([[1e-3, 5], [9e-3, -5]]), [3, 7]) == 1
    with pytest.raises(ValueError, match="labels without training clips: 4"):
        nearest_centroid_accuracy(train, [3, 3, 7, 7], train, [3, 3, 7, 4])
    with pytest.raises(ValueError, match="4 and 4 clips, 3 and 4 labels"):
        nearest_centroid_accuracy(train, [3, 3, 7], train, [3, 3, 7, 7])


def test_each_gpu_is_called_by_its_own_name(monkeypatch):
    names = {None: "first", 0: "first", 1: "second"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[torch.device(device).index])
    assert [device_name(device) for device in ("cpu", "cuda", "cuda:1", torch.device("cuda", 0))] == [
        "cpu", "first", "second", "first"]
