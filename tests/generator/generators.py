"""Small generators that the tests share."""

import torch

from nbp.config import GeneratorConfig
from nbp.generator.model import Generator

NUM_CODES = 40
GRID = (2, 4, 8)

UNCONDITIONAL = dict(condition="none", num_condition_ids=0, condition_len=0)
TEXT = dict(condition="text", num_condition_ids=20, condition_len=5)
VARIANTS = {
    "plain 1": dict(block_shape=[1, 1, 1]),
    "plain 4": dict(block_shape=[1, 1, 4]),
    "plain 16": dict(block_shape=[1, 1, 16]),
    "plain frame": dict(block_shape=[1, 4, 8]),
    "plain 2x2x2": dict(block_shape=[2, 2, 2]),
    "hybrid 1": dict(block_shape=[1, 1, 1], start="hybrid"),
    "hybrid 4": dict(block_shape=[1, 1, 4], start="hybrid"),
    "hybrid 16": dict(block_shape=[1, 2, 8], start="hybrid"),
    "hybrid 2x2x2": dict(block_shape=[2, 2, 2], start="hybrid"),
    "unconditional": dict(block_shape=[1, 1, 4], **UNCONDITIONAL),
    "unconditional hybrid": dict(block_shape=[1, 1, 4], start="hybrid", **UNCONDITIONAL),
    "no begin 1": dict(block_shape=[1, 1, 1], begin_token=False, **UNCONDITIONAL),
    "no begin 8": dict(block_shape=[1, 1, 8], begin_token=False, **UNCONDITIONAL),
    "label, no begin": dict(block_shape=[1, 1, 8], begin_token=False, spare_id=True, full_head=True),
    "text, no pads": dict(block_shape=[1, 1, 4], pad_visibility="causal", **TEXT),
    "text, pads hidden": dict(block_shape=[1, 1, 4], pad_token=2, **TEXT),
    "text hybrid, pads hidden": dict(block_shape=[1, 1, 4], start="hybrid", pad_token=2, **TEXT),
    "text hybrid, pads causal": dict(block_shape=[1, 1, 4], start="hybrid", pad_token=2, pad_visibility="causal",
                                     **TEXT),
    "full head": dict(block_shape=[1, 1, 4], full_head=True),
    "rotary": dict(block_shape=[1, 1, 8], rotary=True),
    "rotary hybrid 2x2x2": dict(block_shape=[2, 2, 2], start="hybrid", rotary=True),
    "rotary, no begin": dict(block_shape=[1, 1, 8], begin_token=False, rotary=True, **UNCONDITIONAL),
}


def config(**changes):
    fields = dict(num_layers=2, num_heads=2, width=16, num_codes=NUM_CODES, grid=list(GRID), block_shape=[1, 1, 4],
                  condition="label", start="plain", num_condition_ids=3, condition_len=1, max_seq_len=128, dropout=0.0)
    return GeneratorConfig(**{**fields, **changes})


def build(**changes):
    """A generator in eval mode with weights large enough that every connection shows in the logits."""
    torch.manual_seed(0)
    generator = Generator(config(**changes))
    with torch.no_grad():
        for tensor in generator.state_dict().values():
            if tensor.ndim > 1:
                tensor.normal_(std=0.4)
    return generator.eval()


def codes(batch=2, grid=GRID, seed=0):
    return torch.randint(NUM_CODES, (batch, *grid), generator=torch.Generator().manual_seed(seed))


def condition(generator, batch=2, seed=1):
    """Random ids, the last text ids being pads; None for unconditional models."""
    settings = generator.config
    if settings.condition == "none":
        return None
    shape = (batch, settings.condition_len)
    ids = torch.randint(settings.num_condition_ids, shape, generator=torch.Generator().manual_seed(seed))
    if settings.condition == "text":
        ids[:, -2:] = 2
    return ids


def prefix(generator, batch=2):
    """What generation starts from: the first row of blocks where the model cannot begin by itself."""
    return None if generator.config.begin_token else codes(batch)[:, :1]
