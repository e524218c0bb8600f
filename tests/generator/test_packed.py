"""Packed weights: the same clips, and no way to store or train them."""

import pytest
import torch
from generators import VARIANTS, build, condition, prefix

from nbp.generator import packed

pytestmark = pytest.mark.skipif(not packed.can_pack(torch.ones(1)), reason="no oneDNN")
BLOCKS = {name: changes for name, changes in VARIANTS.items() if not name.endswith(" 1")}


@pytest.mark.parametrize("changes", BLOCKS.values(), ids=BLOCKS.keys())
@pytest.mark.parametrize("cfg_scale", [None, 1.5])
def test_same_clips(changes, cfg_scale):
    generator = build(**changes)
    if generator.config.condition == "none" and cfg_scale is not None:
        return

    def generate():
        return generator.generate(condition(generator), prefix(generator), cfg_scale=cfg_scale,
                                  generator=torch.Generator().manual_seed(3))

    want = generate()
    generator.pack()
    exact = generator.config.multinomial
    assert isinstance(generator.transformer.layers[0].attention.qkv, packed.PackedLinear) is not exact
    assert torch.equal(generate(), want)


@pytest.mark.parametrize("rows", [1, 16, 33])
def test_same_products(rows):
    linear = torch.nn.Linear(48, 80)
    x = torch.randn(2, rows, 48)
    with torch.no_grad():
        torch.testing.assert_close(packed.PackedLinear(linear.weight, linear.bias)(x), linear(x))


def test_steps_of_one_token_stay_as_they_are():
    generator = build(block_shape=[1, 1, 1])
    generator.pack()
    assert isinstance(generator.transformer.layers[0].attention.qkv, torch.nn.Linear)


def test_nothing_to_store_or_train(tmp_path):
    generator = build()
    generator.pack()
    with pytest.raises(RuntimeError, match="sampling only"):
        generator.save_pretrained(tmp_path / "model")
