"""Cross-entropy in C++: that of PyTorch, with its gradient, whatever the number of ids."""

import pytest
import torch
import torch.nn.functional as F
from builds import BUILDS, HERE
from generators import build, codes, condition

from nbp.generator import cross_entropy as module
from nbp.generator.cross_entropy import cross_entropy, in_cpp
from nbp.generator.head import Head
from nbp.generator.native import library

MOST = {torch.float32: 5e-6, torch.bfloat16: 4e-3}         # relative error of the gradient
every_build = pytest.mark.parametrize("build_of", HERE)


@pytest.fixture
def only(monkeypatch, request):
    """The build of the test and no other; and it is there."""
    name = request.getfixturevalue("build_of")
    loaded = library.loaded(name)
    monkeypatch.setattr(library, "of", lambda dtype: loaded if dtype == BUILDS[name] else None)


def by_pytorch(logits, target, share):
    logits = logits.double().requires_grad_()
    loss = F.cross_entropy(logits, target, reduction="sum")
    return loss.detach(), torch.autograd.grad(share * loss, logits)[0]


@every_build
@pytest.mark.parametrize("rows, columns", [(1, 1), (3, 15), (2, 16), (7, 17), (40, 1000), (3, 64000)])
@pytest.mark.parametrize("spread", [0.1, 5.0, 200.0])
@pytest.mark.usefixtures("only")
def test_it_is_that_of_pytorch(build_of, rows, columns, spread):
    generator = torch.Generator().manual_seed(rows)
    logits = (spread * torch.randn(rows, columns, generator=generator)).to(BUILDS[build_of])
    target = torch.randint(columns, (rows,), generator=generator)
    want, want_gradient = by_pytorch(logits, target, 1 / 7)
    assert cross_entropy(logits.clone(), target, None)[1] is None
    loss, gradient = cross_entropy(logits.clone(), target, 1 / 7)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-5 * rows)
    assert gradient.dtype == logits.dtype
    error = float((gradient.double() - want_gradient).norm())
    assert error <= MOST[logits.dtype] * float(want_gradient.norm()) + 1e-7


@every_build
@pytest.mark.usefixtures("only")
def test_rows_that_lie_apart(build_of):
    wide = torch.randn(6, 50).to(BUILDS[build_of])
    target = torch.randint(21, (12,))[::2]
    want, want_gradient = by_pytorch(wide[:, :21], target, 1.0)
    loss, gradient = cross_entropy(wide[:, :21], target, 1.0)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), want_gradient, rtol=0.01, atol=0.01)


@every_build
@pytest.mark.usefixtures("only")
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 20])
def test_what_is_not_finite_shows(build_of, number, place):
    logits = torch.zeros(2, 21, dtype=BUILDS[build_of])
    logits[1, place] = number
    loss, gradient = cross_entropy(logits, torch.tensor([3, 4]), 1.0)
    assert loss.isnan() and gradient[0].isfinite().all() and gradient[1].isnan().any()


@every_build
@pytest.mark.usefixtures("only")
def test_ids_without_odds(build_of):
    logits = torch.zeros(1, 18, dtype=BUILDS[build_of])
    logits[0, 3:] = -torch.inf
    loss, gradient = cross_entropy(logits, torch.tensor([1]), 1.0)
    assert float(loss) == pytest.approx(1.0986123, abs=1e-6)
    want = torch.tensor([1 / 3, -2 / 3, 1 / 3] + 15 * [0.0])
    torch.testing.assert_close(gradient[0].float(), want, rtol=5e-3, atol=0)


@every_build
@pytest.mark.usefixtures("only")
@pytest.mark.parametrize("target", [-100, 9])
def test_a_target_that_is_no_id(build_of, target):
    with pytest.raises(IndexError, match=f"targets must be from 0 to 8, got 0 to {target}|got {target} to 0"):
        cross_entropy(torch.zeros(2, 9, dtype=BUILDS[build_of]), torch.tensor([0, target]), None)


@pytest.mark.parametrize("autocast", [False, True])
def test_training_takes_it_and_learns_the_same(monkeypatch, autocast):
    """Losses and gradients of a model with it and without."""
    generator, found = build(), {}
    calls = []
    real = module.cross_entropy
    monkeypatch.setattr("nbp.generator.head.cross_entropy", lambda *args: calls.append(args[0].shape) or real(*args))
    for least in (0, 2 ** 60):
        monkeypatch.setattr(module, "MIN_LOGITS", least)
        generator.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = generator.loss(codes(), condition(generator))
        loss.backward()
        found[least] = loss.detach(), {name: p.grad for name, p in generator.named_parameters() if p.grad is not None}
    if library.of(torch.float32) is not None:
        assert calls == [(codes().numel(), generator.head.out_features)], "once in C++, once not"
    (loss, gradients), (want, want_gradients) = found.values()
    torch.testing.assert_close(loss, want, rtol=1e-2 if autocast else 1e-6, atol=0)
    assert gradients.keys() == want_gradients.keys()
    for name, gradient in gradients.items():
        cosine = F.cosine_similarity(gradient.flatten(), want_gradients[name].flatten(), 0)
        assert cosine > (0.999 if autocast else 1 - 1e-6), name


def test_where_it_is_taken(monkeypatch):
    monkeypatch.setattr(library, "of", lambda dtype: object())
    hidden, many = torch.zeros(1, 1, requires_grad=True), module.MIN_LOGITS
    assert in_cpp(hidden, many) and not in_cpp(hidden, many - 1) and not in_cpp(hidden.detach(), many)
    assert not in_cpp(torch.zeros(1, 1, requires_grad=True, device="meta"), many)
    monkeypatch.setattr(library, "of", lambda dtype: None)
    assert not in_cpp(hidden, many)


@pytest.mark.parametrize("target", [torch.zeros(4, dtype=torch.int32), torch.zeros(4), torch.zeros(3).long(),
                                    torch.zeros(5).long(), torch.zeros(4, 1).long()])
def test_targets_of_another_type_or_number(target):
    with pytest.raises(ValueError, match=r"targets must be int64 \(4,\), got torch"):
        cross_entropy(torch.zeros(4, 9), target, None)


@pytest.mark.parametrize("shape", [(1, 8), (2, 7), (2, 9), (16,)])
def test_a_head_s_targets_are_one_a_position(shape):
    with pytest.raises(ValueError, match=r"targets must be \(2, 8\), one a position, got \("):
        Head(4, 9)(torch.zeros(2, 8, 4), torch.zeros(shape).long())


def test_numbers_that_torch_follows(monkeypatch):
    """There the same in PyTorch."""
    logits, target = torch.randn(5, 9), torch.randint(9, (5,))
    want, gradient = cross_entropy(logits.clone(), target, 0.5)
    monkeypatch.setattr(library, "traced", lambda: True)
    monkeypatch.setattr(library, "of", lambda dtype: pytest.fail("C++"))
    loss, found = cross_entropy(logits.clone(), target, 0.5)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(found, gradient)
    assert not in_cpp(torch.zeros(1, 1, requires_grad=True), module.MIN_LOGITS)
