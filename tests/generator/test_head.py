"""The loss in chunks is the loss, with its gradients, and full logits never exist."""

import pytest
import torch
from generators import VARIANTS, build, codes, condition

from nbp.generator import head
from nbp.planning.memory import Allocations


def loss_and_gradients(generator, autocast=False):
    generator.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = generator.loss(codes(), condition(generator))
    (loss / 3).backward()
    return loss.detach(), {name: p.grad for name, p in generator.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["plain 4", "hybrid 16", "full head", "no begin 8"])
@pytest.mark.parametrize("positions", [1, 7, 32])
def test_equal_to_the_plain_loss(monkeypatch, name, positions):
    generator = build(**VARIANTS[name])
    want, gradients = loss_and_gradients(generator)
    monkeypatch.setattr(head, "MAX_LOGITS", positions * generator.head.out_features)
    loss, found = loss_and_gradients(generator)
    assert generator.head.positions_at_a_time(codes().numel()) <= positions < codes().numel()
    torch.testing.assert_close(loss, want, rtol=1e-6, atol=0)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("count, most, rows", [(0, 5, 0), (1, 5, 1), (5, 5, 5), (6, 5, 3), (1281, 786, 641), (9, 0, 1)])
def test_parts_of_one_size(monkeypatch, count, most, rows):
    monkeypatch.setattr(head, "MAX_LOGITS", most * 9 + 8)
    assert head.Head(8, 9).positions_at_a_time(count) == rows


def test_a_frozen_head_leaves_the_other_gradients(monkeypatch):
    generator = build()
    generator.head.requires_grad_(False)
    _, gradients = loss_and_gradients(generator)
    monkeypatch.setattr(head, "MAX_LOGITS", 7 * generator.head.out_features)
    _, found = loss_and_gradients(generator)
    assert found.keys() == gradients.keys() and "head.weight" not in found
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_close_under_autocast(monkeypatch):
    generator = build()
    want, gradients = loss_and_gradients(generator, autocast=True)
    monkeypatch.setattr(head, "MAX_LOGITS", 9 * generator.head.out_features)
    loss, found = loss_and_gradients(generator, autocast=True)
    assert loss.dtype == torch.float32 and abs(loss / want - 1) < 1e-2
    for name, gradient in gradients.items():
        assert found[name].dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(found[name].flatten(), gradient.flatten(), 0) > 0.999, name


def test_a_second_backward_pass_is_refused(monkeypatch):
    """Not a wrong gradient."""
    monkeypatch.setattr(head, "MAX_LOGITS", 4 * 9)
    layer, hidden = head.Head(8, 9), torch.randn(2, 6, 8, requires_grad=True)
    loss = layer(hidden, torch.zeros(2, 6, dtype=torch.long))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once, also with retain_graph"):
        loss.backward()


def test_one_chunk_is_the_plain_path_bit_for_bit():
    generator = build()
    hidden, target = torch.randn(2, 5, 16, requires_grad=True), torch.randint(40, (2, 5))
    plain = torch.nn.functional.cross_entropy(generator.head(hidden).flatten(0, 1), target.flatten())
    assert torch.equal(generator.head(hidden, target), plain)


def test_scores_do_not_depend_on_chunks(monkeypatch):
    generator = build(start="hybrid")
    want = generator.score(codes(), condition(generator))
    monkeypatch.setattr(head, "MAX_LOGITS", 14 * generator.head.out_features)
    found = generator.score(codes(), condition(generator))
    torch.testing.assert_close(found[0], want[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(found[1], want[1])


def test_full_logits_never_exist(monkeypatch):
    with torch.device("meta"):
        layer = head.Head(8, 1000)
        hidden, target = torch.zeros(4, 100, 8, requires_grad=True), torch.zeros(4, 100, dtype=torch.long)
    peaks = []
    for limit in (2 ** 25, 20 * 1000):
        monkeypatch.setattr(head, "MAX_LOGITS", limit)
        layer.weight.grad = hidden.grad = None
        with Allocations() as allocations:
            layer(hidden, target).backward()
        peaks.append(sum(allocations.peak))
    full = 4 * 400 * 1000
    assert peaks[0] >= 2 * full and peaks[1] < 0.3 * full
