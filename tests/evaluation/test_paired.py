"""Scores of pairs: the ranks share the work, and their number changes no bit."""

import numpy as np
import pytest

from nbp.evaluation import paired


def test_ranks_share_the_batches(make_frames, monkeypatch):
    video, target = make_frames(7, 0), make_frames(7, 1)
    alone, seen = paired.paired_scores(video, target, batch_size=2), []
    measure = paired.quality.psnr
    monkeypatch.setattr(paired.quality, "psnr", lambda x, y: seen.append(len(x)) or measure(x, y))
    gathered = []
    for rank in (1, 0):
        monkeypatch.setattr(paired, "rank_and_world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(paired, "gather", lambda sums: gathered.append(dict(sums)) or gathered[::-1])
        if rank == 1:
            with pytest.raises(KeyError):   # the other rank has not come yet
                paired.paired_scores(video, target, batch_size=2)
        else:
            assert paired.paired_scores(video, target, batch_size=2) == alone
    assert [sorted(sums) for sums in gathered] == [[2, 6], [0, 4]] and seen == [2, 1, 2, 2]
    with pytest.raises(ValueError, match=r"reconstructions \(6, .*\) and originals \(7, .* differ in shape"):
        paired.paired_scores(np.delete(video, 0, 0), target)
