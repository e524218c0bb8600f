"""Lists that ranks cannot share evenly: every clip once, none twice, whoever stops and comes back."""

import pytest
import torch

from nbp import tokenize
from nbp.data.tokens import TokenDataset
from nbp.tokenizer.model import Tokenizer


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
