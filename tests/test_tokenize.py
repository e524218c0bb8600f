"""The tokenize command: what it refuses to go on with."""

import json

import numpy as np
import pytest
import torch

from nbp import reconstruct, tokenize
from nbp.config import TokenizerConfig
from nbp.data.annotations import write_lists
from nbp.data.tokens import TokenDataset
from nbp.data.video_io import write_video
from nbp.tokenizer.model import Tokenizer


@pytest.fixture
def command(tmp_path):
    """Arguments that tokenize two training clips and one validation clip."""
    torch.manual_seed(0)
    Tokenizer(TokenizerConfig([8, 8, 8, 16], [1, 1, 1, 1], [[1, 2, 2], [2, 2, 2], [2, 2, 2]],
                              [5, 5, 5])).save_pretrained(tmp_path / "tokenizer")
    frames = np.random.default_rng(0).integers(0, 256, (17, 32, 32, 3), dtype=np.uint8)
    for name in "abcd":
        write_video(tmp_path / "data" / f"{name}.mp4", frames, fps=8)
    write_lists(tmp_path / "data", [("a.mp4", "x"), ("b.mp4", "x")], [("c.mp4", "x")])
    (tmp_path / "data.yaml").write_text(f"name: x\nroot: {tmp_path / 'data'}\ntrain_list: train.txt\n"
                                        "val_list: val.txt\nresolution: 32\n")
    return ["--tokenizer", str(tmp_path / "tokenizer"), "--data", str(tmp_path / "data.yaml"), "--out",
            str(tmp_path / "tokens"), "--num-workers", "0"]


@pytest.mark.parametrize("change, message", [
    ("num_frames=16", r"num_frames must be 1 \+ 4k for this tokenizer, got 16"),
    ("resolution=36", "height and width must be divisible by 8 and 8 for this tokenizer, got 36x36")])
def test_a_size_that_the_tokenizer_cannot_take_is_refused_before_work(command, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        tokenize.main([*command, change])
    assert not (tmp_path / "tokens").exists()
    (tmp_path / "data" / "val.txt").write_text("".join(f"{number}.mp4\tx\n" for number in range(8)))
    data, model = str(tmp_path / "data.yaml"), str(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=message):
        reconstruct.main(["--tokenizer", model, "--data", data, "--out", str(tmp_path / "out"), change])
    assert not (tmp_path / "out").exists()


def test_a_changed_list_is_refused_by_name(command, tmp_path, capsys):
    tokenize.main(command)
    tokenize.main(command)
    assert capsys.readouterr().out.count("already complete") == 2
    write_lists(tmp_path / "data", [("a.mp4", "x"), ("b.mp4", "x"), ("d.mp4", "x")], [("c.mp4", "x")])
    with pytest.raises(ValueError, match=r'train already holds tokens made with other settings: '
                                         r'data.annotations_sha256 is "[0-9a-f]*\.\.\., now "[0-9a-f]*'):
        tokenize.main(command)
    tokenize.main([*command, "--splits", "val"])
    assert len(TokenDataset(tmp_path / "tokens" / "train")) == 2


def test_bfloat16_is_asked_for_stated_and_not_mixed_with_float32(command, tmp_path):
    tokenize.main([*command, "--precision", "bf16"])
    tokens = TokenDataset(tmp_path / "tokens" / "train")
    assert len(tokens) == 2 and tokens.meta["data"]["precision"] == "bf16"
    with pytest.raises(ValueError, match="data.precision"):
        tokenize.main(command)
    tokenize.main([*command[:-3], str(tmp_path / "float"), "--num-workers", "0"])
    exact = TokenDataset(tmp_path / "float" / "train")
    assert "precision" not in exact.meta["data"]
    same = [(tokens[n]["indices"] == exact[n]["indices"]).float().mean() for n in range(2)]
    assert min(same) > 0.7      # autocast moves latents that lie between two levels, not the others


def test_videos_replaced_under_their_names_are_refused(command, tmp_path, capsys):
    tokenize.main(command)
    write_video(tmp_path / "data" / "b.mp4", np.zeros((17, 32, 32, 3), np.uint8), fps=8)
    with pytest.raises(ValueError, match="tokens made with other settings: data.files_sha256 is .*, now"):
        tokenize.main(command)
    meta = tmp_path / "tokens" / "train" / "meta.json"
    before = json.loads(meta.read_text())
    del before["data"]["files_sha256"]          # a cache of earlier code
    meta.write_text(json.dumps(before))
    capsys.readouterr()
    tokenize.main([*command, "--splits", "train"])
    assert "already complete" in capsys.readouterr().out


@pytest.mark.parametrize("stopped", [True, False])
def test_bad_files_of_a_run_before_count(command, tmp_path, capsys, stopped):
    rows = [(f"{name}.mp4", "x") for name in "abde"]
    write_lists(tmp_path / "data", rows, [("c.mp4", "x")])
    write_video(tmp_path / "data" / "e.mp4", np.zeros((17, 32, 32, 3), np.uint8), fps=8)
    for name in "bd":
        (tmp_path / "data" / f"{name}.mp4").write_bytes(b"no video")
    more = ["--splits", "train", "--shard-size", "1"]
    if stopped:
        for _ in range(2):                      # the second time as the first: one is allowed, and there are two
            with pytest.raises(ValueError, match="d.mp4|b.mp4"):
                tokenize.main([*command, *more, "max_bad_files=1"])
        return
    tokenize.main([*command, *more, "max_bad_files=2"])
    tokenize.main([*command, *more, "max_bad_files=2"])
    assert "already complete, without 2 bad files" in capsys.readouterr().out
    with pytest.raises(ValueError, match="lacks 2 files that were bad, first b.mp4; max_bad_files is 1: remove it"):
        tokenize.main([*command, *more, "max_bad_files=1"])
