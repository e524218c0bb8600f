"""Several steps in one pass: exactly the clips of one step after the other, in fewer passes."""

import pytest
import torch
from generators import VARIANTS, build, codes, condition, prefix

from nbp.generator.decoding import Draft
from nbp.generator.packed import PackedHead
from nbp.generator.sampling import Sampling
from nbp.generator.speculation import ROWS, SpeculativeDraft

FILTERS = [dict(top_k=5, top_p=0.8), dict(top_k=None, top_p=None, temperature=0.3), dict(greedy=True)]
OFFICIAL = dict(full_head=True, clamp_samples=True, spare_id=True, multinomial=True)


def draw(generator, ids, given, lookahead, **how):
    """Clips, and the passes that they took."""
    streams = [torch.Generator().manual_seed(7 + row) for row in range(2)]
    draft = generator.begin(ids, given, generator=streams, lookahead=lookahead, **how)
    passes = 0
    while draft.step():
        passes += 1
    return draft.codes(), passes, [stream.get_state() for stream in streams]


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_same_clips(changes, filters):
    generator = build(**changes)
    ids, given = condition(generator), prefix(generator)
    plain, steps, after = draw(generator, ids, given, 1, **filters)
    for lookahead in (4,) if generator.config.multinomial and not filters.get("greedy") else (4, None):
        ahead, passes, after_ahead = draw(generator, ids, given, lookahead, **filters)
        assert torch.equal(ahead, plain) and passes <= steps
        assert all(torch.equal(one, other) for one, other in zip(after, after_ahead))     # what follows draws the same


@pytest.mark.parametrize("changes", [VARIANTS["plain 1"], VARIANTS["hybrid 4"], VARIANTS["text hybrid, pads causal"],
                                     {**VARIANTS["text, pads hidden"], "pad_visibility": "decoding"}])
@pytest.mark.parametrize("scale", [None, 1.5])
@pytest.mark.parametrize("rows, lookahead", [(0, 2), (1, 5), (3, 100)])
def test_same_clips_with_guidance_and_a_prefix(changes, scale, rows, lookahead):
    generator = build(**changes)
    given = codes()[:, :1].flatten(1)[:, :8 * rows] if rows else None
    plain, ahead = (draw(generator, condition(generator), given, steps, cfg_scale=scale, top_k=9)[0]
                    for steps in (1, lookahead))
    assert torch.equal(ahead, plain)
    if rows:
        assert torch.equal(ahead.flatten(1)[:, :8 * rows], given)


def test_fewer_passes_where_guesses_are_right():
    """A model that repeats the latent frame before needs a pass for several blocks, at least one for a wrong guess."""
    generator = build(block_shape=[1, 1, 4], start="hybrid")
    with torch.no_grad():
        for parameter in generator.transformer.parameters():
            parameter.zero_()                    # hidden states are 0: every id is as likely wherever it stands
    plain, steps, _ = draw(generator, condition(generator), None, 1, greedy=True)
    ahead, passes, _ = draw(generator, condition(generator), None, 4, greedy=True)
    assert torch.equal(ahead, plain) and steps == 19 and passes == 19 // 4 + 1


def test_passes_do_not_go_on_behind_a_wrong_guess():
    """Uniform draws are never guessed by others, but the times of a position alone decide them: two passes a window."""
    generator = build(block_shape=[1, 1, 1])
    with torch.no_grad():
        generator.head.weight.zero_()
    plain, steps, _ = draw(generator, condition(generator), None, 1, top_p=None)
    ahead, passes, _ = draw(generator, condition(generator), None, 8, top_p=None)
    assert torch.equal(ahead, plain) and steps == 64 and 8 < passes < 24


@pytest.mark.parametrize("lookahead", [0, 1.5, -2])
def test_a_lookahead_out_of_range_is_refused(lookahead):
    with pytest.raises(ValueError, match=f"lookahead must be .* at least 1, got {lookahead}"):
        build().generate(torch.tensor([0]), lookahead=lookahead)


def test_official_draws_are_refused():
    generator = build(**OFFICIAL)
    with pytest.raises(ValueError, match="lookahead=4: this model draws with torch.multinomial"):
        generator.generate(torch.tensor([0]), lookahead=4)
    greedy = [generator.generate(torch.tensor([0]), greedy=True, lookahead=steps) for steps in (1, 4)]
    assert torch.equal(*greedy)


@pytest.mark.parametrize("changes", [dict(block_shape=[1, 1, 1]), dict(start="hybrid"), dict(block_shape=[1, 2, 8])])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_official_draws_are_guessed_where_rows_do_not_depend_on_others(changes, filters):
    """Of packed models, whose tokens and random states are those of one step after the other, in fewer passes."""
    generator = build(**OFFICIAL, **changes)
    ids = condition(generator)
    plain, steps, after = draw(generator, ids, None, 1, **filters)
    assert filters.get("greedy") or draw(generator, ids, None, None, **filters)[1] == steps
    generator.pack()
    if not isinstance(generator._packed_head, PackedHead):
        pytest.skip("no build for this processor, or no compiler")
    ahead, passes, after_ahead = draw(generator, ids, None, None, **filters)
    assert torch.equal(ahead, plain) and passes <= steps
    assert all(torch.equal(one, other) for one, other in zip(after, after_ahead))


def test_clamped_ids_are_drawn_as_they_are():
    generator = build(**{**OFFICIAL, "multinomial": False})
    plain, ahead = (draw(generator, condition(generator), None, steps)[0] for steps in (1, 3))
    assert torch.equal(ahead, plain)


def test_a_step_may_finish_several_blocks():
    draft = build(block_shape=[1, 1, 4]).begin(torch.tensor([0]), greedy=True, lookahead=3)
    assert isinstance(draft, SpeculativeDraft)
    known = [0]
    while draft.step():
        known.append(draft.known)
        assert int(draft.drawn().sum()) == draft.known
    assert known[-1] == 64 and all(4 <= after - before <= 12 for before, after in zip(known, known[1:]))


@pytest.mark.parametrize("changes, batch, want", [
    (dict(block_shape=[1, 1, 1]), 1, [1] * 16), (dict(block_shape=[1, 1, 1]), 3, [1] * 5),
    (dict(block_shape=[1, 1, 1]), 20, [1]), (dict(block_shape=[1, 1, 4]), 2, [4, 4]),
    (dict(block_shape=[1, 4, 8]), 1, [32]), (dict(block_shape=[1, 1, 8], start="hybrid"), 1, [1] * 8 + [8])])
def test_a_pass_takes_by_itself_what_costs_little(changes, batch, want):
    draft = build(**changes).begin(torch.zeros(batch, dtype=torch.long))
    bounds = draft._bounds()
    assert [after - before for before, after in zip(bounds, bounds[1:])] == want
    assert len(want) == 1 or bounds[-1] * batch <= ROWS


def test_where_no_pass_takes_several_by_itself():
    ids = torch.tensor([0])
    assert type(build(**OFFICIAL).begin(ids)) is type(build(**OFFICIAL).begin(ids, greedy=True)) is Draft
    assert not Sampling(int8=True).guesses and not Sampling(lookahead=1).guesses and Sampling().guesses
