"""What the quickstart has to reach, each figure against an honest baseline of the same run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_PSNR_LOSS_DB = 1.0
UNIFORM_SHARE = 0.5
MIN_CONSISTENCY = 0.6


@dataclass(frozen=True)
class Check:
    """One requirement: `value` must be below `limit`, or at least `limit` where `higher` is set."""

    name: str
    value: float
    limit: float
    required: str
    baseline: str
    higher: bool = False

    @property
    def passed(self) -> bool:
        return self.value >= self.limit if self.higher else self.value < self.limit


def checks(scores: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """The checks of a run, from `sets` of scores.json."""
    real, pooled, rebuilt, made = (scores[name] for name in ("real", "pooled", "reconstruction", "generated"))
    by_class, own = scores["class_tokens"]["fvd"], "fvd_to_reconstructions"
    still, uniform = scores["frozen"][own], scores["uniform_tokens"][own]
    return [
        Check("Reconstruction, LPIPS", rebuilt["lpips"], pooled["lpips"], f"below {pooled['lpips']:.3f}",
              f"pooled pixels {pooled['lpips']:.3f}"),
        Check("Reconstruction, rFVD", rebuilt["fvd"], pooled["fvd"], f"below {pooled['fvd']:.1f}",
              f"pooled pixels {pooled['fvd']:.1f}"),
        Check("Reconstruction, PSNR (dB)", rebuilt["psnr"], pooled["psnr"] - MAX_PSNR_LOSS_DB,
              f"at least {pooled['psnr'] - MAX_PSNR_LOSS_DB:.2f}, at most {MAX_PSNR_LOSS_DB:g} dB less",
              f"pooled pixels {pooled['psnr']:.2f}", higher=True),
        Check("Generation, gFVD against class frequencies", made["fvd"], by_class, f"below {by_class:.1f}",
              f"tokens by class frequency {by_class:.1f}"),
        # Against real clips this would judge the tokenizer: some draw random tokens milder than others, and their
        # reconstructions may be further than the limit themselves.
        Check("Generation in the tokenizer's own pictures, FVD against chance", made[own], UNIFORM_SHARE * uniform,
              f"below {UNIFORM_SHARE * uniform:.1f}, half of chance", f"uniform random tokens {uniform:.1f}"),
        Check("Generation, class consistency", made["class_consistency"], MIN_CONSISTENCY,
              f"at least {MIN_CONSISTENCY:.0%}",
              f"real {real['class_consistency']:.0%}, reconstructions {rebuilt['class_consistency']:.0%}, "
              f"chance {1 / len(real['class_consistency_by_class']):.0%}", higher=True),
        Check("Prediction in the tokenizer's own pictures, FVD", scores["predicted"][own], still,
              f"below {still:.1f}", f"last given frame, reconstructed and repeated, {still:.1f}"),
    ]
