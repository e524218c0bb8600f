"""Tiny untrained pipelines."""

import torch

from nbp.config import GeneratorConfig, TokenizerConfig
from nbp.generator.conditions import train_text_tokenizer
from nbp.generator.model import Generator
from nbp.hub.about import About, SamplingAdvice, ScoreNote
from nbp.pipeline import VideoPipeline
from nbp.tokenizer.model import Tokenizer

CLASSES = ["coinrun", "jumper", "maze"]
ABOUT = About("procgen", CLASSES, 15, 32, 17, SamplingAdvice(temperature=0.8, top_p=0.95),
              scores=[ScoreNote("gfvd", 123.4, "quickstart")])


def make_tokenizer():
    return Tokenizer(TokenizerConfig([8, 8, 8, 16], [1, 1, 1, 1], [[1, 2, 2], [2, 2, 2], [2, 2, 2]], [5, 5, 5])).eval()


def make_pipeline(condition="label", folder=None, **fields):
    """32x32 pixels, 17 frames; `folder` receives the text tokenizer of a text-conditioned one."""
    torch.manual_seed(0)
    conditions = {"none": {}, "label": dict(num_condition_ids=3, condition_len=1),
                  "text": dict(num_condition_ids=512, condition_len=8, pad_token=2)}
    fields = {"start": "hybrid", **conditions[condition], **fields}
    generator = Generator(GeneratorConfig(2, 2, 32, 125, [5, 4, 4], [1, 1, 4], condition, **fields)).eval()
    with torch.no_grad():     # fresh weights hardly look at what is before
        for weight in generator.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
    if condition == "text":
        train_text_tokenizer(CLASSES, folder)
    return VideoPipeline(make_tokenizer(), generator, ABOUT, folder)
