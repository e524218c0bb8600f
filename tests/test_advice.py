"""Messages that say what to do: what they say is done, and then the same call works.

Those that name another value or option are followed in `test_advised_values.py`. Others where their part is tested:
names and circles of links in `data/test_folders.py`, animations in `data/test_images.py`, --exclude in
`data/test_integrity.py`, checkpoints of runs in `hub/test_any_weights.py` and `training/test_checkpoints.py`, sizes and
lengths of sets in `test_evaluate.py` and `evaluation/test_scoring.py`.
"""

import logging
import shutil
from fractions import Fraction
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
from PIL import Image

from nbp import prepare, tokenize
from nbp.data import clip_set, integrity
from nbp.data.annotations import read_annotations
from nbp.data.classes import read_classes
from nbp.data.integrity import read_bad_files, verify
from nbp.data.tokens import TokenDataset
from nbp.data.video_io import probe, write_video
from nbp.download import load_magvit2
from nbp.tokenizer.model import Tokenizer
from nbp.workflows.clip_sources import open_clips

MADE = Path(__file__).parent / "fixtures" / "before_layout"
NOISE = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)


def write(path, **how):
    write_video(path, NOISE, 25, preset="ultrafast", **how)
    return path


def prepare_folder(*more):
    prepare.main(["folder", "--root", "videos", "--resolution", "16", *more])


def make_tokens():
    tokenize.main(["--tokenizer", str(MADE / "tokenizer"), "--data", "videos/data.yaml", "--out", "tokens",
                   "--splits", "train", "--num-workers", "0", "--device", "cpu"])


def transcode(source, target, filters="null"):
    """What `ffmpeg -i SOURCE -vf FILTERS TARGET` does."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        out = new.add_stream("libx264", rate=25)
        out.width, out.height, out.pix_fmt = stream.width, stream.height, "yuv420p"
        graph = av.filter.Graph()
        graph.link_nodes(graph.add_buffer(template=stream), graph.add(*filters.split("=", 1)),
                         graph.add("buffersink")).configure()
        for number, frame in enumerate(old.decode(stream)):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            graph.push(frame)
            while True:
                try:
                    image = graph.pull()
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
                image.pts = None
                new.mux(out.encode(image))
        new.mux(out.encode(None))


def two_settings():
    clip_set.Parts("set", {"seed": 0}).add([0], video=NOISE[None], label=np.zeros(1, np.int64))
    return lambda: clip_set.Parts("set", {"seed": 1})


def half_a_set():
    parts = clip_set.Parts("set", {})
    parts.add([0], video=NOISE[None], label=np.zeros(1, np.int64))
    return lambda: parts.merge(2)


def second_half():
    clip_set.Parts("set", {}).add([1], video=NOISE[None], label=np.zeros(1, np.int64))


def list_in(encoding, name="ä"):
    def make():
        Path("list.txt").write_bytes(f"{name}.mp4\t{name}\n".encode(encoding))
        return lambda: read_annotations("list.txt")
    return make


def save_as_utf8():
    Path("list.txt").write_text("ä.mp4\tä\n", encoding="utf-8")


def videos(*names):
    def make():
        for name in names:
            write(Path("videos") / name)
        return prepare_folder
    return make


def with_lists(use):
    """Two videos without lists, and what needs these."""
    def make():
        videos("a/0.mp4", "a/1.mp4")()
        return use
    return make


def damaged_tokens():
    unfinished_tokens()
    make_tokens()
    shard = next(Path("tokens/train").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:50])
    return lambda: TokenDataset("tokens/train")


def unfinished_tokens():
    videos("a/0.mp4", "a/1.mp4", "a/2.mp4")()
    prepare_folder()
    make_tokens()
    next(Path("tokens/train").glob("part-*.json")).unlink()
    return lambda: TokenDataset("tokens/train")


def again():
    for path in [*Path("tokens/train").glob("*.safetensors"), *Path("tokens/train").glob("part-*.json")]:
        path.unlink()
    make_tokens()


def no_tokens():
    unfinished_tokens()
    shutil.rmtree("tokens/train")
    Path("tokens/train").mkdir(parents=True)
    return lambda: TokenDataset("tokens/train")


def tokens_of_another():
    unfinished_tokens()
    make_tokens()
    ours = TokenDataset("tokens/train").meta["tokenizer_hash"]
    meta = Path("tokens/train/meta.json")
    meta.write_text(meta.read_text().replace(ours, "f" * 64))
    return lambda: TokenDataset("tokens/train", ours)


def anew():
    shutil.rmtree("tokens")
    make_tokens()


def copy_tokens(length=None):
    """Copy the cache behind a URL, of each file of tokens `length` bytes."""
    for path in Path("tokens/train").iterdir():
        cut = length if path.suffix == ".safetensors" else None
        fsspec.filesystem("memory").pipe_file(f"/advice/{path.name}", path.read_bytes()[:cut])


def half_copied_tokens():
    unfinished_tokens()
    make_tokens()
    copy_tokens(50)
    return lambda: TokenDataset("memory://advice")


def previews():
    write(Path("videos/0.mp4"))
    for number in range(2):
        Image.fromarray(NOISE[0]).save(f"videos/{number}.png")
    return lambda: open_clips("videos")


def timeless():
    with av.open("a.h264", "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for frame in NOISE:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return lambda: probe("NEW.mp4" if Path("NEW.mp4").exists() else "a.h264")


def pointer():
    Path("tokenizer").mkdir()
    shutil.copy(MADE / "tokenizer/config.json", "tokenizer")
    Path("tokenizer/model.safetensors").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 1\n")
    return lambda: load_magvit2("tokenizer", device="cpu")


def two_arrays():
    np.savez("clips.npz", frames=NOISE[None], other=NOISE[None])
    return lambda: open_clips("clips.npz")


# What is wrong: (makes it and returns the call, words of the message, what they say).
ADVICE = {
    "a list in another encoding": (list_in("latin-1"), "list.txt is not UTF-8 .*; save it as UTF-8", save_as_utf8),
    "a list in UTF-16 without its mark": (list_in("utf-16-le", "a"), "null characters.*; save it as UTF-8",
                                          save_as_utf8),
    "no list": (with_lists(lambda: read_annotations("videos/train.txt")),
                "videos/train.txt does not exist; `python -m nbp.prepare` writes it", prepare_folder),
    "no classes": (with_lists(lambda: read_classes("videos/classes.txt")),
                   "classes.txt holds no class names; `python -m nbp.prepare` writes it", prepare_folder),
    "a scan without lists": (with_lists(lambda: verify("videos", 1)), "prepare the data set first", prepare_folder),
    "no scan": (with_lists(lambda: read_bad_files("videos/bad_files.txt")),
                r"does not exist; `python -m nbp.prepare \.\.\. --verify` writes such a list",
                lambda: prepare_folder("--verify", "--num-workers", "1")),
    "one video": (videos("0.mp4"), "training and validation need one each", lambda: write(Path("videos/1.mp4"))),
    "videos with and without a class": (
        videos("a/0.mp4", "a/1.mp4", "2.mp4"), "put all into class folders or none",
        lambda: Path("videos/2.mp4").rename("videos/a/2.mp4")),
    "clips of other settings": (two_settings, "choose another folder or remove it", lambda: shutil.rmtree("set")),
    "half a set of clips": (half_a_set, "holds 1 of 2 clips; run the command again", second_half),
    "no tokens": (no_tokens, "is not a token cache .*; `python -m nbp.tokenize` makes one", make_tokens),
    "unfinished tokens": (unfinished_tokens, "run the tokenize command again, it goes on where it stopped",
                          make_tokens),
    "damaged tokens": (damaged_tokens, r"remove it and its part-\*.json, then tokenize again", again),
    "tokens of another tokenizer": (tokens_of_another, "tokenize again with the tokenizer of this run", anew),
    "half a copy of tokens": (half_copied_tokens, "missing or damaged .*; copy the token cache again", copy_tokens),
    "previews among videos": (previews, "which are the clips. Keep one kind",
                              lambda: [path.unlink() for path in Path("videos").glob("*.png")]),
    "pictures without times": (timeless, "`ffmpeg -i a.h264 NEW.mp4` makes a file that does",
                               lambda: transcode("a.h264", "NEW.mp4")),
    "a pointer": (pointer, "is a Git LFS pointer .*: run `git lfs pull`",
                  lambda: shutil.copy(MADE / "tokenizer/model.safetensors", "tokenizer")),
    "two arrays": (two_arrays, "expected an array `video`, or one alone",
                   lambda: np.savez("clips.npz", video=NOISE[None])),
}


@pytest.mark.parametrize("wrong", ADVICE)
def test_what_a_message_says_helps(tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    make, words, follow = ADVICE[wrong]
    call = make()
    with pytest.raises(ValueError, match=words):
        call()
    follow()
    call()


def test_tokens_are_decoded_by_the_model_that_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unfinished_tokens()
    make_tokens()
    with pytest.raises(ValueError, match="is a token cache; --tokenizer names the model that decodes it"):
        open_clips("tokens/train")
    assert len(open_clips("tokens/train", tokenizer=Tokenizer.from_pretrained(MADE / "tokenizer").eval())) == 2


def test_an_odd_size_is_written_with_whole_colours(tmp_path):
    with pytest.raises(ValueError, match="yuv420p needs an even height and width, got 15x16: .*yuv444p"):
        write_video(tmp_path / "a.mp4", NOISE[:, :15], 25)
    write_video(tmp_path / "a.mp4", NOISE[:, :15], 25, pixel_format="yuv444p")
    assert probe(tmp_path / "a.mp4").height == 15


def test_woven_frames_are_separated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(integrity, "check_all", lambda check, jobs, _: ((job, check(job)) for job in jobs))
    for number in range(2):
        path = Path(f"videos/{number}.mkv")
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"x264-params": "interlaced=1"})
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for frame in NOISE.repeat(4, 1).repeat(4, 2):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    prepare_folder("--verify", "--num-workers", "1")
    assert "1 of 1 files looked at are interlaced" in (printed := capsys.readouterr().out)
    assert "`ffmpeg -i FILE -vf bwdif NEW` separates them" in printed
    for number in range(2):
        transcode(f"videos/{number}.mkv", f"videos/{number}.mp4", "bwdif")
        Path(f"videos/{number}.mkv").unlink()
    prepare_folder("--verify", "--num-workers", "1")
    assert "interlaced" not in capsys.readouterr().out


def test_empty_files_are_left_out_with_a_word_until_they_hold_something(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    videos("a/0.mp4", "a/1.mp4")()
    Path("videos/a/2.mp4").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        prepare_folder()
    assert "left out 1 file: 1 empty" in caplog.text
    write(Path("videos/a/2.mp4"))
    prepare_folder()
    assert sum(len(read_annotations(f"videos/{name}.txt")) for name in ("train", "val")) == 3
