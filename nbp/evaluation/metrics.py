"""The scores of this package as torchmetrics `Metric`s, for any training or evaluation loop.

Each wraps a pure function of `quality` or `fvd`, keeps sums instead of samples where the formula allows it,
and gives the same value for any batch size and number of processes. States are part of the state dict, networks are
not: a checkpoint resumes a score where it was, and updating it leaves the loaded dict as it is.
Legend: B clips, C channels, T frames, H W pixels, N clips seen, D features, V codes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from nbp.evaluation import quality
from nbp.evaluation.diversity import class_sums, score_from_sums
from nbp.evaluation.fvd import FeatureStats, empty_stats, feature_stats, merge_stats, polynomial_mmd, stats_distance
from nbp.evaluation.lpips import LPIPS
from nbp.evaluation.networks import FeatureNetwork, network_features
from nbp.evaluation.protocols import Protocol
from nbp.evaluation.statement import Score
from nbp.evaluation.uncertainty import uncertainty


class ExactMetric(Metric):
    """A metric whose states keep their dtype: sums in half precision stop growing after a few hundred clips. Moving its
    module (`.to(torch.bfloat16)`, Lightning's bf16-true) changes the states' device only."""

    full_state_update = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        return super()._apply(lambda tensor: tensor.to(fn(tensor.new_zeros(())).device), exclude_state)


class ClipMean(ExactMetric):
    """Mean over clips of a paired score, function(video, target) -> (B,) as `quality.psnr`: `update(video, target)`
    with float (B,C,T,H,W) in [0,1]; `name` is the function's by default."""

    def __init__(self, score: Callable[[Tensor, Tensor], Tensor], name: str | None = None, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.score = score
        # A MetricCollection takes metrics with equal states under equal names for one metric; after a first pair
        # without error, SSIM and MS-SSIM have equal sums.
        name = name or getattr(score, "__name__", type(score).__name__)
        self._sums = (f"total_{name}", f"count_{name}")
        for state, dtype in zip(self._sums, (torch.float64, torch.int64)):
            self.add_state(state, torch.zeros((), dtype=dtype), dist_reduce_fx="sum", persistent=True)

    def update(self, video: Tensor, target: Tensor) -> None:
        values = self.score(video, target)
        for state, more in zip(self._sums, (values.double().sum(), len(values))):
            setattr(self, state, getattr(self, state) + more)

    def compute(self) -> Tensor:
        total, count = (getattr(self, state) for state in self._sums)
        return total / count


class LPIPSMean(ClipMean):
    """Mean LPIPS over clips, all frames; the model, on the device of the clips, is kept out of the state dict."""

    higher_is_better = False

    def __init__(self, model: LPIPS, **kwargs: object) -> None:
        super().__init__(partial(quality.lpips, model), f"lpips_{model.net}", **kwargs)


class CodeUsage(ExactMetric):
    """Usage, entropy and perplexity of a codebook of `num_codes`: `update(indices)`, integers of any shape."""

    counts: Tensor

    def __init__(self, num_codes: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(num_codes, dtype=torch.int64), dist_reduce_fx="sum", persistent=True)

    def update(self, indices: Tensor) -> None:
        self.counts = self.counts + quality.count_codes(indices, len(self.counts))

    def compute(self) -> dict[str, Tensor]:
        return {name: torch.tensor(value) for name, value in quality.code_statistics(self.counts).items()}


def _merge_packed(parts: Tensor) -> Tensor:
    """Reduce stacked states (ranks, D+2, D) to one."""
    merged = parts[0]
    for part in parts[1:]:
        merged = _pack(merge_stats(_unpack(merged), _unpack(part)))
    return merged


def _pack(stats: FeatureStats) -> Tensor:
    # One tensor per set: count, mean and scatter can only be merged together.
    return torch.cat([stats.count.expand(1, len(stats.mean)), stats.mean[None], stats.scatter])


def _unpack(packed: Tensor) -> FeatureStats:
    return FeatureStats(packed[0, 0], packed[1], packed[2:])


class FrechetDistance(ExactMetric):
    """Frechet distance of two feature sets: `update(features (B,D), real=True or False)`. Memory is D x D."""

    higher_is_better = False

    real: Tensor
    fake: Tensor

    def __init__(self, num_features: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.num_features = num_features
        for name in ("real", "fake"):
            self.add_state(name, _pack(empty_stats(num_features)), dist_reduce_fx=_merge_packed, persistent=True)

    def update(self, features: Tensor, real: bool) -> None:
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(f"features have shape {tuple(features.shape)}; accepted: (B,{self.num_features})")
        name = "real" if real else "fake"
        stats = feature_stats(features.to(self.real.device))
        setattr(self, name, _pack(merge_stats(_unpack(getattr(self, name)), stats)))

    def compute(self) -> Tensor:
        return torch.tensor(stats_distance(_unpack(self.real), _unpack(self.fake)), dtype=torch.float64)


class FVD(FrechetDistance):
    """Frechet video distance under a protocol: `update(frames (B,T,H,W,3), real)`, uint8 or float in [0,1]; the network
    is kept out of the state dict."""

    def __init__(self, network: FeatureNetwork, protocol: Protocol, num_features: int = 400, **kwargs: object) -> None:
        super().__init__(num_features, **kwargs)
        self._network, self.protocol = (network,), protocol

    def update(self, frames: np.ndarray | Tensor, real: bool) -> None:
        super().update(network_features(self._network[0], torch.as_tensor(frames), self.protocol), real)


class SetDistance(ExactMetric):
    """Any function (real (N,D), fake (M,D)) -> number, or dict of numbers and lists of numbers, of two whole feature
    sets: `update(features (B,D), real)`. Memory is N x D, as float32."""

    higher_is_better = False

    real: list[Tensor]
    fake: list[Tensor]
    num_features: Tensor

    def __init__(self, function: Callable[[np.ndarray, np.ndarray], float | Mapping[str, Score]],
                 **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.function = function
        for name in ("real", "fake"):
            # Flat, as torchmetrics sends an empty list of a process without clips as a tensor of one dimension.
            self.add_state(name, [], dist_reduce_fx="cat", persistent=True)
        self.add_state("num_features", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max", persistent=True)

    def update(self, features: Tensor, real: bool) -> None:
        """Add features (B, D), finite, to one of the sets. ValueError: another shape, NaN or infinity."""
        if features.ndim != 2 or self.num_features not in (0, features.shape[1]):
            raise ValueError(f"features have shape {tuple(features.shape)}; accepted: (B,{self.num_features or 'D'})")
        if not torch.isfinite(features).all():
            raise ValueError(f"features of {tuple(features.shape)} hold NaN or infinity")
        name = "real" if real else "fake"
        flat = features.detach().to(self.device, torch.float32).flatten()
        setattr(self, name, [*getattr(self, name), flat])
        self.num_features = self.num_features.new_tensor(features.shape[1])

    def compute(self) -> Tensor | dict[str, Tensor]:
        sets = [dim_zero_cat(part) if len(part) else torch.zeros(0) for part in (self.real, self.fake)]
        value = self.function(*(part.cpu().view(-1, max(1, int(self.num_features))).numpy() for part in sets))
        if isinstance(value, Mapping):
            return {name: torch.tensor(number, dtype=torch.float64) for name, number in value.items()}
        return torch.tensor(value, dtype=torch.float64)


class KernelDistance(SetDistance):
    """Kernel video distance (unbiased polynomial MMD)."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(polynomial_mmd, **kwargs)


class FrechetUncertainty(SetDistance):
    """Bootstrap interval, k-fold mean and deviation, and limit of infinitely many clips, of the Frechet distance."""

    def __init__(self, seed: int = 0, **kwargs: object) -> None:
        super().__init__(partial(uncertainty, seed=seed), **kwargs)


class InceptionScore(ExactMetric):
    """Inception score of logits: `update(logits (B,D))`. Memory is D."""

    higher_is_better = True

    count: Tensor
    shares: Tensor
    negative_entropy: Tensor

    def __init__(self, num_classes: int = 400, **kwargs: object) -> None:
        super().__init__(**kwargs)
        for name, size in (("count", ()), ("shares", num_classes), ("negative_entropy", ())):
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum", persistent=True)

    def update(self, logits: Tensor) -> None:
        count, shares, negative_entropy = class_sums(logits)
        self.count, self.shares = self.count + count, self.shares + shares
        self.negative_entropy = self.negative_entropy + negative_entropy

    def compute(self) -> Tensor:
        return score_from_sums(self.count, self.shares, self.negative_entropy)
