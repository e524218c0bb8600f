"""What the ranks of a test run: every metric sees a share of the data and computes the value of the whole."""

import torch
import torch.distributed as dist

from nbp.evaluation import quality
from nbp.evaluation.metrics import (
    ClipMean,
    CodeUsage,
    FrechetDistance,
    FrechetUncertainty,
    InceptionScore,
    KernelDistance,
)


def cases(**options):
    """(metric, its updates as tuples of arguments): clips, codes, logits and pairs of feature sets."""
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(7, 3, 2, 16, 16, generator=generator)
    noisy = (video + 0.1 * torch.rand(video.shape, generator=generator)).clamp(0, 1)
    features = [torch.randn(90, 6, generator=generator) + shift for shift in (0, 0.5)]
    sets = [(part, side == 0) for parts in zip(*(x.split(9) for x in features)) for side, part in enumerate(parts)]
    for score in (quality.psnr, quality.ssim, quality.frame_difference_error):
        yield ClipMean(score, **options), list(zip(video.split(1), noisy.split(1)))
    yield CodeUsage(50, **options), [(part,) for part in torch.randint(0, 50, (40, 3), generator=generator).split(4)]
    yield InceptionScore(6, **options), [(part,) for part in features[0].split(9)]
    for metric in (FrechetDistance(6, **options), KernelDistance(**options), FrechetUncertainty(seed=2, **options)):
        yield metric, sets


def computed(metric, updates):
    """Value after the updates, as a list of numbers."""
    for arguments in updates:
        metric.update(*arguments)
    value = metric.compute()
    return [torch.as_tensor(x).tolist() for x in (value.values() if isinstance(value, dict) else [value])]


def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for (metric, updates), (alone, _) in zip(cases(), cases(sync_on_compute=False)):
        expected = computed(alone, updates)
        for uneven in (len(updates) // 3, 0):   # also where a rank has no clips at all
            metric.reset()
            got = computed(metric, updates[:uneven] if rank == 0 else updates[uneven:])
            for x, y in zip(got, expected, strict=True):
                torch.testing.assert_close(torch.tensor(x), torch.tensor(y), rtol=1e-6, atol=1e-9)
    print("all agree", flush=True)


if __name__ == "__main__":
    main()
