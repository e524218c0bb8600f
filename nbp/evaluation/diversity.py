"""Scores of one set that need no pairs: how varied it is, and whether it repeats its training clips.

Both work on features of a feature network.
Legend: N M clips, D features or classes.
"""

import numpy as np
import torch
from torch import Tensor


def inception_score(logits: np.ndarray | Tensor) -> float:
    """Inception score (Salimans et al., arXiv 1606.03498) of logits (N,D) with the classifier that they come from.

    exp of the mean KL divergence of a clip's class distribution from the set's: 1 if all clips look alike to the
    classifier, D at most. With Kinetics-400 logits it is not the C3D score that papers state for UCF-101.
    """
    return float(score_from_sums(*class_sums(torch.as_tensor(logits))))


def class_sums(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(count, sum of class probabilities (D,), sum of negative entropies) of logits (N,D), all float64."""
    if logits.ndim != 2 or not len(logits) or not torch.isfinite(logits).all():
        raise ValueError(f"logits of shape {tuple(logits.shape)}; accepted: finite (N,D), N > 0")
    log_share = logits.double().log_softmax(1)
    share = log_share.exp()
    return share.new_tensor(float(len(share))), share.sum(0), (share * log_share).sum()


def score_from_sums(count: Tensor, shares: Tensor, negative_entropy: Tensor) -> Tensor:
    """Inception score from the sums of `class_sums` over a whole set."""
    mean = shares / count
    return torch.exp(negative_entropy / count - torch.xlogy(mean, mean).sum())


def nearest(features: np.ndarray | Tensor, train_features: np.ndarray | Tensor,
            block: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Nearest training clip (M,D) of each clip (N,D): Euclidean distance of features, standardised by the training set.

    Memory is `block` x M. Returns numbers (N,) int64 and distances (N,) float64. ValueError: widths that differ, or
    fewer than two training clips.
    """
    features, train = torch.as_tensor(features).double(), torch.as_tensor(train_features).double()
    if features.ndim != 2 or train.ndim != 2 or features.shape[1] != train.shape[1] or len(train) < 2:
        raise ValueError(f"features {tuple(features.shape)} and training features {tuple(train.shape)}; "
                         "accepted: (N,D) and (M,D), M > 1")
    mean, deviation = train.mean(0), train.std(0).clamp_min(1e-12)
    features, train = (features - mean) / deviation, (train - mean) / deviation
    found = [torch.cdist(part, train, compute_mode="donot_use_mm_for_euclid_dist").min(1)
             for part in features.split(block)]
    return torch.cat([part.indices for part in found]).numpy(), torch.cat([part.values for part in found]).numpy()
