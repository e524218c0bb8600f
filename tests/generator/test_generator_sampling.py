"""Filters, draws, guidance, and reproducibility; with the crashes of the official sampler absent."""

import gc
import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builds import BUILDS, built
from generators import GRID, NUM_CODES, UNCONDITIONAL, VARIANTS, build, codes, condition, config, prefix

from nbp.generator import decoding, model
from nbp.generator.model import Generator
from nbp.generator.native import library
from nbp.generator.nucleus import filter_logits
from nbp.generator.sampling import BELOW_ONE, Sampling, log_arrivals, race, row_generators, sample, uniforms

every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


@pytest.fixture(params=[None, *BUILDS])
def build_of_draws(request, monkeypatch):
    """Draws in C++ by each build, or without."""
    if request.param is not None and not built(request.param):
        pytest.skip("no such processor, or no compiler")
    monkeypatch.setattr(library, "build_name", lambda dtype: request.param)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_nothing_of_replayed_steps_outlives_their_clip(monkeypatch):
    """Not even until Python looks for circles, for which a full GPU does not make it look."""
    made = []

    class Watched(decoding.CachedDecoder):
        def __init__(self, *arguments):
            made.append(weakref.ref(self))
            super().__init__(*arguments)

    monkeypatch.setattr(decoding, "can_record", lambda prefix: True)
    monkeypatch.setattr(decoding, "Recorded", lambda function, generators: function)
    monkeypatch.setattr(model, "CachedDecoder", Watched)
    generator = build()
    gc.disable()
    try:
        generator.generate(condition(generator))
        assert len(made) == 1 and made[0]() is None
    finally:
        gc.enable()


def brute_force_kept(row, top_k, top_p):
    """The definition, id by id, for a row without ties."""
    order = sorted(range(len(row)), key=lambda i: -row[i])[:top_k or len(row)]
    weights = [math.exp(row[i]) for i in order]
    kept, mass = set(), 0.0
    for i, weight in zip(order, weights):
        kept.add(i)
        mass += weight / sum(weights)
        if top_p is not None and top_p < 1 and mass > top_p:
            break
    return kept


@pytest.mark.parametrize("top_k", [None, 0, 1, 7, 50, 99])
@pytest.mark.parametrize("top_p", [None, 0.0, 0.3, 0.9, 1.0])
def test_filter_by_definition(top_k, top_p):
    logits = 2 * torch.randn(2, 3, 50, generator=seeded())
    before = logits.clone()
    filtered = filter_logits(logits, top_k, top_p)
    assert torch.equal(logits, before)
    for row, result in zip(logits.flatten(0, 1).tolist(), filtered.flatten(0, 1)):
        assert set((result > -math.inf).nonzero()[:, 0].tolist()) == brute_force_kept(row, top_k, top_p)
    kept = filtered > -math.inf
    assert torch.equal(filtered[kept], logits[kept])


def test_filter_keeps_ties_with_the_last_of_top_k():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0]])
    assert (filter_logits(logits, 2) > -math.inf).tolist() == [[True, False, True, True, True, False]]
    # The nucleus holds a fixed number of ids, tied or not.
    assert int((filter_logits(torch.zeros(1, 10), None, 0.45) > -math.inf).sum()) == 5
    assert int((filter_logits(torch.zeros(1, 10), 3, 0.45) > -math.inf).sum()) == 5


@pytest.mark.usefixtures("build_of_draws")
@pytest.mark.parametrize("multinomial", [False, True])
def test_draws_follow_the_filtered_distribution(multinomial):
    logits = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, -8.0]).expand(1, 20000, 6)
    ids = sample(logits, Sampling(temperature=0.8, top_k=5, top_p=0.97, multinomial=multinomial), [seeded()])
    want = filter_logits(logits[0, :1] / 0.8, 5, 0.97).softmax(-1)[0]
    found = torch.bincount(ids[0], minlength=6) / ids.shape[1]
    assert (found[want == 0] == 0).all()
    deviation = (want * (1 - want) / ids.shape[1]).sqrt()
    assert ((found - want).abs() <= 4.5 * deviation).all()


@pytest.mark.usefixtures("build_of_draws")
@pytest.mark.parametrize("generator", [None, 3])
def test_official_draws_are_those_of_torch(generator):
    """Of one call for all positions, or one after the other; with what is drawn next from the same generator."""
    logits = 3 * torch.randn(2, 7, 3001, generator=seeded())
    sampling = Sampling(top_k=900, top_p=0.95, multinomial=True)
    kept = filter_logits(logits, 900, 0.95).softmax(-1)

    def streams():
        torch.manual_seed(3)
        return [None] * 2 if generator is None else [seeded(3), seeded(4)]

    given = streams()
    found = sample(logits, sampling, given)
    next_found = torch.rand(3, generator=given[1])
    given = streams()
    want = torch.stack([torch.multinomial(row, 1, generator=stream)[:, 0] for row, stream in zip(kept, given)])
    assert torch.equal(found, want) and torch.equal(torch.rand(3, generator=given[1]), next_found)
    if generator is not None:       # else clips take turns
        given = streams()
        parts = [sample(logits[:, place:place + 1], sampling, given) for place in range(7)]
        assert torch.equal(torch.cat(parts, 1), want)


def test_draws_of_improbable_ids():
    """One in a million still happens as often as it should, which coarse random numbers get wrong."""
    logits = torch.zeros(1, 200, 4001)
    logits[..., 0] = math.log(4e6)                # the other 4000 share a thousandth
    ids = torch.cat([sample(logits, Sampling(top_k=None, top_p=None), [seeded(i)]) for i in range(100)], dim=1)
    assert 4 <= int((ids > 0).sum()) <= 45         # 20 expected


@pytest.mark.parametrize("bits", [0, 2 ** 64 - 1])
def test_random_numbers_at_their_limits_let_no_filtered_id_win(monkeypatch, bits):
    """One that rounds to 1 is an infinite time, 0 the logarithm of nothing."""
    monkeypatch.setattr(np.random, "SFC64", lambda seed: SimpleNamespace(
        random_raw=lambda count: np.full(count, bits, dtype=np.uint64)))
    monkeypatch.setattr(library, "build_name", lambda dtype: None)
    logits = torch.tensor([[[0.0, 3.0, 9.0, 8.0]]])
    assert sample(logits, Sampling(top_k=1), [seeded()]).item() == 2
    assert sample(logits, Sampling(top_k=2, top_p=None), [seeded()]).item() == 2


def test_a_random_number_of_nothing_wins_against_likely_ids_only(monkeypatch):
    """A time of 0 would win against any probability."""
    bits = np.full(1, 2 ** 31 << 32, dtype=np.uint64)           # the first number is 0, the second a half
    monkeypatch.setattr(np.random, "SFC64", lambda seed: SimpleNamespace(random_raw=lambda count: bits))
    monkeypatch.setattr(library, "build_name", lambda dtype: None)
    everything = Sampling(top_k=None, top_p=None)
    assert sample(torch.tensor([[[-60.0, 0.0]]]), everything, [seeded()]).item() == 1
    assert sample(torch.tensor([[[-10.0, 0.0]]]), everything, [seeded()]).item() == 0


@pytest.mark.usefixtures("build_of_draws")
@pytest.mark.parametrize("number", [0.0, BELOW_ONE])
def test_times_at_their_limits(number):
    """A time of 0 does not win against any probability, and the longest one does not lose what is the only one left."""
    numbers = torch.tensor([[number, 0.5]])
    for logit, winner in [(-60.0, 1), (60.0, 0), (-10.0, int(number > 0))]:
        drawn = race(torch.tensor([[logit, 0.0]]), numbers, Sampling(top_k=None, top_p=None))
        assert drawn.tolist() == [winner]


@pytest.mark.usefixtures("build_of_draws")
@pytest.mark.parametrize("count", [1, 2, 15, 1023, 1024, 1025, 4099])
def test_random_numbers_are_those_of_numpy(count):
    raw = np.random.SFC64(int(torch.randint(2 ** 62, (), generator=seeded(5)))).random_raw((count + 1) // 2)
    want = raw.view(np.uint32)[:count].astype(np.float32) * np.float32(2.0 ** -32 * BELOW_ONE)
    found = uniforms(torch.empty(1, 1, count), [seeded(5)])
    assert found.dtype == torch.float32 and np.array_equal(found[0, 0].numpy(), want)


@pytest.mark.usefixtures("build_of_draws")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])      # the second ties
@pytest.mark.parametrize(("top_k", "top_p"), [(100, None), (100, 0.0), (100, 0.7), (400, None), (None, 0.9), (0, 1.0)])
def test_times_of_the_ids_that_are_left_decide_as_all_do(top_k, top_p, dtype):
    logits = (2 * torch.randn(3, 4, 500, generator=seeded())).to(dtype).float()
    numbers = uniforms(logits, [seeded(clip) for clip in range(3)])
    before = numbers.clone(), logits.clone()
    left = filter_logits(logits / 0.7, top_k, top_p, ties_by_id=True)
    drawn = race(logits, numbers, Sampling(temperature=0.7, top_k=top_k, top_p=top_p))
    assert torch.equal(drawn, (left - log_arrivals(numbers)).argmax(-1))
    assert torch.equal(numbers, before[0]) and torch.equal(logits, before[1])


# Of what samples of a row tell nothing about the rest of it, and rows of one value or two.
ROWS = {"random": lambda x: x, "rising": lambda x: x.sort(-1).values, "falling": lambda x: -x.sort(-1).values,
        "one value": torch.zeros_like, "two values": lambda x: (x > 1.5).float(), "whole numbers": torch.round,
        "one far above": lambda x: x + 80 * (x == x.max(-1, keepdim=True).values),
        "some below all": lambda x: torch.where(x > 0, x, -math.inf),
        "every tenth above": lambda x: x + 9 * (torch.arange(x.shape[-1]) % 10 == 0),
        "one over the rank": lambda x: -torch.arange(1.0, 1 + x.shape[-1]).log()}


@pytest.mark.usefixtures("build_of_draws")
@pytest.mark.parametrize("size", [1, 3, 16, 63, 64, 65, 130, 3001])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_draws_of_any_row(size, rows):
    """All ids that stay can be drawn and no others: each is made the first to arrive in turn, or one that may not."""
    row = rows(torch.randn(size, generator=seeded(size)))
    for top_k, top_p in [(1, None), (size // 2, None), (None, 0.77), (size // 3, 0.43), (size, 1.0), (size, 0.999)]:
        left = filter_logits(row, top_k, top_p, ties_by_id=True) > -math.inf
        asked = torch.cat([where.nonzero()[:, 0][:20] for where in (left, ~left)] +
                          [where.nonzero()[:, 0][-20:] for where in (left, ~left)])
        numbers = 0.5 + 0.4 * torch.rand(len(asked), size, generator=seeded())
        numbers[torch.arange(len(asked)), asked] = 1e-9
        drawn = race(row.expand_as(numbers), numbers, Sampling(top_k=top_k, top_p=top_p))
        times = torch.where(left, row - log_arrivals(numbers), -math.inf)
        assert torch.equal(drawn, times.argmax(-1)), (top_k, top_p)


@pytest.mark.usefixtures("build_of_draws")
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=3), Sampling(top_k=3, top_p=None),
                                      Sampling(top_k=None, top_p=None)])
def test_rows_without_a_number_are_drawn_from_too(sampling):
    """Of damaged weights: the error comes at the end of the clip."""
    logits = torch.full((1, 4, 9), -math.inf)
    logits[0, 1, 0], logits[0, 2, 1], logits[0, 3] = math.nan, 2.0, math.nan
    drawn = race(logits, torch.full_like(logits, 0.5), sampling)
    assert drawn[0, 2] == 1 and ((drawn >= 0) & (drawn < 9)).all()
    many = torch.full((1, 3, 100), math.nan)            # fewer numbers than top-k takes, and these say nothing
    many[0, 0, :40], many[0, 1, ::2], many[0, 2, 7] = -math.inf, -math.inf, 1.0
    drawn = race(many, torch.full_like(many, 0.5), Sampling(top_k=50, top_p=sampling.top_p))
    assert ((drawn >= 0) & (drawn < 100)).all()


@pytest.mark.usefixtures("build_of_draws")
@pytest.mark.parametrize("top_p", [0.9999997, 0.9999999])
def test_a_nucleus_of_nearly_all(top_p):
    """Sums that round differently may never reach it."""
    logits = torch.randn(20, 700, generator=seeded())
    logits[:, 300:] = -math.inf
    drawn = race(logits, torch.rand(20, 700, generator=seeded()), Sampling(top_k=None, top_p=top_p))
    assert (drawn < 300).all()


@pytest.mark.usefixtures("build_of_draws")
def test_numbers_that_are_flushed_to_zero():
    torch.set_flush_denormal(True)
    try:
        logits = torch.zeros(1, 1000)
        logits[:, ::50] = 1.0
        drawn = race(logits, torch.full((1, 1000), 0.5), Sampling(top_k=3, top_p=None))
    finally:
        torch.set_flush_denormal(False)
    assert drawn.item() % 50 == 0


@pytest.mark.parametrize("ties_by_id", [False, True])
def test_a_full_nucleus_drops_ties_as_it_is_told(ties_by_id):
    """By id, or as torch.sort ranks them; a row does not depend on the others."""
    logits = torch.randn(40, 300, generator=seeded()).round()
    kept = filter_logits(logits, 100, 0.6, ties_by_id)
    for row, result in zip(logits, kept):
        left = result > -math.inf
        assert torch.equal(filter_logits(row, 100, 0.6, ties_by_id), result)
        edge = row[left].min()
        tied, inside = (row == edge).nonzero()[:, 0], (left & (row == edge)).nonzero()[:, 0]
        best = torch.where(row >= row.sort(descending=True).values[99], row, -math.inf)
        ranked = best.sort(descending=True).indices[:int(left.sum())]
        assert torch.equal(inside, tied[:len(inside)] if ties_by_id else ranked[row[ranked] == edge].sort().values)


@pytest.mark.usefixtures("build_of_draws")
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_change_no_draw(threads):
    logits, streams = torch.randn(3, 20, 99, generator=seeded()), [seeded(clip) for clip in range(3)]
    want = sample(logits, Sampling(top_k=30), [seeded(clip) for clip in range(3)])
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(sample(logits, Sampling(top_k=30), streams), want)
    finally:
        torch.set_num_threads(usual)


@pytest.mark.usefixtures("build_of_draws")
@pytest.mark.parametrize("shape", [(0, 3, 9), (2, 0, 9)])
@pytest.mark.parametrize("top_k, top_p", [(3, None), (3, 0.9), (None, None)])
def test_nothing_to_draw(shape, top_k, top_p):
    drawn = sample(torch.zeros(shape), Sampling(top_k=top_k, top_p=top_p), [seeded()] * shape[0])
    assert drawn.shape == shape[:-1] and drawn.dtype == torch.int64


def test_each_clip_needs_its_generator():
    with pytest.raises(ValueError, match="zip"):
        sample(torch.zeros(2, 3, 9), Sampling(), [seeded()])


@pytest.mark.usefixtures("build_of_draws")
@pytest.mark.parametrize("sampling", [dict(greedy=True), dict(top_p=1.0), dict(), dict(lookahead=3)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(sampling, bad):
    generator = build()
    with torch.no_grad():
        generator.head.weight[3] = bad
    with pytest.raises(ValueError, match="the generator gave NaN or infinite logits"):
        generator.generate(condition(generator), generator=seeded(), **sampling)


@pytest.mark.usefixtures("build_of_draws")
def test_greedy_ignores_filters_and_seeds():
    logits = torch.randn(2, 3, 9, generator=seeded())
    assert torch.equal(sample(logits, Sampling(greedy=True, top_k=1)), logits.argmax(-1))
    assert torch.equal(sample(logits, Sampling(top_k=1), [seeded(), seeded()]), logits.argmax(-1))
    assert torch.equal(sample(logits, Sampling(top_k=None, top_p=0.0), [seeded(), seeded()]), logits.argmax(-1))


# ---- reproducibility


@pytest.mark.parametrize("changes", [VARIANTS["plain 4"], VARIANTS["hybrid 16"], VARIANTS["text, pads hidden"],
                                     dict(full_head=True, clamp_samples=True, multinomial=True)])
@pytest.mark.parametrize("cfg_scale", [None, 1.5])
def test_a_seed_gives_one_clip_whatever_the_batch(changes, cfg_scale):
    generator = build(**changes)
    ids = condition(generator, 4)

    def generate(rows):
        streams = [seeded(100 + row) for row in rows]
        return generator.generate(ids[rows], cfg_scale=cfg_scale, generator=streams)

    together = generate([0, 1, 2, 3])
    assert torch.equal(together, torch.cat([generate([row]) for row in range(4)]))
    assert torch.equal(together[[3, 1]], generate([3, 1]))
    assert not torch.equal(together[0], together[1])


def test_one_generator_gives_the_same_clips_in_any_batches():
    generator = build()
    ids = condition(generator, 4)
    stream = seeded(5)
    one_by_one = torch.cat([generator.generate(ids[row:row + 1], generator=stream) for row in range(4)])
    assert torch.equal(generator.generate(ids, generator=seeded(5)), one_by_one)
    assert not torch.equal(generator.generate(ids, generator=seeded(6)), one_by_one)


def test_the_global_seed_is_used_without_a_generator():
    generator = build()
    torch.manual_seed(3)
    first = generator.generate(torch.tensor([0, 1]))
    torch.manual_seed(3)
    assert torch.equal(generator.generate(torch.tensor([0, 1])), first)


def test_row_generators():
    streams = [seeded(), seeded()]
    assert row_generators(streams, 2) == streams
    assert row_generators(None, 1, keep_single=True) == [None]
    assert len(row_generators(seeded(), 3)) == 3


def test_streams_of_the_global_seed_are_on_the_device_of_the_model(monkeypatch):
    """Drawing on the CPU for a model on a GPU would move 16 x 64,000 numbers at every step."""
    class Recorder:
        def __init__(self, device):
            self.device = device

        def manual_seed(self, seed):
            return self

    monkeypatch.setattr(torch, "Generator", Recorder)
    assert [stream.device for stream in row_generators(None, 2, device="cuda:1")] == ["cuda:1", "cuda:1"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_a_prefix_as_it_is_stored(dtype):
    generator = build()
    given, labels = codes()[:, :1], torch.tensor([0, 1])
    want = generator.generate(labels, given, greedy=True)
    assert torch.equal(generator.generate(labels.to(dtype), given.to(dtype), greedy=True), want)


def test_unconditional_batches_by_a_list_of_generators():
    generator = build(**UNCONDITIONAL)
    clips = generator.generate(generator=[seeded(i) for i in range(3)])
    assert clips.shape == (3, *GRID)
    assert torch.equal(clips[1:2], generator.generate(generator=[seeded(1)]))


# ---- what the official sampler gets wrong (facts note, section 3)


@every_variant
@pytest.mark.parametrize("filters", [dict(), dict(top_k=5), dict(top_k=None), dict(top_p=None),
                                     dict(top_k=5, top_p=0.5),
                                     dict(top_k=0, top_p=1.0), dict(temperature=0.5, top_k=3, top_p=None)],
                         ids=lambda f: ", ".join(f"{k}={v}" for k, v in f.items()) or "default")
def test_any_combination_of_filters_with_a_batch(changes, filters):
    """Batches over 1, hybrid starts of block 1 with top-p, plain starts with a begin token: all stay in range."""
    generator = build(**changes)
    clips = generator.generate(condition(generator), prefix(generator), generator=seeded(), **filters)
    batch = 1 if generator.config.condition == "none" and generator.config.begin_token else 2
    assert clips.shape == (batch, *GRID) and clips.dtype == torch.int64
    assert 0 <= clips.min() and clips.max() < NUM_CODES


def test_top_p_without_top_k_is_not_ignored():
    generator = build()
    arguments = dict(condition=torch.tensor([0, 1]), top_k=None)
    greedy = generator.generate(**arguments, greedy=True)
    assert torch.equal(generator.generate(**arguments, top_p=0.0, generator=seeded()), greedy)
    assert not torch.equal(generator.generate(**arguments, top_p=1.0, generator=seeded()), greedy)


@pytest.mark.parametrize("clamp", [False, True])
def test_ids_outside_the_video_range(clamp):
    """A full head that loves condition ids: never drawn, or drawn and clamped as the official code does."""
    generator = build(full_head=True, clamp_samples=clamp)
    with torch.no_grad():
        generator.head.weight[:generator.layout.video_offset] *= 50
    clips = generator.generate(torch.tensor([0, 1]), generator=seeded())
    assert 0 <= clips.min() and clips.max() < NUM_CODES
    assert ((clips == 0).float().mean() > 0.3) == clamp


# ---- guidance


@every_variant
def test_guidance(changes):
    generator = build(**changes)
    ids, given = condition(generator), prefix(generator)
    if ids is None:
        return
    plain = generator.generate(ids, given, generator=seeded())
    assert torch.equal(generator.generate(ids, given, generator=seeded(), cfg_scale=1.0), plain)
    guided = generator.generate(ids, given, generator=seeded(), cfg_scale=4.0)
    assert not torch.equal(guided, plain)
    # Scale 0 is the unconditional model.
    free = generator.generate(None, given, generator=seeded()) if given is not None else None
    if free is not None:
        assert torch.equal(generator.generate(ids, given, generator=seeded(), cfg_scale=0.0), free)


def test_guidance_blends_the_two_logits():
    generator = build(start="hybrid")
    ids, clip = torch.tensor([[0], [2]]), codes()
    scale = 2.5
    want = generator(clip) + scale * (generator(clip, ids) - generator(clip))
    logits_of = generator._decoder(ids, 2, generator.layout.num_inputs(64), scale)
    stream = generator.layout.stream(clip.flatten(1))[:, :generator.layout.num_inputs(64)]
    with torch.no_grad():
        torch.testing.assert_close(logits_of(stream, 0, 64), want, rtol=1e-4, atol=1e-5)


def test_guidance_moves_samples_towards_the_class():
    """Two classes with known code frequencies: guidance raises the share of the class's own codes."""
    torch.manual_seed(0)
    generator = Generator(config(num_condition_ids=2, condition_dropout=0.3)).train()
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-2)
    half = NUM_CODES // 2
    for _ in range(60):
        label = torch.randint(2, (16, 1))
        own = torch.rand(16, *GRID) < 0.7
        side = torch.where(own, label.view(-1, 1, 1, 1), 1 - label.view(-1, 1, 1, 1))
        clip = torch.randint(half, (16, *GRID)) + half * side
        optimizer.zero_grad()
        generator.loss(clip, label).backward()
        optimizer.step()
    label = torch.tensor([0, 1] * 64)

    def share(scale):     # of the first block: later ones are also guided away from the classes seen in it
        clips = generator.generate(label, cfg_scale=scale, grid=(1, 1, 4), top_k=None, top_p=None, generator=seeded())
        return ((clips >= half) == label.view(-1, 1, 1, 1)).float().mean().item()

    assert abs(share(None) - 0.7) < 0.12
    assert share(3.0) > share(None) + 0.1
