"""Weights in 8 bits: their stated error, clips that repeat, and where they cannot be."""

import pytest
import torch
from generators import VARIANTS, build, condition, prefix

from nbp.generator.int8 import Int8Linear, multiplies_int8

pytestmark = pytest.mark.skipif(not multiplies_int8("cpu"), reason="no products of 8 bits")


@pytest.mark.parametrize("rows", [1, 16])
def test_the_stated_error_of_8_bits(rows):
    torch.manual_seed(0)
    linear = torch.nn.Linear(256, 512)
    x = torch.randn(2, rows, 256)
    with torch.no_grad():
        want, found = linear(x), Int8Linear(linear.weight, linear.bias)(x)
    assert found.shape == want.shape and 0.001 < (found - want).norm() / want.norm() < 0.03


@pytest.mark.parametrize("changes", [VARIANTS["plain 1"], VARIANTS["hybrid 4"], dict(full_head=True, multinomial=True)])
def test_clips_in_8_bits(changes):
    generator = build(**changes)
    ids, given = condition(generator), prefix(generator)
    generator.pack(int8=True)
    clips = [generator.generate(ids, given, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(clips[0], clips[1]) and not torch.equal(clips[0], clips[2])
    assert 0 <= clips[0].min() and clips[0].max() < generator.config.num_codes
    assert isinstance(generator.transformer.layers[0].mlp[0], Int8Linear)
    assert isinstance(generator._packed_head, Int8Linear)
    with pytest.raises(RuntimeError, match="sampling only"):
        generator.state_dict()


def test_8_bits_where_they_cannot_be():
    generator = build()
    generator.pack(int8=True)
    with pytest.raises(ValueError, match="lookahead=2 with int8"):
        generator.generate(torch.tensor([0]), lookahead=2)
    with pytest.raises(ValueError, match="weights in float32; got torch.bfloat16 on cpu"):
        build().bfloat16().pack(int8=True)
