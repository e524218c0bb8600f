import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from metrics_by_ranks import cases, computed
from torchmetrics import MetricCollection

from nbp.evaluation import fvd, quality
from nbp.evaluation.diversity import inception_score
from nbp.evaluation.features import Clips, extract_features
from nbp.evaluation.lpips import LPIPS
from nbp.evaluation.metrics import (
    FVD,
    ClipMean,
    CodeUsage,
    FrechetDistance,
    FrechetUncertainty,
    InceptionScore,
    KernelDistance,
    LPIPSMean,
)
from nbp.evaluation.uncertainty import uncertainty

HERE = Path(__file__).parent

pytestmark = pytest.mark.filterwarnings("ignore:the .* set has only")


def draw(count, seed):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) + seed


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_frechet_metric_is_the_function(batch):
    metric, real, fake = FrechetDistance(6), draw(30, 0), draw(25, 1)
    for part in real.split(batch):
        metric.update(part, real=True)
    for part in fake.split(batch):
        metric.update(part, real=False)
    assert metric.compute().item() == pytest.approx(fvd.frechet_distance(real, fake), rel=1e-9)


def test_frechet_metric_over_uneven_ranks():
    """Reduced as torchmetrics reduces states of several processes: stacked, then the state's own function."""
    real, fake = draw(31, 0), draw(27, 1)
    ranks = []
    for part_real, part_fake in zip(real.split([5, 20, 6]), fake.split([20, 3, 4])):
        metric = FrechetDistance(6)
        metric.update(part_real, real=True)
        metric.update(part_fake, real=False)
        ranks.append(metric)
    merged = FrechetDistance(6)
    for name in ("real", "fake"):
        setattr(merged, name, merged._reductions[name](torch.stack([getattr(metric, name) for metric in ranks])))
    got = fvd.stats_distance(*(unpacked(merged, name) for name in ("real", "fake")))
    assert got == pytest.approx(fvd.frechet_distance(real, fake), rel=1e-9)


def test_two_processes_compute_the_value_of_one():
    """Uneven shares of clips, codes, logits and features, reduced over a real process group."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               str(HERE / "metrics_by_ranks.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=HERE.parents[1],
                            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)]),
                                              "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0 and result.stdout.count("all agree") == 2, result.stderr[-3000:]


@pytest.mark.parametrize("number", range(len(list(cases()))))
def test_a_checkpoint_resumes_every_metric(number):
    metric, updates = list(cases())[number]
    half = len(updates) // 2
    for arguments in updates[:half]:
        metric.update(*arguments)
    saved = metric.state_dict()
    expected = computed(metric, updates[half:])
    for _ in range(2):   # also from the same dict again: going on leaves it as it was
        resumed = list(cases())[number][0]
        resumed.load_state_dict(saved)
        assert computed(resumed, updates[half:]) == expected


def unpacked(metric, name):
    packed = getattr(metric, name)
    return fvd.FeatureStats(packed[0, 0], packed[1], packed[2:])


def test_frechet_metric_reset_state_dict_and_size():
    metric = FrechetDistance(6)
    size = metric.real.numel()
    for seed in range(50):
        metric.update(draw(20, seed % 3), real=bool(seed % 2))
    assert metric.real.numel() == size and metric.half().real.dtype == torch.float64
    other = FrechetDistance(6)
    other.load_state_dict(metric.state_dict())
    assert torch.equal(other.real, metric.real) and torch.equal(other.fake, metric.fake)
    metric.reset()
    assert metric.real.abs().sum() == 0
    with pytest.raises(ValueError, match=r"accepted: \(B,6\)"):
        metric.update(torch.zeros(2, 5), real=True)


def test_fvd_metric_is_extraction_and_distance(network, protocol, make_frames):
    real, fake = make_frames(12, 0), make_frames(12, 1)
    metric = FVD(network, protocol, num_features=24)
    for start in range(0, 12, 5):
        metric.update(real[start:start + 5], real=True)
        metric.update(fake[start:start + 5], real=False)
    features = [extract_features(Clips.from_array("set", x), network, protocol) for x in (real, fake)]
    assert metric.compute().item() == pytest.approx(fvd.frechet_distance(*features), rel=1e-5)
    assert set(metric.state_dict()) == {"real", "fake"}


def test_kernel_metric():
    metric, real, fake = KernelDistance(), draw(20, 0), draw(10, 1)
    for part in real.split(7):
        metric.update(part, real=True)
    metric.update(fake, real=False)
    assert metric.compute().item() == pytest.approx(fvd.polynomial_mmd(real, fake))


def test_uncertainty_metric():
    metric, real, fake = FrechetUncertainty(seed=2), draw(50, 0), draw(45, 1)
    for part in real.split(7):
        metric.update(part, real=True)
    metric.update(fake, real=False)
    got = {name: value.tolist() for name, value in metric.compute().items()}
    assert got == uncertainty(real.numpy(), fake.numpy(), seed=2)
    metric.reset()
    assert metric.real == [] and metric._reductions["real"] is not None


def test_inception_score_metric():
    logits = 3 * torch.randn(25, 7, generator=torch.Generator().manual_seed(0))
    metric, other = InceptionScore(7), InceptionScore(7)
    for part in logits.split(4):
        metric.update(part)
    assert metric.compute().item() == pytest.approx(inception_score(logits), rel=1e-12)
    other.load_state_dict(metric.half().state_dict())
    assert other.compute() == metric.compute() and other.shares.dtype == torch.float64
    metric.reset()
    assert metric.count == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_clips():
    """Peak memory of a process that saw 256 batches of features, and of one that saw 4096."""
    code = ("import resource, sys, torch\n"
            "from nbp.evaluation.metrics import FrechetDistance\n"
            "metric, generator = FrechetDistance(128), torch.Generator().manual_seed(0)\n"
            "for number in range(int(sys.argv[1])):\n"
            "    metric.update(torch.randn(16, 128, generator=generator), real=bool(number % 2))\n"
            "assert metric.compute() > 0\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")
    few, many = [int(subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(count)], capture_output=True,
                                    text=True, check=True).stdout) for count in (256, 4096)]
    # Keeping the features would take 4096 * 16 * 128 * 4 bytes = 34 MB more.
    print(f"peak memory: {few / 1024:.1f} MiB at 256 batches, {many / 1024:.1f} MiB at 4096")
    assert many - few < 10 * 1024


def test_paired_metrics(lpips_path):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, 3, 2, 32, 32, generator=generator)
    video = (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    for score in (quality.psnr, quality.ssim, quality.frame_difference_error):
        metric = ClipMean(score)
        metric.update(video[:2], target[:2])
        metric.update(video[2:], target[2:])
        assert metric.compute().item() == pytest.approx(score(video, target).mean().item(), rel=1e-6)
    model = LPIPS.from_file(lpips_path("alex"), "alex")
    metric = LPIPSMean(model)
    metric.update(video, target)
    assert metric.compute().item() == pytest.approx(quality.lpips(model, video, target).mean().item())
    state = set(metric.state_dict())
    assert state == {"total_lpips_alex", "count_lpips_alex"}, "the network's weights are no state of the score"


def test_sums_stay_exact_in_a_half_precision_module():
    module = torch.nn.ModuleList([ClipMean(lambda x, y: x, "x"), InceptionScore(2), FrechetDistance(6)])
    module.to(torch.bfloat16)
    for _ in range(3):   # 768 clips, and bfloat16 can't count beyond 256 one by one
        for part in torch.linspace(0, 1, 256).split(1):
            module[0].update(part, part)
        module.bfloat16()
    assert module[0].compute().item() == pytest.approx(0.5, rel=1e-6) and module[0].count_x == 768
    assert module[1].shares.dtype == module[2].real.dtype == torch.float64


def test_scores_in_a_collection_stay_apart():
    """Also where the first pair gives both the same value."""
    same, other = torch.rand(2, 1, 3, 2, 176, 176, generator=torch.Generator().manual_seed(0))
    collection = MetricCollection({"ssim": ClipMean(quality.ssim), "ms_ssim": ClipMean(quality.ms_ssim)})
    for video in (same, other):
        collection.update(video, same)
    for name, value in collection.compute().items():
        score = getattr(quality, name)
        assert value.item() == pytest.approx((score(same, same) + score(other, same)).item() / 2, rel=1e-6)


def test_set_metrics_refuse_bad_features():
    metric = KernelDistance()
    metric.update(torch.zeros(2, 5, requires_grad=True), real=True)
    with pytest.raises(ValueError, match=r"accepted: \(B,5\)"):
        metric.update(torch.zeros(2, 6), real=False)
    with pytest.raises(ValueError, match="NaN or infinity"):
        metric.update(torch.full((2, 5), torch.nan), real=False)
    with pytest.raises(ValueError, match="0 clips"):
        metric.compute()


def test_code_usage_metric():
    metric = CodeUsage(4)
    for indices in ([0, 0], [1, 1]):
        metric.update(torch.tensor(indices))
    assert {name: value.item() for name, value in metric.compute().items()} == {
        "code_usage": 0.5, "code_entropy_bits": 1.0, "code_perplexity": 2.0}
    assert np.array_equal(metric.counts, [2, 2, 0, 0])
    with pytest.raises(ValueError, match="float32; accepted: integers"):
        metric.update(torch.tensor([0.7]))
