"""The generate command: the same clips whatever the batches and ranks, resumable, and clear about what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from nbp import generate
from nbp.config import GeneratorConfig, TokenizerConfig
from nbp.data import clip_set
from nbp.data.annotations import write_lists
from nbp.data.video_io import probe, read_frames, write_video
from nbp.data.video_writing import GrowingVideo
from nbp.generator.model import Generator
from nbp.hub.about import About, write_about
from nbp.system import distributed
from nbp.system.files import held
from nbp.tokenizer.model import Tokenizer
from nbp.workflows import generating

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Arguments that name a tiny tokenizer and a tiny label-conditioned generator."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    Tokenizer(TokenizerConfig([8, 8, 8, 16], [1, 1, 1, 1], [[1, 2, 2], [2, 2, 2], [2, 2, 2]],
                              [5, 5, 5])).save_pretrained(folder / "tokenizer")
    Generator(GeneratorConfig(2, 2, 32, 125, [5, 4, 4], [1, 1, 4], "label", "hybrid", num_condition_ids=3,
                              condition_len=1)).save_pretrained(folder / "generator")
    return ["--tokenizer", str(folder / "tokenizer"), "--generator", str(folder / "generator"), "--num-clips", "5"]


@pytest.fixture(scope="module")
def one_by_one(models, tmp_path_factory):
    """Clips made one at a time."""
    out = tmp_path_factory.mktemp("single")
    generate.main([*models, "--out", str(out), "--batch-size", "1"])
    return clip_set.load(out)


def test_it_writes_clips_videos_and_a_picture(models, tmp_path):
    generate.main([*models, "--out", str(tmp_path), "--labels", "2", "0"])
    clips = clip_set.load(tmp_path)
    assert clips["video"].shape == (5, 17, 32, 32, 3) and clips["label"].tolist() == [2, 0, 2, 0, 2]
    assert clips["indices"].shape == (5, 5, 4, 4) and 0 <= clips["indices"].min() and clips["indices"].max() < 125
    assert probe(tmp_path / "mp4" / "00004.mp4").num_frames == 17
    assert (tmp_path / "grid.png").is_file() and not (tmp_path / "parts").exists()


def test_unconditional_clips_have_no_class(models, tmp_path):
    generate.main([*models, "--out", str(tmp_path / "free"), "--unconditional"])
    assert (clip_set.load(tmp_path / "free")["label"] == -1).all()
    with pytest.raises(ValueError, match=r"takes no --labels, no --texts and no --classes, got \['2'\]"):
        generate.main([*models, "--out", str(tmp_path / "both"), "--unconditional", "--labels", "2"])


def test_a_colon_in_a_folder_s_name_is_no_protocol(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generate.main([*models, "--out", "a:b", "--stream", "--num-clips", "1"])
    assert probe("a:b/mp4/00000.mp4").num_frames == 17


@pytest.mark.parametrize("more", [[], ["--stream"]])
def test_one_command_works_in_a_folder(models, tmp_path, monkeypatch, more):
    """Another with the same settings would do all of it twice, one with others mix in its clips."""
    monkeypatch.setattr(distributed, "LOCK_PATIENCE_S", 0.1)
    with held(tmp_path), pytest.raises(ValueError, match=f"another process is working in {tmp_path}; wait for it or"):
        generate.main([*models, *more, "--out", str(tmp_path), "--num-clips", "1"])
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    generate.main([*models, *more, "--out", str(tmp_path), "--num-clips", "1"])


@pytest.mark.parametrize("batch_size", [2, 5])
def test_a_clip_does_not_depend_on_its_batch(models, one_by_one, tmp_path, batch_size):
    generate.main([*models, "--out", str(tmp_path), "--batch-size", str(batch_size)])
    assert np.array_equal(clip_set.load(tmp_path)["indices"], one_by_one["indices"])


def test_two_ranks_make_what_one_makes(models, one_by_one, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
               "nbp.generate", *models, "--out", str(tmp_path), "--batch-size", "2"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    found = clip_set.load(tmp_path)
    assert np.array_equal(found["indices"], one_by_one["indices"])
    assert found["label"].tolist() == one_by_one["label"].tolist() == [0, 1, 2, 0, 1]


def test_a_stopped_run_goes_on(models, one_by_one, tmp_path, monkeypatch):
    original, calls = generating.generate_clips, []

    def stops(*arguments, **sampling):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **sampling)

    monkeypatch.setattr(generating, "generate_clips", stops)
    command = [*models, "--out", str(tmp_path), "--batch-size", "1"]
    with pytest.raises(KeyboardInterrupt):
        generate.main(command)
    generate.main(command)
    assert len(calls) == 3 + 3, "two clips were kept, three were left"
    assert np.array_equal(clip_set.load(tmp_path)["indices"], one_by_one["indices"])


def test_other_settings_in_the_same_folder_are_refused(models, tmp_path):
    generate.main([*models, "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="made with other settings \\(seed differ"):
        generate.main([*models, "--out", str(tmp_path), "--seed", "1"])


def test_bfloat16_weights(models, one_by_one, tmp_path):
    """The same model by its hash; other rounding, so most codes that are certain stay and some of the rest change."""
    arguments = [*models, "--temperature", "0.05", "--precision"]
    for precision in ("fp32", "bf16"):
        generate.main([*arguments, precision, "--out", str(tmp_path / precision)])
    meta = [json.loads((tmp_path / name / "meta.json").read_text()) for name in ("fp32", "bf16")]
    assert {name for name in meta[0] if meta[0][name] != meta[1][name]} == {"precision"}
    found = [clip_set.load(tmp_path / name)["indices"] for name in ("fp32", "bf16")]
    assert 0 <= found[1].min() and found[1].max() < 125 and 0.05 < (found[0] == found[1]).mean() < 1
    tokenizer = Tokenizer.from_pretrained(models[models.index("--tokenizer") + 1])
    exact = 255 * tokenizer.decode_from_code_indices(found[1]).detach().clamp(0, 1).movedim(1, -1).numpy()
    difference = np.abs(clip_set.load(tmp_path / "bf16")["video"] - exact)
    assert difference.max() < 6 and difference.mean() < 0.8


@pytest.mark.parametrize("multiplies", [False, True])
def test_bfloat16_is_of_the_decoder_too_where_a_cpu_multiplies_it(models, multiplies, monkeypatch, tmp_path):
    """Never of the encoder: the tokens of given frames would be others."""
    monkeypatch.setattr(generating, "multiplies_bfloat16", lambda device: multiplies)
    made = []

    def stop(model, tokens, *rest, **options):
        made.append(tokens)
        raise KeyError

    monkeypatch.setattr(generating, "generate_clips", stop)
    with pytest.raises(KeyError):
        generate.main([*models, "--precision", "bf16", "--out", str(tmp_path)])
    dtypes = [{part.dtype for part in half.parameters()} for half in (made[0].encoder, made[0].decoder)]
    assert dtypes == [{torch.float32}, {torch.bfloat16 if multiplies else torch.float32}]


def test_clips_beyond_the_trained_length(models, one_by_one, tmp_path, capsys):
    long = [*models, "--num-frames", "30", "--out"]
    generate.main([*long, str(tmp_path / "whole")])
    clips = clip_set.load(tmp_path / "whole")
    assert clips["video"].shape == (5, 30, 32, 32, 3) and "indices" not in clips
    assert np.abs(clips["video"][:, :17].astype(int) - one_by_one["video"]).max() <= 1
    generate.main([*long, str(tmp_path / "stream"), "--stream", "--batch-size", "3"])
    said = capsys.readouterr().out
    assert "first frame of 3 clips after" in said and "2 clips of 30 frames in" in said
    for number in range(5):
        whole, streamed = (read_frames(tmp_path / name / "mp4" / f"{number:05d}.mp4", range(30)).astype(int)
                           for name in ("whole", "stream"))
        assert streamed.shape == whole.shape and np.abs(streamed - whole).mean() < 8      # h264 of noise
    assert not (tmp_path / "stream" / "clips.npz").exists()


@pytest.mark.parametrize("length", [[], ["--num-frames", "30"]], ids=["trained length", "longer"])
def test_streamed_frames_are_the_whole_clip_s(models, tmp_path, monkeypatch, length):
    """Before h264: what is written while it is drawn is bit for bit what is drawn as a whole."""
    written = {}
    monkeypatch.setattr(GrowingVideo, "add", lambda self, frames: written.setdefault(self.path.stem, []).append(frames))
    generate.main([*models, *length, "--out", str(tmp_path / "stream"), "--stream"])
    generate.main([*models, *length, "--out", str(tmp_path / "whole")])
    whole = clip_set.load(tmp_path / "whole")["video"]
    streamed = [np.concatenate(pieces) for _, pieces in sorted(written.items())]
    assert len(written["00000"]) > 4 and np.array_equal(streamed, whole)


def test_a_profile_of_the_first_batch(models, one_by_one, tmp_path, capsys):
    generate.main([*models, "--out", str(tmp_path), "--batch-size", "2", "--profile"])
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"aten::scaled_dot_product_attention", "nbp::layers"} & names      # of PyTorch, or packed
    assert "Self CPU" in capsys.readouterr().out and "aten::" in (tmp_path / "profile" / "top.txt").read_text()
    assert np.array_equal(clip_set.load(tmp_path)["indices"], one_by_one["indices"])


def test_a_streamed_video_can_be_watched_while_it_grows(tmp_path):
    video = GrowingVideo(tmp_path / "new" / "a.mp4", 8)
    frames = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    video.add(frames[:5])
    with av.open(str(tmp_path / "new" / "a.mp4.part")) as container:
        assert len(list(container.decode(video=0))) >= 4
    video.add(frames[5:])
    video.close()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.mp4"]
    assert probe(tmp_path / "new" / "a.mp4").num_frames == 9


def data_set(folder, frames, *names):
    """Path of a data config: the first name is for training, the others for validation."""
    for name in names:
        write_video(folder / "data" / name, frames, fps=8, crf=1, pixel_format="yuv444p")
    write_lists(folder / "data", [(names[0], "x")], [(name, "x") for name in names[1:]])
    (folder / "data.yaml").write_text(f"name: x\nroot: {folder / 'data'}\ntrain_list: train.txt\n"
                                      "val_list: val.txt\nresolution: 32\n")
    return str(folder / "data.yaml")


def test_given_frames_stay_and_the_rest_is_predicted(models, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (17, 32, 32, 3), dtype=np.uint8)
    data = data_set(tmp_path, frames[::-1].copy(), "a.mp4", "b.mp4")
    generate.main([*models, "--out", str(tmp_path / "out"), "--data", data, "--num-clips", "2"])
    clips = clip_set.load(tmp_path / "out")
    assert clips["path"].tolist() == ["b.mp4", "b.mp4"], "the only video is continued twice"
    assert np.abs(clips["video"][:, :5].astype(int) - frames[::-1][:5]).mean() < 3
    assert np.abs(clips["video"][0, 5:].astype(int) - frames[::-1][5:]).mean() > 10
    assert np.array_equal(clips["video"][0, :5], clips["video"][1, :5])
    assert not np.array_equal(clips["indices"][0], clips["indices"][1])


def test_a_class_list_gives_the_prompts(models, tmp_path):
    from nbp.generator.conditions import train_text_tokenizer

    train_text_tokenizer(["archery", "yo yo"], tmp_path / "words", 300)
    Generator(GeneratorConfig(2, 2, 32, 125, [5, 4, 4], [1, 1, 4], "text", "hybrid", num_condition_ids=300,
                              condition_len=4, pad_token=2)).save_pretrained(tmp_path / "generator")
    (tmp_path / "classes.txt").write_text("Archery\nYoYo\n")
    common = [*models[:2], "--generator", str(tmp_path / "generator"), "--text-tokenizer", str(tmp_path / "words"),
              "--num-clips", "3", "--out"]
    generate.main([*common, str(tmp_path / "listed"), "--classes", str(tmp_path / "classes.txt")])
    generate.main([*common, str(tmp_path / "typed"), "--texts", "archery", "yo yo"])
    listed, typed = (clip_set.load(tmp_path / name)["indices"] for name in ("listed", "typed"))
    assert np.array_equal(listed, typed)


def test_several_continuations_of_one_video_start_in_different_places(models, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    data = data_set(tmp_path, frames, "a.mp4", "b.mp4")
    generate.main([*models, "--out", str(tmp_path / "out"), "--data", data, "--clips-per-video", "2",
                   "--num-clips", "2"])
    clips = clip_set.load(tmp_path / "out")
    assert clips["path"].tolist() == ["b.mp4", "b.mp4"] and clips["label"].tolist() == [0, 0]
    assert np.abs(clips["video"][0, :5].astype(int) - clips["video"][1, :5]).mean() > 10


@pytest.mark.parametrize("arguments, message", [
    (["--labels", "3"], "class 3: the model takes 0..2"),
    (["--top-p", "1.5"], "top_p must be in \\[0, 1\\].*1.5"),
    (["--cfg-scale", "2", "--unconditional"], "cfg_scale=2.0 needs a condition"),
])
def test_bad_requests_are_refused_by_value(models, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate.main([*models, "--out", str(tmp_path), *arguments])


def test_a_class_list_of_a_model_of_labels_must_be_as_long(models, one_by_one, tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    generate.main([*models, "--out", str(tmp_path / "out"), "--classes", str(tmp_path / "classes.txt")])
    assert np.array_equal(clip_set.load(tmp_path / "out")["indices"], one_by_one["indices"])
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"classes.txt has 2 classes; this model takes 3"):
        generate.main([*models, "--out", str(tmp_path / "out2"), "--classes", str(tmp_path / "classes.txt")])
    assert not (tmp_path / "out2").exists()


def test_frames_that_are_no_whole_blocks_are_refused_before_anything_is_written(models, tmp_path):
    Generator(GeneratorConfig(2, 2, 32, 125, [4, 4, 4], [2, 2, 2], "none", "plain", num_condition_ids=0,
                              condition_len=0)).save_pretrained(tmp_path / "generator")
    data = data_set(tmp_path, np.zeros((17, 32, 32, 3), np.uint8), "a.mp4", "b.mp4")
    with pytest.raises(ValueError, match=r"--prefix-frames 1: the given grid \(1, 4, 4\) is not tiled by blocks of"):
        generate.main([*models[:2], "--generator", str(tmp_path / "generator"), "--data", data, "--num-clips", "1",
                       "--prefix-frames", "1", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_classes_of_continued_clips_go_by_name(models, tmp_path, monkeypatch):
    shutil.copytree(Path(models[3]), tmp_path / "generator")
    write_about(tmp_path / "generator", About(classes=["u", "x", "y"]), "generator")
    data = data_set(tmp_path, np.zeros((17, 32, 32, 3), np.uint8), "a.mp4", "b.mp4")
    command = [*models[:2], "--generator", str(tmp_path / "generator"), "--data", data, "--num-clips", "1", "--out"]
    seen, encoder = [], generating.condition_encoder
    monkeypatch.setattr(generating, "condition_encoder", lambda *arguments: lambda batch: seen.append(
        batch["label"].tolist()) or encoder(*arguments)(batch))
    generate.main([*command, str(tmp_path / "out")])
    assert seen == [[1]] and clip_set.load(tmp_path / "out")["label"].tolist() == [0], "x is 0 there and 1 in the model"
    write_about(tmp_path / "generator", About(classes=["u", "v", "w"]), "generator")
    with pytest.raises(ValueError, match="the model has no class x; it knows u, v, w"):
        generate.main([*command, str(tmp_path / "other")])
    generate.main([*command, str(tmp_path / "other"), "--unconditional"])


def test_a_model_without_a_begin_token_needs_videos(models, tmp_path):
    Generator(GeneratorConfig(2, 2, 32, 125, [5, 4, 4], [1, 1, 4], "none", "plain", begin_token=False,
                              num_condition_ids=0, condition_len=0)).save_pretrained(tmp_path / "generator")
    with pytest.raises(ValueError, match="no begin token, it continues videos: give --data CONFIG"):
        generate.main([*models[:2], "--generator", str(tmp_path / "generator"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--prefix-frames", "--clips-per-video"])
def test_what_belongs_to_continued_clips_needs_them(models, tmp_path, capsys, option):
    with pytest.raises(SystemExit) as stop:
        generate.main([*models, "--out", str(tmp_path), option, "5"])
    assert stop.value.code == 2 and f"{option} belongs to --data" in capsys.readouterr().err


def test_what_a_stream_does_not_do_and_no_file_holds_is_refused_before_anything_is_written(models, tmp_path, capsys):
    with pytest.raises(SystemExit):
        generate.main([*models, "--out", str(tmp_path / "out"), "--stream", "--profile"])
    assert "--profile traces a batch of whole clips, which --stream does not make" in capsys.readouterr().err
    with pytest.raises(ValueError, match="fps must be a number, at least 0.001, got 0.0001"):
        generate.main([*models, "--out", str(tmp_path / "out"), "--fps", "0.0001"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option, message", [
    ("--temperature", "--temperature: must be a number above 0, got 0"),
    ("--num-clips", "--num-clips: must be at least 1, got 0"),
    ("--prefix-frames", "--prefix-frames: must be at least 1, got 0"),
])
def test_numbers_out_of_range_are_refused_by_option(models, tmp_path, capsys, option, message):
    with pytest.raises(SystemExit) as stop:
        generate.main([*models, "--out", str(tmp_path), option, "0"])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("arguments, message", [
    (["--labels", "1"], r"--labels, --texts and --classes are for clips from nothing.*got \['1'\]"),
    (["--texts", "yo yo"], r"those of --data have their own; got \['yo yo'\]"),
    (["--prefix-frames", "4"], r"--prefix-frames must be 1 \+ 4k and below the 17 frames of a clip, got 4"),
    (["--prefix-frames", "17"], "below the 17 frames of a clip, got 17"),
    (["--prefix-frames", "13"], "data.num_frames is 9, which is less than --prefix-frames 13"),
    (["--num-frames", "5"], "must be above the 5 frames that are given, got 5"),
])
def test_bad_requests_for_continuations_are_refused(models, tmp_path, arguments, message):
    data = data_set(tmp_path, np.zeros((17, 32, 32, 3), np.uint8), "a.mp4", "b.mp4")
    with open(data, "a", encoding="utf-8") as config:
        config.write("num_frames: 9\n")
    with pytest.raises(ValueError, match=message):
        generate.main([*models, "--out", str(tmp_path / "out"), "--data", data, *arguments])
    assert not (tmp_path / "out").exists()


def test_bad_files_that_may_be_skipped_are_left_out(models, tmp_path, capsys):
    frames = np.random.default_rng(0).integers(0, 256, (17, 32, 32, 3), dtype=np.uint8)
    data = data_set(tmp_path, frames, *(f"{name}.mp4" for name in "abcde"))
    for name in "be":
        (tmp_path / "data" / f"{name}.mp4").write_bytes(b"damaged")
    command = [*models, "--data", data, "--num-clips", "8", "--batch-size", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="b.mp4"):
        generate.main(command)
    assert not clip_set.Parts(tmp_path / "out", json.loads((tmp_path / "out/meta.json").read_text())).done()
    with open(data, "a", encoding="utf-8") as config:
        config.write("max_bad_files: 2\n")
    command[-1] = str(tmp_path / "skipping")
    for _ in range(2):      # the second time all is done
        generate.main(command)
        assert "wrote 4 clips to" in (out := capsys.readouterr().out) and "4 are left out, their files are bad" in out
        clips = clip_set.load(tmp_path / "skipping")
        assert clips["path"].tolist() == ["c.mp4", "c.mp4", "d.mp4", "d.mp4"] and len(clips["video"]) == 4
        assert not (tmp_path / "skipping" / "parts").exists()


def test_another_text_tokenizer_in_the_same_folder_is_refused(models, tmp_path):
    from nbp.generator.conditions import train_text_tokenizer

    Generator(GeneratorConfig(2, 2, 32, 125, [5, 4, 4], [1, 1, 4], "text", "hybrid", num_condition_ids=300,
                              condition_len=4, pad_token=2)).save_pretrained(tmp_path / "generator")
    for name, words in (("one", ["archery", "yo yo"]), ("other", ["yo yo", "bowling", "archer"])):
        train_text_tokenizer(words * 9, tmp_path / name, 300)
    command = [*models[:2], "--generator", str(tmp_path / "generator"), "--texts", "archery", "--num-clips", "1",
               "--out", str(tmp_path / "out"), "--text-tokenizer"]
    generate.main([*command, str(tmp_path / "one")])
    generate.main([*command, str(tmp_path / "one")])
    with pytest.raises(ValueError, match=r"made with other settings \(text_ids_sha256 differ"):
        generate.main([*command, str(tmp_path / "other")])
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    del meta["text_ids_sha256"]       # as sets were made before it was recorded
    (tmp_path / "out" / "meta.json").write_text(json.dumps(meta))
    generate.main([*command, str(tmp_path / "one")])


def test_a_changed_list_of_continued_clips_is_refused(models, tmp_path):
    frames = np.zeros((17, 32, 32, 3), np.uint8)
    command = [*models, "--out", str(tmp_path / "out"), "--data", data_set(tmp_path, frames, "a.mp4", "b.mp4"),
               "--num-clips", "1"]
    generate.main(command)
    data_set(tmp_path, frames, "a.mp4", "c.mp4")
    with pytest.raises(ValueError, match="made with other settings \\(annotations_sha256, files_sha256 differ"):
        generate.main(command)


def test_leaving_out_a_condition_that_was_always_there_is_warned_of(models, tmp_path):
    Generator(GeneratorConfig(2, 2, 32, 125, [5, 4, 4], [1, 1, 4], "label", "hybrid", num_condition_ids=3,
                              condition_len=1, condition_dropout=0.0)).save_pretrained(tmp_path / "generator")
    command = [*models[:2], "--generator", str(tmp_path / "generator"), "--num-clips", "1", "--out"]
    with pytest.warns(UserWarning, match="without a condition uses the unconditional embedding, which this model"):
        generate.main([*command, str(tmp_path / "free"), "--unconditional"])
    with pytest.warns(UserWarning, match=r"cfg_scale=2.0 uses the unconditional embedding.*condition_dropout is 0"):
        generate.main([*command, str(tmp_path / "guided"), "--cfg-scale", "2"])


def test_data_that_cannot_be_continued_leaves_no_folder_and_a_refused_one_takes_other_settings(models, tmp_path):
    frames = np.zeros((17, 64, 64, 3), np.uint8)
    data = data_set(tmp_path, frames, "a.mp4", "b.mp4")
    out = tmp_path / "out"
    command = [*models, "--data", data, "--num-clips", "1", "--out", str(out)]
    whole = Path(data).read_text()
    Path(data).write_text(whole.replace("resolution: 32", "resolution: 64"))
    with pytest.raises(ValueError, match=r"of 32x32 pixels, the data config's have 64x64; resolution: \[32"):
        generate.main(command)
    Path(data).write_text(whole)
    (tmp_path / "data" / "val.txt").write_text("b.mp4\n")
    with pytest.raises(ValueError, match="1 of the clips to continue have no class, .* first b.mp4; --unconditional"):
        generate.main(command)
    assert not out.exists()
    clip_set.Parts(out, {"seed": 1})       # stopped before its first clip
    generate.main([*command, "--unconditional"])
    assert len(clip_set.load(out)["video"]) == 1
    (out / "parts").mkdir()       # stopped between writing the set and clearing up
    generate.main([*command, "--unconditional"])
    assert not (out / "parts").exists()


def test_continued_clips_have_the_model_s_rate(models, tmp_path, capsys):
    shutil.copytree(Path(models[3]), tmp_path / "generator")
    write_about(tmp_path / "generator", About(fps=4.0, classes=["x", "y", "z"]), "generator")
    frames = np.repeat(np.arange(40, dtype=np.uint8) * 6, 32 * 32 * 3).reshape(40, 32, 32, 3)
    data = data_set(tmp_path, frames, "a.mp4", "b.mp4")                                   # 8 frames a second
    command = [*models[:2], "--generator", str(tmp_path / "generator"), "--data", data, "--num-clips", "1", "--out"]
    generate.main([*command, str(tmp_path / "out")])
    given = clip_set.load(tmp_path / "out")["video"][0, :5, 0, 0, 0].astype(int)
    assert np.abs(np.diff(given) - 12).max() <= 3 and "given" not in capsys.readouterr().err
    Path(data).write_text(Path(data).read_text() + "fps: 8\n")
    generate.main([*command, str(tmp_path / "asked")])
    given = clip_set.load(tmp_path / "asked")["video"][0, :5, 0, 0, 0].astype(int)
    assert np.abs(np.diff(given) - 6).max() <= 3
    assert "trained at 4 frames a second and is given 8 by the data config" in capsys.readouterr().err


def test_a_stopped_stream_keeps_its_whole_videos(models, tmp_path, monkeypatch):
    command = [*models, "--batch-size", "2", "--stream", "--out", str(tmp_path)]
    original, calls = generating.clip_pieces, []

    def stops(*arguments, **sampling):
        calls.append([request.number for request in arguments[2]])
        met, pieces = original(*arguments, **sampling)

        def some():
            yield next(pieces)
            raise KeyboardInterrupt
        return met, some() if len(calls) == 2 else pieces

    monkeypatch.setattr(generating, "clip_pieces", stops)
    with pytest.raises(KeyboardInterrupt):
        generate.main(command)
    assert sorted(path.name for path in (tmp_path / "mp4").glob("*.mp4")) == ["00000.mp4", "00001.mp4"]
    assert (tmp_path / "mp4" / "00002.mp4.part").exists(), "which can be watched, and is no video of the set"
    before = (tmp_path / "mp4" / "00000.mp4").stat().st_mtime_ns
    generate.main(command)
    assert calls == [[0, 1], [2, 3], [2, 3], [4]] and before == (tmp_path / "mp4" / "00000.mp4").stat().st_mtime_ns
    assert all(probe(tmp_path / "mp4" / f"{number:05d}.mp4").num_frames == 17 for number in range(5))
    assert not list((tmp_path / "mp4").glob("*.part"))


@pytest.mark.parametrize("arguments, message", [
    (["--text-tokenizer", "nowhere"], "--text-tokenizer nowhere is for clips that are made for texts"),
    (["--unconditional", "--classes", "nofile"], "takes no --labels, no --texts and no --classes, got nofile")])
def test_what_would_play_no_part_is_refused(models, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate.main([*models, "--out", str(tmp_path / "out"), *arguments])
