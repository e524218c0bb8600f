"""Rotary positions: where each stream position lies, and that attention sees differences of places only."""

import pytest
import torch
from generators import GRID, build, codes, config

from nbp.generator.rotary import places, rotate, rotations
from nbp.generator.sequence import Layout


@pytest.mark.parametrize("start", ["plain", "hybrid"])
@pytest.mark.parametrize("block_shape", [[1, 1, 8], [2, 2, 2], [1, 4, 8]])
def test_a_position_has_the_place_of_the_token_that_it_predicts(start, block_shape):
    settings = config(start=start, block_shape=block_shape)
    layout = Layout(settings)
    where = places(layout, GRID, block_shape, layout.condition_len + 64)
    assert where[0].tolist() == [0, 0, 0]
    raster = torch.arange(64).view(1, *GRID)
    from nbp.generator.sequence import to_steps
    t, h, w = torch.unravel_index(to_steps(raster, block_shape)[0], GRID)
    assert torch.equal(where[1:], torch.stack([t, h, w], 1).float())


def test_products_depend_on_differences_of_places():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 12, generator=generator)
    place, other = torch.tensor([[1.0, 2, 3]]), torch.tensor([[4.0, 1, 6]])

    def product(shift):
        turns = [rotations(where + shift, 12) for where in (place, other)]
        return (rotate(query, turns[0]) * rotate(key, turns[1])).sum()

    torch.testing.assert_close(product(0), product(torch.tensor([3.0, 5, 2])))
    assert abs(product(0) - (query * key).sum()) > 1e-3


def test_longer_clips_continue_and_wider_ones_are_refused():
    generator = build(block_shape=[1, 1, 8], rotary=True)
    longer = generator.generate(condition=torch.tensor([1]), grid=(3, 4, 8), greedy=True)
    assert torch.equal(longer[:, :2], generator.generate(condition=torch.tensor([1]), greedy=True))
    with pytest.raises(ValueError, match="rotary positions keeps the height and width"):
        generator.generate(condition=torch.tensor([1]), grid=(2, 8, 8))


def test_fields_are_off_by_default():
    settings = config()
    assert not settings.rotary and settings.code_levels is None
    assert build().transformer.turns is None
    with pytest.raises(ValueError, match="odd width"):
        config(rotary=True, width=6, num_heads=2).check()
    assert torch.isfinite(build(rotary=True)(codes(), torch.tensor([0, 1]))).all()
