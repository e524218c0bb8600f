"""The official method gives our tokens, filters and losses, so that only the time is compared."""

import pytest
import torch

from nbp.benchmarking import official_method
from nbp.config import GeneratorConfig
from nbp.generator.model import Generator
from nbp.generator.nucleus import filter_logits

MODELS = {
    "k600": dict(block_shape=[1, 1, 4], begin_token=False),
    "plain, tokens": dict(block_shape=[1, 1, 1]),
    "hybrid, labels": dict(block_shape=[1, 1, 4], start="hybrid", condition="label", num_condition_ids=3,
                           condition_len=1, full_head=True),
    "hybrid, clamped": dict(block_shape=[1, 1, 4], start="hybrid", condition="label", num_condition_ids=3,
                            condition_len=1, full_head=True, clamp_samples=True, spare_id=True),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request):
    torch.manual_seed(0)
    fields = dict(num_layers=2, num_heads=2, width=16, num_codes=200, grid=[2, 4, 4], condition="none", start="plain",
                  max_seq_len=64, dropout=0.0, multinomial=True)
    generator = Generator(GeneratorConfig(**{**fields, **request.param})).eval()
    for parameter in generator.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return generator


def start_of(model, batch=1):
    condition = torch.arange(batch)[:, None] if model.config.condition == "label" else None
    prefix = None if model.config.begin_token else torch.arange(batch * 16).view(batch, 1, 4, 4)
    return condition, prefix


@pytest.mark.parametrize("filters", [dict(top_k=30, top_p=0.8), dict(top_k=16000, top_p=0.9)])
def test_same_tokens(model, filters):
    condition, prefix = start_of(model)
    clips = []
    for seed in range(3):
        ours = model.generate(condition, prefix, generator=torch.Generator().manual_seed(seed), **filters)
        rng = torch.Generator().manual_seed(seed)
        assert torch.equal(official_method.generate(model, condition, prefix, generator=rng, **filters), ours)
        clips.append(ours)
    assert not torch.equal(clips[0], clips[1])


def test_same_loss(model):
    codes = torch.randint(200, (2, 2, 4, 4), generator=torch.Generator().manual_seed(0))
    condition, _ = start_of(model, 2)
    torch.testing.assert_close(official_method.loss(model, codes, condition), model.loss(codes, condition))


@pytest.mark.parametrize("top_k, top_p", [(16000, 0.9), (50, 0.9), (64000, 0.5), (7, 0.0)])
@pytest.mark.parametrize("coarse", [False, True])
def test_same_filter(top_k, top_p, coarse):
    """bfloat16 makes nearly every logit tie with others, also the last of top-k and of the nucleus."""
    logits = torch.randn(8, 5000, generator=torch.Generator().manual_seed(1))
    logits = logits.bfloat16().float() if coarse else logits
    want = official_method.nucleus(official_method.top_k_only(logits, top_k), top_p)
    assert torch.equal(filter_logits(logits, top_k, top_p), want)
    by_id = filter_logits(logits, top_k, top_p, ties_by_id=True)
    assert torch.equal((by_id > -torch.inf).sum(-1), (want > -torch.inf).sum(-1))
    assert torch.equal(by_id.sort(-1).values, want.sort(-1).values)
    for row, kept in zip(logits, by_id > -torch.inf):       # a tied id stays before those with larger ids
        edge = row[kept].min()
        tied = kept[row == edge].int()
        assert torch.equal(tied, tied.sort(descending=True).values)
