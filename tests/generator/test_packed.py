"""Packed weights: the same clips, and no way to store or train them."""

import pytest
import torch
from generators import VARIANTS, build, codes, condition, prefix

from nbp.generator import packed

pytestmark = pytest.mark.skipif(not packed.can_pack(torch.ones(1)), reason="no oneDNN")


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
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


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 on this processor")
@pytest.mark.parametrize("changes", [VARIANTS["plain 4"], VARIANTS["rotary"]])
def test_close_in_bfloat16(changes, monkeypatch):
    """Products in bfloat16 may be packed where the processor multiplies it; they are the same up to rounding."""
    monkeypatch.setattr(packed, "multiplies_bfloat16", lambda device: True)
    generator = build(**changes).bfloat16()
    ids = codes()
    with torch.no_grad():
        want = generator(ids, condition(generator)).float()
        packed.pack_linears(generator.transformer, packed.PackedLinear)
        found = generator(ids, condition(generator)).float()
    assert (found - want).abs().max() < 0.05 * want.abs().max()


def test_a_gelu_is_part_of_the_product():
    mlp = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
    x = torch.randn(3, 8)
    with torch.no_grad():
        want = mlp(x)
        packed.pack_linears(mlp, packed.PackedLinear)
        assert isinstance(mlp[1], torch.nn.Identity) and mlp[0].after == "gelu" and mlp[2].after == "none"
        torch.testing.assert_close(mlp(x), want)


@pytest.mark.parametrize("batch, rows", [(1, 1), (2, 1), (2, 16), (2, 33)])
@pytest.mark.parametrize("out", [80, 128, 7])
@pytest.mark.parametrize("bias", [True, False])
def test_same_products(batch, rows, out, bias):
    linear = torch.nn.Linear(48, out, bias)
    x = torch.randn(batch, rows, 48)
    with torch.no_grad():
        torch.testing.assert_close(packed.PackedLinear(linear.weight, linear.bias)(x), linear(x))


def test_nothing_to_store_or_train(tmp_path):
    generator = build(block_shape=[1, 1, 4])
    generator.pack()
    with pytest.raises(RuntimeError, match="sampling only"):
        generator.save_pretrained(tmp_path / "model")


INT8 = pytest.mark.skipif(not packed.multiplies_int8("cpu"), reason="no products of 8 bits")


@INT8
@pytest.mark.parametrize("rows", [1, 16])
def test_the_stated_error_of_8_bits(rows):
    torch.manual_seed(0)
    linear = torch.nn.Linear(256, 512)
    x = torch.randn(2, rows, 256)
    with torch.no_grad():
        want, found = linear(x), packed.Int8Linear(linear.weight, linear.bias)(x)
    assert found.shape == want.shape and 0.001 < (found - want).norm() / want.norm() < 0.03


@INT8
@pytest.mark.parametrize("changes", [VARIANTS["plain 1"], VARIANTS["hybrid 4"], dict(full_head=True, multinomial=True)])
def test_clips_in_8_bits(changes):
    generator = build(**changes)
    ids, given = condition(generator), prefix(generator)
    generator.pack(int8=True)
    clips = [generator.generate(ids, given, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(clips[0], clips[1]) and not torch.equal(clips[0], clips[2])
    assert 0 <= clips[0].min() and clips[0].max() < generator.config.num_codes
    assert isinstance(generator.transformer.layers[0].mlp[0], packed.Int8Linear)
    assert isinstance(generator._packed_head, packed.Int8Linear)
    with pytest.raises(RuntimeError, match="sampling only"):
        generator.state_dict()


@INT8
def test_8_bits_where_they_cannot_be():
    generator = build()
    generator.pack(int8=True)
    with pytest.raises(ValueError, match="lookahead=2 with int8"):
        generator.generate(torch.tensor([0]), lookahead=2)
    with pytest.raises(ValueError, match="weights in float32; got torch.bfloat16 on cpu"):
        build().bfloat16().pack(int8=True)


@pytest.mark.parametrize("fast", [False, True])
def test_when_bfloat16_is_packed(fast, monkeypatch):
    monkeypatch.setattr(packed, "multiplies_bfloat16", lambda device: fast)
    assert packed.can_pack(torch.ones(1, dtype=torch.bfloat16)) is fast
