import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nbp import reconstruct
from nbp.config import TokenizerConfig
from nbp.data import clip_set
from nbp.data.annotations import write_lists
from nbp.data.video_io import write_video
from nbp.evaluation.features import Extraction
from nbp.evaluation.lpips import LPIPS
from nbp.evaluation.protocols import to_video
from nbp.evaluation.quality import psnr
from nbp.tokenizer.model import Tokenizer
from nbp.workflows import reconstructing

pytestmark = pytest.mark.filterwarnings("ignore:the .* set has only")
NUM_CLIPS = 9


@pytest.fixture
def run(tmp_path, make_frames, network, monkeypatch, lpips_path):
    """Function(*arguments) that runs the command on a small set with a small tokenizer; files are in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reconstructing, "load_network", lambda *_: network)
    monkeypatch.setattr(reconstructing, "fetch_i3d", lambda folder: "none")
    for split, count in (("train", 1), ("val", NUM_CLIPS)):
        for number, clip in enumerate(make_frames(count, seed=count, size=32)):
            write_video(tmp_path / "data" / split / f"{number}.mp4", clip, 10)
    write_lists(tmp_path / "data", [("train/0.mp4", "a")], [(f"val/{n}.mp4", "a") for n in range(NUM_CLIPS)])
    (tmp_path / "data.yaml").write_text("name: test\nroot: data\ntrain_list: train.txt\nval_list: val.txt\n"
                                        "resolution: 32\nnum_frames: 5\n")
    torch.manual_seed(0)
    Tokenizer(TokenizerConfig([8, 8], [1, 1], [[2, 2, 2]], [4, 4])).save_pretrained(tmp_path / "tokenizer")
    common = ["--tokenizer", "tokenizer", "--data", "data.yaml", "--out", "out", "--batch-size", "2", "--device", "cpu",
              "--lpips", "alex", "--ckpt", str(lpips_path("alex").parent)]
    return lambda *arguments: reconstruct.main([*common, *arguments])


def test_command(run, tmp_path, capsys):
    run()
    clips, real = clip_set.load("out"), clip_set.read_arrays("out/real.npz")
    assert clips["video"].shape == real["video"].shape == (NUM_CLIPS, 5, 32, 32, 3)
    assert set(clips) == {"video", "indices", "label", "path"} and clips["indices"].shape == (NUM_CLIPS, 3, 16, 16)
    assert clips["path"].tolist() == real["path"].tolist() == [f"val/{n}.mp4" for n in range(NUM_CLIPS)]
    report = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert set(report["scores"]) == {"psnr", "ssim", "frame_difference_error", "lpips", "code_usage", "code_perplexity",
                                     "code_entropy_bits", "rfvd", "rkvd", "rfvd_interval_95"}
    assert report["reconstruction"]["split"] == "val" and len(report["reconstruction"]["tokenizer_hash"]) > 8
    assert len(report["lpips_weights_sha256"]) == 64
    expected = psnr(to_video(clips["video"]), to_video(real["video"])).mean().item()
    assert report["scores"]["psnr"] == pytest.approx(expected, rel=1e-6)
    assert report["real"]["clips"] == NUM_CLIPS and report["protocol"] == "quickstart"
    printed, row = capsys.readouterr().out, (tmp_path / "out" / "scores.md").read_text()
    assert "lpips      alex" in printed and row in printed + "\n" and "| lpips (alex) |" in row and row.count("\n") == 3


def test_interrupted_run_goes_on(run, monkeypatch, tmp_path):
    add, calls = clip_set.Parts.add, []

    def stop_at_third(self, numbers, **arrays):
        calls.append(numbers)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(self, numbers, **arrays)

    monkeypatch.setattr(clip_set.Parts, "add", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run()
    run()
    assert calls == [[0, 1], [2, 3], [4, 5], [4, 5], [6, 7], [8]]
    again = clip_set.load("out")["video"]
    run("--out", "fresh")
    assert np.array_equal(again, clip_set.load("fresh")["video"])


def test_first_clips_only(run):
    run("--max-clips", "8")
    assert len(clip_set.load("out")["video"]) == 8
    assert json.loads(Path("out/scores.json").read_text())["protocol"] == "quickstart+real=8+fake=8"


@pytest.mark.parametrize("arguments, name", [
    (["--split", "train", "--max-clips", "8"], "quickstart+real_split=train+real=8+fake=8"),
    (["--max-clips", "99"], "quickstart"),
    (["fps=12.5"], "quickstart+fps=12.5"),
    (["--protocol", "quickstart+fps=8", "fps=12.5"], "quickstart+fps=8"),
    (["--protocol", "quickstart+real=20+fake=20", "--allow-fewer"], "quickstart+real=9+fake=9"),
    (["--protocol", "magvit-ucf+frames=5", "--max-clips", "8"],
     "magvit-ucf+frames=5+real_split=val+real_clips=centre+clips_per_video=1+real=8+fake=8+repeats=1"),
])
def test_the_protocols_name_says_what_was_scored(run, tmp_path, arguments, name):
    rows = [f"{split}/{number}.mp4\ta\n" for split, count in (("val", NUM_CLIPS),) for number in range(count)]
    (tmp_path / "data" / "train.txt").write_text("".join(rows))
    run(*arguments)
    assert json.loads(Path("out/scores.json").read_text())["protocol"] == name


def test_a_list_that_the_protocol_cannot_be_met_with_is_refused_before_any_work(run):
    with pytest.raises(ValueError, match="asks for 20 real and 1 x 9 fake clips; .* --allow-fewer"):
        run("--protocol", "quickstart+real=20")
    with pytest.raises(ValueError, match="data.num_frames is 5; protocol quickstart.frames=9 needs 9"):
        run("--protocol", "quickstart+frames=9")
    assert not Path("out").exists()


def test_few_clips_have_all_scores_but_a_distance(run, tmp_path, capsys):
    """The case of https://github.com/microsoft/VidTok/issues/16: one's own few videos."""
    from PIL import Image

    (tmp_path / "data" / "val.txt").write_text("".join(f"val/{number}.mp4\ta\n" for number in range(4)))
    run()
    report = json.loads(Path("out/scores.json").read_text())
    assert report["scores"].keys() == {"psnr", "ssim", "frame_difference_error", "lpips", "code_usage",
                                       "code_perplexity", "code_entropy_bits"}
    assert report["notes"] == ["rfvd is left out: a Frechet distance needs at least 8 clips, these are 4"]
    assert len(clip_set.load("out")["video"]) == report["real"]["clips"] == 4
    assert report["notes"][0] in capsys.readouterr().out and "| psnr |" in Path("out/scores.md").read_text()
    sheet = Image.open("out/sheet.png")
    run("--out", "first", "--max-clips", "1")
    assert json.loads(Path("first/scores.json").read_text())["protocol"] == "quickstart+real=1+fake=1"
    assert sheet.height > 3.5 * Image.open("first/sheet.png").height
    with pytest.raises(ValueError, match="asks for 9 real"):
        run("--out", "other", "--protocol", "quickstart+real=9")


def test_without_the_distance_all_other_scores_are_the_same(run):
    run()
    whole = json.loads(Path("out/scores.json").read_text())["scores"]
    run("--out", "quick", "--no-fvd")
    quick = json.loads(Path("quick/scores.json").read_text())
    assert quick["notes"] == ["rfvd is left out: --no-fvd"]
    assert quick["scores"] == {name: value for name, value in whole.items() if not name.startswith(("rfvd", "rkvd"))}


def test_identical_clips_have_no_finite_psnr(network, protocol, lpips_path, make_frames, tmp_path):
    video = make_frames(9, size=32)
    changed = video.copy()
    changed[:, 0, 0, 0] = 0
    changed[0] = video[0]
    clip_set.save(tmp_path / "set", changed, np.zeros(9), indices=np.zeros((9, 1, 2, 2)))
    clip_set.write_arrays(tmp_path / "set" / "real.npz", {"video": video})
    model = LPIPS.from_file(lpips_path("alex"), "alex")
    report = reconstructing.score_folder(tmp_path / "set", 16, protocol, network, model, Extraction(tmp_path / "cache"))
    assert json.dumps(report, allow_nan=False) and report["scores"]["psnr"] is None
    assert "psnr is inf, stated as null" in report["notes"]


def test_clips_of_another_list_are_refused(run, tmp_path):
    run("--no-fvd", "--max-clips", "2")
    write_lists(tmp_path / "data", [("train/0.mp4", "a")], [(f"val/{n}.mp4", "a") for n in range(1, NUM_CLIPS)])
    with pytest.raises(ValueError, match=r"clips made with other settings \(annotations_sha256, files_sha256 differ\)"):
        run("--no-fvd", "--max-clips", "2")
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    del meta["annotations_sha256"], meta["files_sha256"]
    (tmp_path / "out" / "meta.json").write_text(json.dumps(meta))       # as before it was recorded
    run("--no-fvd", "--max-clips", "2")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    (tmp_path / "data.yaml").write_text((tmp_path / "data.yaml").read_text().replace("root: data", "root: elsewhere"))
    with pytest.raises(ValueError, match=r"other settings \(data differ\)"):       # the root is all that tells
        run("--no-fvd", "--max-clips", "2")


def test_bad_settings_are_refused(run):
    with pytest.raises(ValueError, match="--protocol nbp-gfvd-ucf: reconstructions are kept as 8 bit"):
        run("--protocol", "nbp-gfvd-ucf")
    with pytest.raises(ValueError, match="max_bad_files must be 0"):
        run("max_bad_files=1")
    with pytest.raises(ValueError, match="num_frame.*num_frames"):
        run("num_frame=5")
