import numpy as np
import pytest
import torch
from scipy.stats import entropy

from nbp.evaluation.diversity import inception_score, nearest


def test_inception_score_of_known_sets():
    sure = 100 * torch.eye(5)
    assert inception_score(sure.repeat(4, 1)) == pytest.approx(5)         # every class equally often, no doubt
    assert inception_score(sure[:1].repeat(4, 1)) == pytest.approx(1)     # one class only
    assert inception_score(torch.zeros(4, 5)) == pytest.approx(1)         # no idea


def test_inception_score_is_the_formula():
    logits = 2 * torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    share = logits.double().softmax(1).numpy()
    expected = np.exp(np.mean([entropy(row, share.mean(0)) for row in share]))
    assert inception_score(logits) == pytest.approx(expected, rel=1e-10)
    with pytest.raises(ValueError, match=r"accepted: finite \(N,D\)"):
        inception_score(torch.full((3, 4), torch.nan))


def test_nearest():
    rng = np.random.default_rng(0)
    train = rng.normal(size=(50, 4)) * [1, 100, 1, 1]
    numbers, distances = nearest(train[[7, 3]], train)
    assert numbers.tolist() == [7, 3] and distances.tolist() == [0, 0]
    clips = rng.normal(size=(9, 4)) * [1, 100, 1, 1]
    numbers, distances = nearest(clips, train, block=4)
    scaled = [(x - train.mean(0)) / train.std(0, ddof=1) for x in (clips, train)]
    expected = np.linalg.norm(scaled[0][:, None] - scaled[1][None], axis=2)
    assert numbers.tolist() == expected.argmin(1).tolist() and np.allclose(distances, expected.min(1))
    with pytest.raises(ValueError, match="accepted: .* M > 1"):
        nearest(clips, train[:1])
