"""Dropout on CPUs: every number by its own chance, the mean unchanged, the same masks from the same seed."""

import pytest
import torch

from nbp.generator.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_number_by_its_own_chance(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(4, 65537, dtype=dtype, requires_grad=True)
    out = Dropout(p)(x)
    zero = (out == 0).detach()
    assert out.dtype == dtype and out.detach().unique().numel() == 2
    assert float(zero.double().mean()) == pytest.approx(p, abs=4 * (p * (1 - p) / zero.numel()) ** 0.5)
    assert float(out.detach().double().mean()) == pytest.approx(1, abs=0.02)
    for shift in (1, 2, 3, 4, 16, 64):          # neighbours know nothing of one another
        both = (zero[:, shift:] & zero[:, :-shift]).double().mean()
        assert float(both) == pytest.approx(p * p, abs=0.01), shift
    out.sum().backward()
    assert torch.equal(x.grad, out.detach()), "a number that is dropped has no gradient"


def test_by_the_seed():
    x = torch.ones(3, 7, 5)
    torch.manual_seed(1)
    first, second = Dropout(0.5)(x), Dropout(0.5)(x)
    torch.manual_seed(1)
    assert torch.equal(Dropout(0.5)(x), first) and not torch.equal(first, second)


@pytest.mark.parametrize("p, want", [(0.0, 1.0), (1.0, 0.0), (1e-9, 1.0)])
def test_all_and_nothing(p, want):
    assert torch.equal(Dropout(p)(torch.ones(5)), torch.full((5,), want))


def test_nothing_outside_training_or_of_nothing():
    x = torch.randn(2, 3)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.5)(x[:0]).shape == (0, 3) and Dropout(0.5)(x[0, 0]).shape == ()
    assert Dropout(0.5)(x.T.expand(4, 3, 2)).shape == (4, 3, 2), "memory that is not in order"


def test_where_pytorch_draws(monkeypatch):
    """Numbers that are followed by torch.compile or torch.func; and another default device of torch."""
    x = torch.ones(6, 50)
    with torch.device("meta"):
        assert Dropout(0.5)(x).device == x.device
    many = torch.func.vmap(Dropout(0.5), randomness="different")(x)
    assert many.shape == x.shape and many.unique().tolist() == [0, 2]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.manual_seed(0)
    found = Dropout(0.5)(x)
    torch.manual_seed(0)
    assert torch.equal(found, torch.nn.functional.dropout(x, 0.5))
