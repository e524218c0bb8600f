"""Attention of training in C++: what PyTorch computes, forward and backward, and nothing of what is hidden."""

import pytest
import torch
import torch.nn.functional as F
from builds import BUILDS, HERE
from generators import GRID, NUM_CODES, VARIANTS, build, condition

from nbp.generator import attention, masks
from nbp.generator.attention import attend, in_cpp
from nbp.generator.masks import Span
from nbp.generator.native import library
from nbp.generator.rotary import rotate

MOST = {torch.float32: 3e-6, torch.bfloat16: 0.02}         # relative error
every_build = pytest.mark.parametrize("build_of", HERE)
pytestmark = pytest.mark.usefixtures("tiles")


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def spans_of(rows, width, clips=1):
    """Spans of blocks of any sizes, without some keys for each of several clips."""
    blocks = (drawn(rows, seed=1) > 0.8).cumsum(0)
    seen = masks.visible(blocks, blocks)
    if clips > 1:
        seen = seen & (drawn(clips, 1, 1, rows, seed=2) > -1)
        seen[..., 0] = True
    spans = []
    for first in range(0, rows, width):
        last = min(rows, first + width)
        keys = int((blocks <= blocks[last - 1]).sum())
        spans.append(Span(first, last, keys, seen[..., first:last, :keys]))
    return spans


def by_pytorch(projected, heads, spans, turn=None):
    query, key, value = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    if turn is not None:
        query, key = rotate(query, turn), rotate(key, turn)
    parts = [F.scaled_dot_product_attention(query[:, :, first:last], key[:, :, :keys], value[:, :, :keys],
                                            attn_mask=mask) for first, last, keys, mask in spans]
    return torch.cat(parts, 2).transpose(1, 2).flatten(2)


def with_gradient(function, projected, grad, *arguments):
    projected = projected.clone().requires_grad_()
    out = function(projected, *arguments)
    return [out.detach(), torch.autograd.grad(out, projected, grad)[0]]


@every_build
@pytest.mark.parametrize(("clips", "rows", "heads", "size"), [
    (1, 1, 1, 4), (2, 17, 2, 8), (1, 64, 1, 16), (3, 65, 3, 24), (2, 130, 2, 64), (1, 321, 2, 40), (1, 700, 1, 80)])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
def test_it_is_that_of_pytorch(build_of, clips, rows, heads, size, turned, hidden):
    dtype = BUILDS[build_of]
    projected = drawn(clips, rows, 3 * heads * size, dtype=dtype)
    grad = drawn(clips, rows, heads * size, dtype=dtype, seed=3)
    angle = drawn(rows, size // 2, seed=4)
    turn = torch.stack([angle.cos(), angle.sin()]) if turned else None
    spans = spans_of(rows, 48, clips if hidden else 1)
    found = with_gradient(attend, projected, grad, heads, spans, turn, build_of)
    exact = with_gradient(by_pytorch, projected.double(), grad.double(), heads, spans,
                          None if turn is None else turn.double())
    plain = with_gradient(by_pytorch, projected, grad, heads, spans, turn)
    for ours, theirs, right in zip(found, plain, exact):
        errors = [float((result.double() - right).norm() / right.norm()) for result in (ours, theirs)]
        assert errors[0] < 4 * errors[1] + 1e-6 and errors[0] < MOST[dtype] and ours.dtype == dtype


@every_build
def test_what_is_hidden_changes_nothing(build_of):
    """To the bit: outputs and gradients where a key is hidden, and gradients of keys that nobody sees are 0."""
    rows, heads, size = 150, 2, 16
    projected = drawn(1, rows, 3 * heads * size, dtype=BUILDS[build_of])
    spans, position = spans_of(rows, 50), 70
    seen = torch.cat([F.pad(span.mask, (0, rows - span.keys)) for span in spans])[:, position]
    assert seen.any() and not seen.all()
    other = projected.clone()
    other[:, position, heads * size:] += 3                     # its key and its value
    outs = [attend(x, heads, spans, build=build_of) for x in (projected, other)]
    assert torch.equal(outs[0][:, ~seen], outs[1][:, ~seen]) and not torch.equal(outs[0], outs[1])
    grad = torch.where(seen[:, None], 0, drawn(1, rows, heads * size, seed=3)).to(projected.dtype)
    out, gradient = with_gradient(attend, projected, grad, heads, spans, None, build_of)
    assert (gradient[:, position, heads * size:] == 0).all() and (gradient != 0).any()


@every_build
def test_clips_and_threads_change_nothing(build_of):
    projected = drawn(3, 90, 3 * 2 * 16, dtype=BUILDS[build_of])
    grad, spans = drawn(3, 90, 2 * 16, dtype=BUILDS[build_of], seed=3), spans_of(90, 40, 3)
    usual, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(with_gradient(attend, projected, grad, 2, spans, None, build_of))
    finally:
        torch.set_num_threads(usual)
    alone = [with_gradient(attend, projected[clip][None], grad[clip][None], 2,
                           [span._replace(mask=span.mask[clip:clip + 1]) for span in spans], None, build_of)
             for clip in range(3)]
    found.append([torch.cat(parts) for parts in zip(*alone)])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@every_build
def test_layouts_and_gradients_that_autograd_hands_over(build_of):
    """Expanded gradients, and projections that are part of a larger tensor."""
    whole = drawn(2, 40, 3 * 2 * 16 + 5, dtype=BUILDS[build_of]).requires_grad_()
    spans = spans_of(40, 40)
    attend(whole[..., 5:], 2, spans, build=build_of).sum().backward()
    part = whole.detach()[..., 5:].clone().requires_grad_()
    (attend(part, 2, spans, build=build_of) * torch.ones(2, 40, 32, dtype=part.dtype)).sum().backward()
    assert torch.equal(whole.grad[..., 5:], part.grad) and (whole.grad[..., :5] == 0).all()


def test_gradients_by_torch_func(monkeypatch):
    """Are PyTorch's, which knows how to make them."""
    monkeypatch.setattr(attention, "MIN_POSITIONS", {})
    model = build().train()
    codes, names = torch.randint(NUM_CODES, (3, *GRID)), dict(model.named_parameters())
    monkeypatch.setattr(model, "forward", model.loss)
    found = torch.func.grad(lambda weights: torch.func.functional_call(model, weights, (codes,)))(names)
    want = torch.autograd.grad(model.loss(codes), list(names.values()), allow_unused=True)
    for ours, theirs in zip(found.values(), want):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("long", [False, True])
def test_a_step_of_training_is_the_same_with_it(changes, long, monkeypatch):
    """Loss and all gradients of each kind of model, whether queries are one span or several."""
    if (name := library.build_name(torch.float32)) is None or not library.load(name):
        pytest.skip("no build for this processor, or no compiler")
    if long:
        monkeypatch.setattr(masks, "QUERIES", 11)
        masks._spans.cache_clear()
    model = build(**changes).train()
    codes = torch.randint(NUM_CODES, (3, *GRID))
    ids = condition(model, 3)
    asked, found = [], []
    for wanted in (True, False):
        monkeypatch.setattr(attention, "in_cpp", lambda projected, heads: asked.append(wanted) or wanted)  # noqa: B023
        torch.manual_seed(0)
        loss = model.loss(codes, ids)
        found.append([loss.detach(), *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad],
                                                          allow_unused=True)])
    masks._spans.cache_clear()
    assert True in asked
    for ours, theirs in zip(*found):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_where_it_is_used(monkeypatch):
    """Training on a CPU in a type, of a length and on a processor that gain by it, and in nothing else."""
    projected = torch.zeros(2, 600, 48, requires_grad=True)
    monkeypatch.setattr(library, "load", lambda name: name)
    monkeypatch.setattr(library, "build_name", lambda dtype: "float32_avx512")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert in_cpp(projected, 4) and in_cpp(projected[:, :70].bfloat16(), 2)
    assert not in_cpp(projected, 1) and not in_cpp(projected[:, :70], 4) and not in_cpp(projected[:, :50].bfloat16(), 4)
    assert not in_cpp(projected.detach(), 4) and not in_cpp(projected.to("meta"), 4)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not in_cpp(projected, 4)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    monkeypatch.setattr(library, "build_name", lambda dtype: "float32_avx2")
    assert not in_cpp(projected, 4)
    monkeypatch.setattr(library, "build_name", lambda dtype: None)
    assert not in_cpp(projected, 4)


def test_a_build_that_is_gone():
    with pytest.raises(RuntimeError, match="install NBP again"):
        attend(torch.zeros(1, 4, 48, dtype=torch.float64, requires_grad=True), 1, spans_of(4, 4))


@pytest.mark.parametrize("change", [
    lambda spans: spans[:1], lambda spans: spans[1:], lambda spans: spans[::-1],
    lambda spans: [spans[0]._replace(mask=spans[0].mask.float()), spans[1]],
    lambda spans: [spans[0]._replace(mask=spans[0].mask[None]), spans[1]],
    lambda spans: [spans[0]._replace(mask=spans[0].mask.expand(3, 1, -1, -1)), spans[1]],
    lambda spans: [spans[0]._replace(keys=91, mask=torch.ones(60, 91, dtype=torch.bool)), spans[1]],
    lambda spans: [spans[0]._replace(mask=spans[0].mask.to("meta")), spans[1]]],
    ids=["end", "start", "order", "float", "three axes", "other clips", "too many keys", "elsewhere"])
def test_spans_that_do_not_fit(change):
    with pytest.raises(RuntimeError, match="spans must"):
        attend(torch.zeros(2, 90, 48, requires_grad=True), 1, change(spans_of(90, 60)))


@every_build
def test_queries_that_see_nothing_give_nothing(build_of):
    """And no gradient to anyone; a whole tile of them as well."""
    projected, mask = drawn(1, 200, 96, dtype=BUILDS[build_of]), torch.ones(200, 200, dtype=torch.bool)
    mask[5], mask[64:128] = False, False
    out, gradient = with_gradient(attend, projected, drawn(1, 200, 32, dtype=BUILDS[build_of]), 2,
                                  [Span(0, 200, 200, mask)], None, build_of)
    hidden = ~mask.any(1)
    assert (out[:, hidden] == 0).all() and (out[:, ~hidden] != 0).all()
    assert (gradient[:, hidden, :32] == 0).all() and gradient.isfinite().all()


@every_build
@pytest.mark.parametrize("size", [1100, 2048])
def test_heads_of_any_size(build_of, size):
    projected, grad = drawn(1, 20, 3 * size, dtype=BUILDS[build_of]), drawn(1, 20, size, dtype=BUILDS[build_of])
    found = with_gradient(attend, projected, grad, 1, spans_of(20, 20), None, build_of)
    exact = with_gradient(by_pytorch, projected.double(), grad.double(), 1, spans_of(20, 20))
    for ours, right in zip(found, exact):
        assert float((ours.double() - right).norm() / right.norm()) < MOST[BUILDS[build_of]]


@every_build
def test_defaults_of_torch_change_nothing(build_of):
    projected, grad = drawn(1, 90, 96, dtype=BUILDS[build_of]), drawn(1, 90, 32, dtype=BUILDS[build_of])
    want = with_gradient(attend, projected, grad, 2, spans_of(90, 90), None, build_of)
    spans = spans_of(90, 90)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            found = with_gradient(attend, projected, grad, 2, spans, None, build_of)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, want))


@every_build
def test_large_scores(build_of):
    """Probabilities are not made from the difference of two large numbers."""
    projected = drawn(1, 65, 96, dtype=BUILDS[build_of]) * 12
    grad = drawn(1, 65, 32, dtype=BUILDS[build_of], seed=3)
    found, plain = (with_gradient(function, projected, grad, 2, spans_of(65, 65), *more)[1].double()
                    for function, more in [(attend, (None, build_of)), (by_pytorch, ())])
    exact = with_gradient(by_pytorch, projected.double(), grad.double(), 2, spans_of(65, 65))[1]
    ours, theirs = (float((result - exact).norm() / exact.norm()) for result in (found, plain))
    assert ours < 4 * theirs + 1e-5
