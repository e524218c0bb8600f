"""Sampling at the released vocabularies against a loop without cache that is written from the layouts alone."""

import pytest
import torch

from nbp.config import GeneratorConfig
from nbp.generator.model import Generator

GRID, TOTAL, CODES = (2, 4, 8), 64, 64_000
QUIRKS = dict(full_head=True, clamp_samples=True, multinomial=True, condition_dropout=0.0, dropout=0.0)
KINDS = {
    "unconditional": dict(condition="none", start="plain", begin_token=False, pad_visibility="decoding"),
    "label plain": dict(condition="label", start="plain", begin_token=False, spare_id=True, num_condition_ids=101,
                        condition_len=1, pad_visibility="decoding"),
    "label hybrid": dict(condition="label", start="hybrid", num_condition_ids=101, condition_len=1,
                         pad_visibility="causal"),
    "text hybrid": dict(condition="text", start="hybrid", num_condition_ids=32_000, condition_len=8,
                        pad_visibility="causal"),
}


def build(kind, block):
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(num_layers=2, num_heads=2, width=16, num_codes=CODES, grid=list(GRID),
                                          block_shape=[1, 1, block], max_seq_len=160, **KINDS[kind], **QUIRKS)).eval()
    with torch.no_grad():
        for tensor in generator.state_dict().values():
            if tensor.ndim > 1:
                tensor.normal_(std=0.4)
    return generator


def inputs(generator, condition, known):
    """Ids of [condition | begin | video so far | middle], as lists are written down."""
    config = generator.config
    block, hybrid = config.block_size, config.start == "hybrid"
    special = block if hybrid else 0
    video = [code + special + config.num_condition_ids for code in known]
    ids = [] if condition is None else [int(label) + special for label in condition]
    if not hybrid:
        return ids + video
    ids += [0] + video[:block]
    return ids + list(range(1, block)) + video[block:] if len(known) >= block else ids


def mask(generator, length):
    config = generator.config
    causal = config.block_size if config.start == "hybrid" else 0
    blocks = []
    for position in range(-config.condition_len, length - config.condition_len):
        if position < 0:
            blocks.append(-1)
        elif position < causal:
            blocks.append(position)
        else:
            blocks.append(causal + (position - causal) // config.block_size)
    return torch.tensor([[query >= key for key in blocks] for query in blocks])


def draw(logits, top_k, top_p):
    """Ids of (n, V) logits by sorting everything; ties with the last of top-k stay."""
    logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    values, order = logits.sort(descending=True)
    before = values.softmax(-1).cumsum(-1) - values.softmax(-1)
    values = values.masked_fill(before > top_p, -torch.inf)
    return torch.multinomial(torch.empty_like(logits).scatter_(1, order, values).softmax(-1), 1)[:, 0]


@torch.no_grad()
def sampled_without_cache(generator, condition, known, top_k, top_p):
    config = generator.config
    offset = generator.token_embedding.num_embeddings - CODES - int(config.spare_id)
    while len(known) < TOTAL:
        ids = torch.tensor([inputs(generator, condition, known)])
        hidden = generator.transformer(generator.token_embedding(ids), mask(generator, ids.shape[1]))
        count = 1 if config.start == "hybrid" and len(known) < config.block_size else config.block_size
        known = known + (draw(generator.head(hidden[0, -count:]), top_k, top_p) - offset).tolist()
    return torch.tensor(known).clamp(0, CODES - 1).view(1, *GRID)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [1, 16])
def test_seeded_samples(kind, block):
    generator = build(kind, block)
    special = block if "hybrid" in kind else int(kind == "label plain")
    assert generator.head.out_features == CODES + special + generator.config.num_condition_ids
    condition, known = None, []
    if generator.config.condition_len:
        condition = torch.randint(generator.config.num_condition_ids, (1, generator.config.condition_len),
                                  generator=torch.Generator().manual_seed(1))
    if not generator.config.begin_token:
        known = list(range(0, 1600, 100))
    torch.manual_seed(7)
    want = sampled_without_cache(generator, None if condition is None else condition[0].tolist(), known, 16_000, 0.9)
    got = generator.generate(condition, torch.tensor([known]) if known else None,
                             generator=torch.Generator().manual_seed(7))
    assert got.unique().numel() > 20
    assert torch.equal(got, want)
