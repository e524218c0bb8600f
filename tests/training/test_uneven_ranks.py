"""Lists that ranks cannot share evenly: every clip once, none twice, whoever stops and comes back."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nbp import clipset, tokenize
from nbp.data.tokens import TokenDataset
from nbp.files import read_json
from nbp.tokenizer.model import Tokenizer

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def tokenize_as(finished, data_config, monkeypatch):
    """Run `nbp.tokenize` as one rank of several."""
    def run(out, rank, world, *more):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        tokenize.main(["--tokenizer", str(finished / "model"), "--data", str(data_config), "--out", str(out),
                       "--num-workers", "0", "--batch-size", "2", "--shard-size", "2", "--device", "cpu", *more])
    return run


def assert_same_tokens(folder, reference):
    for split, count in (("train", 8), ("val", 2)):          # 3 ranks: 3 + 3 + 2 clips, and 1 + 1 + 0
        found, expected = TokenDataset(folder / split), TokenDataset(reference / split)
        assert found.items.tolist() == list(range(count)) and found.paths == expected.paths
        assert all(torch.equal(found[item]["indices"], expected[item]["indices"]) for item in range(count))


def test_three_ranks_tokenize_what_one_does(tokenize_as, tokens, tmp_path):
    for rank in (2, 0, 1):
        tokenize_as(tmp_path, rank, 3)
    assert_same_tokens(tmp_path, tokens)


def test_a_rank_that_stopped_goes_on(tokenize_as, tokens, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    calls, encode = [], Tokenizer.encode

    def stopping(self, video):
        calls.append(1)
        if len(calls) == 2:
            raise Stop
        return encode(self, video)

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode", stopping)
        with pytest.raises(Stop):
            tokenize_as(tmp_path, 0, 3)
    tokenize_as(tmp_path, 1, 3)
    tokenize_as(tmp_path, 2, 3)
    with pytest.raises(ValueError, match="unfinished: part 1 of 3 is missing"):
        TokenDataset(tmp_path / "train")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "train").glob("tokens-*")}
    for rank in range(3):
        tokenize_as(tmp_path, rank, 3)
    assert len(kept) == 4 and all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert_same_tokens(tmp_path, tokens)


def test_another_number_of_ranks_is_refused(tokenize_as, tmp_path):
    tokenize_as(tmp_path, 0, 3)
    with pytest.raises(ValueError, match="num_parts is 3, now 2"):
        tokenize_as(tmp_path, 0, 2)


@pytest.mark.slow
def test_three_ranks_reconstruct_and_score_what_one_does(finished, data_config, tmp_path):
    for world in (1, 3):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "-m",
                   "nbp.reconstruct", "--tokenizer", str(finished / "model"), "--data", str(data_config), "--split",
                   "train", "--out", str(tmp_path / str(world)), "--cache", str(tmp_path / f"cache{world}"),
                   "--batch-size", "2", "--device", "cpu"]
        result = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
                                text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
    one, three = (clipset.load(tmp_path / world) for world in ("1", "3"))
    assert len(one["video"]) == len(three["video"]) == 8
    assert all(np.array_equal(one[name], three[name]) for name in one)
    scores = [read_json(tmp_path / world / "scores.json")["scores"] for world in ("1", "3")]
    assert scores[0].keys() == scores[1].keys()
    for name, value in scores[0].items():
        assert scores[1][name] == pytest.approx(value, rel=1e-5, nan_ok=True), name
