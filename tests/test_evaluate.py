import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nbp import evaluate
from nbp.data.video_io import write_video
from nbp.evaluation.protocols import PROTOCOLS, get_protocol
from nbp.workflows import scoring_sets

pytestmark = pytest.mark.filterwarnings("ignore:the .* set has only")


@pytest.fixture
def fast(monkeypatch, network, tmp_path):
    """The command with a network that needs no weights, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring_sets, "load_network", lambda *_: network)
    monkeypatch.setattr(scoring_sets, "fetch_i3d", lambda folder: "none")


def test_command(fast, make_frames, tmp_path, capsys):
    for name, seed in (("real", 0), ("fake", 1), ("other", 2)):
        np.save(tmp_path / f"{name}.npy", make_frames(12, seed))
    real, fake, other = (str(tmp_path / f"{name}.npy") for name in ("real", "fake", "other"))
    arguments = ["--real", real, "--fake", fake, other, "--protocol", "quickstart", "--set", "frames=9",
                 "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    reports = evaluate.main(arguments)
    printed = capsys.readouterr().out
    assert "protocol   quickstart+frames=9" in printed and "network = i3d-tf" in printed and "| fvd |" in printed
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == reports and len(reports) == 2
    assert evaluate.main(arguments)[0]["scores"] == reports[0]["scores"]


def test_the_rate_of_a_data_config_is_part_of_the_name(fast, make_frames, tmp_path, monkeypatch):
    for number, clip in enumerate(make_frames(9, num_frames=17, size=32)):
        write_video(tmp_path / "videos" / f"{number}.mp4", clip, 10)
    (tmp_path / "videos" / "all.txt").write_text("".join(f"{number}.mp4\t\n" for number in range(9)))
    (tmp_path / "data.yaml").write_text("name: t\nroot: videos\ntrain_list: all.txt\nval_list: all.txt\n"
                                        "resolution: 32\nnum_frames: 9\nfps: 5\n")
    np.save(tmp_path / "fake.npy", make_frames(9, 5, size=32))
    [report] = evaluate.main([
        "--real", "data.yaml", "--fake", "fake.npy", "--protocol", "tats-2048", "--set", "network=i3d-tf",
        "num_frames=9", "--allow-fewer", "--device", "cpu", "--out", "out"])
    assert "fps=5" in report["protocol"] and report["protocol_fields"]["fps"] == 5


def test_weights_serve_the_network_that_is_asked_for(tmp_path):
    rules = get_protocol("larp").replace(network="i3d-port")
    assert scoring_sets.Networks(rules, "mine.pt", str(tmp_path), "cpu", False).path(rules) == "mine.pt"


def test_command_refuses(fast, make_frames, tmp_path):
    np.save(tmp_path / "real.npy", make_frames(12, 0))
    real = str(tmp_path / "real.npy")
    common = ["--real", real, "--fake", real, "--cache", str(tmp_path / "c"), "--device", "cpu", "--protocol"]
    with pytest.raises(ValueError, match="have the same content"):
        evaluate.main([*common, "quickstart"])
    with pytest.raises(ValueError, match="unknown protocol 'quickstrat'"):
        evaluate.main([*common, "quickstrat"])
    with pytest.raises(ValueError, match="'num_frames' is not of the form field=value"):
        evaluate.main([*common, "quickstart", "--set", "num_frames"])


@pytest.mark.parametrize("preset", PROTOCOLS)
def test_the_same_folder_on_both_sides_is_refused_under_every_preset(fast, make_frames, tmp_path, monkeypatch, preset):
    write_video(tmp_path / "videos" / "a.mp4", make_frames(1, num_frames=17)[0], 25)
    shutil.copytree(tmp_path / "videos", tmp_path / "copy")
    for name in ("train", "val"):
        (tmp_path / "videos" / f"{name}.txt").write_text("a.mp4\t\n")
    (tmp_path / "data.yaml").write_text(f"name: test\nroot: {tmp_path / 'videos'}\ntrain_list: train.txt\n"
                                        "val_list: val.txt\nresolution: 16\nnum_frames: 17\n")
    for real, fake in (("videos", "videos"), ("videos", "copy"), ("videos/val.txt", "copy"), ("data.yaml", "copy")):
        with pytest.raises(ValueError, match="real set .* and fake set .* have the same content"):
            evaluate.main(["--real", str(tmp_path / real), "--fake", str(tmp_path / fake), "--protocol", preset,
                           "--allow-fewer", "--device", "cpu"])


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(fast, make_frames, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring_sets, "evaluate_sets", lambda *_, **__: pytest.fail("work was begun"))
    for seed, name in enumerate(("a", "b")):
        np.save(f"{name}.npy", make_frames(12, seed))
    Path("taken").write_text("")
    for flag in ("--out", "--cache"):
        with pytest.raises(ValueError, match=f"{flag} taken cannot be written: .*taken"):
            evaluate.main(["--real", "a.npy", "--fake", "b.npy", "--protocol", "quickstart", "--device", "cpu", flag,
                           "taken"])


def test_videos_of_several_sizes(fast, make_frames, tmp_path, capsys):
    """As those of Kinetics; the case of https://github.com/Yaziwel/FEAT/issues/4."""
    for number in range(16):
        wide = make_frames(1, number, size=48)[0][:, :32]
        write_video(tmp_path / "real" / f"{number:02d}.mp4", wide if number % 2 else wide.swapaxes(1, 2), 25)
        write_video(tmp_path / "fake" / f"{number:02d}.mp4", make_frames(1, 50 + number, size=64)[0], 25)
    command = ["--real", "real", "--fake", "fake", "--protocol", "quickstart", "--set", "frames=9", "--no-intervals",
               "--device", "cpu", "--out", "out", "--cache", "cache"]
    with pytest.raises(ValueError, match="48x32 pixels and clips of fake 64x64.* same part of the picture, --set re"):
        evaluate.main(command)
    [report] = evaluate.main([*command[:8], "resolution=32", *command[8:]])
    assert report["protocol"] == "quickstart+frames=9+resolution=32" and report["scores"]["fvd"] > 0
    assert "real has clips of several sizes, which are all brought to 32 pixels; that of the first is stated" in (
        report["notes"])
    assert not any("fake has clips" in note for note in report["notes"])
    assert any("both are squashed to a square, which is right only where the latter were squashed" in note
               for note in report["notes"])


@pytest.mark.parametrize("preset", ["quickstart", "nbp-rfvd", "tats-2048", "larp"])
def test_widescreen_clips_are_scored_as_they_are(fast, network, make_frames, tmp_path, monkeypatch, preset):
    """A data config of [height, width] against clips of that size, which no option brings to a square first."""
    from nbp.data import clip_set

    named = dataclasses.replace(network, name=get_protocol(preset).network)
    monkeypatch.setattr(scoring_sets, "load_network", lambda *_: named)
    monkeypatch.setattr(scoring_sets.Networks, "path", lambda *_: Path("none"))
    for number in range(12):
        write_video(tmp_path / "videos" / f"{number:02d}.mp4", make_frames(1, number, num_frames=17, size=48)[0], 25)
    for name in ("train", "val"):
        (tmp_path / "videos" / f"{name}.txt").write_text("".join(f"{number:02d}.mp4\t\n" for number in range(12)))
    (tmp_path / "data.yaml").write_text("name: wide\nroot: videos\ntrain_list: train.txt\nval_list: val.txt\n"
                                        "resolution: [16, 48]\nnum_frames: 17\n")
    clip_set.save(tmp_path / "fake", make_frames(12, 50, num_frames=17, size=48)[:, :, :16], np.full(12, -1))
    common = ["--fake", "fake", "--protocol", preset, "--allow-fewer", "--no-intervals", "--device", "cpu"]
    [report] = evaluate.main(["--real", "data.yaml", *common])
    assert report["protocol"].startswith(preset) and report["scores"]["fvd"] > 0
    clip_set.save(tmp_path / "square", make_frames(12, 60, num_frames=17, size=48), np.full(12, -1))
    with pytest.raises(ValueError, match="16x48 pixels and clips of square 48x48|48x48 .* 16x48"):
        evaluate.main(["--real", "data.yaml", "--fake", "square", *common[2:]])


def test_styleganv_weights_are_the_users(tmp_path):
    larp = get_protocol("larp")
    networks = scoring_sets.Networks(larp, None, str(tmp_path), "cpu", False)
    assert networks.path(larp) == tmp_path / "i3d_torchscript.pt"


def test_a_run_is_scored_set_by_set(fast, make_frames, tmp_path, capsys):
    from nbp.data import clip_set

    run = tmp_path / "run"
    for number, folder in enumerate(("generated", "baselines/frozen", "reconstruction")):
        clip_set.save(run / folder, make_frames(12, number), np.full(12, -1))
    np.savez(run / "reconstruction" / "real.npz", video=make_frames(12, 9))
    common = ["--protocol", "quickstart", "--set", "frames=9", "--out", str(tmp_path / "out"),
              "--cache", str(tmp_path / "cache"), "--device", "cpu", "--no-intervals"]
    reports = evaluate.main(["--run", str(run), *common])
    assert len(reports) == 3 and len({report["scores"]["fvd"] for report in reports}) == 3
    for set_aside in ("generated.old", "tokenizer.old/samples"):
        clip_set.save(run / set_aside, make_frames(12, 3), np.full(12, -1))
    assert [report["fake"]["name"] for report in evaluate.main(["--run", str(run), *common])] == [
        report["fake"]["name"] for report in reports]
    with pytest.raises(ValueError, match="is not a finished run: expected .*real.npz"):
        evaluate.main(["--run", str(tmp_path), *common])
    with pytest.raises(SystemExit):
        evaluate.main(["--run", str(run), "--real", "a", "--fake", "b", *common])
    assert "give either --run, or --real and --fake" in capsys.readouterr().err
