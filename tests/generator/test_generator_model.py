"""What the transformer may see, what it is trained on, and what caching leaves unchanged."""

import math
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from generators import GRID, NUM_CODES, TEXT, UNCONDITIONAL, VARIANTS, build, codes, condition, config, prefix

from nbp.generator import masks
from nbp.generator.cuda_graph import Recorded
from nbp.generator.decoding import CachedDecoder, Drawing
from nbp.generator.masks import attention_mask
from nbp.generator.model import Generator
from nbp.generator.sampling import Sampling
from nbp.generator.sequence import Layout, to_grid, to_steps
from nbp.generator.speculation import ROWS, SpeculativeDraft

TOTAL = math.prod(GRID)
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


# ---- order and mask


@pytest.mark.parametrize("block_shape", [(1, 1, 1), (1, 1, 4), (1, 1, 16), (1, 2, 8), (1, 2, 4), (2, 1, 1), (2, 4, 8)])
def test_step_order_is_a_permutation_by_blocks(block_shape):
    raster = torch.arange(TOTAL).view(1, *GRID)
    steps = to_steps(raster, block_shape)
    assert torch.equal(to_grid(steps, GRID, block_shape), raster)
    bt, bh, bw = (block_shape if block_shape != (1, 1, 16) else (1, 2, 8))
    want = [((t + i) * GRID[1] + h + j) * GRID[2] + w + k
            for t in range(0, GRID[0], bt) for h in range(0, GRID[1], bh) for w in range(0, GRID[2], bw)
            for i in range(bt) for j in range(bh) for k in range(bw)]
    assert steps[0].tolist() == want


@pytest.mark.parametrize("start", ["plain", "hybrid"])
@pytest.mark.parametrize("block", [1, 2, 4, 16])
@pytest.mark.parametrize("condition_len", [0, 1, 8])
def test_mask_against_a_double_loop(start, block, condition_len):
    """Block by block: the condition is one block; a hybrid start has N blocks of one position first."""
    text = dict(condition="text", num_condition_ids=9, condition_len=condition_len)
    changes = text if condition_len else UNCONDITIONAL
    layout = Layout(config(start=start, block_shape=[1, 1, block], **changes))
    size = condition_len + 3 * block + 1
    blocks = [list(range(condition_len))] if condition_len else []
    position = condition_len
    while position < size:
        single = start == "hybrid" and position - condition_len < block
        length = 1 if single else block
        blocks.append(list(range(position, min(position + length, size))))
        position += length
    number = {position: index for index, block in enumerate(blocks) for position in block}
    want = torch.zeros(size, size, dtype=torch.bool)
    for query in range(size):
        for key in range(size):
            want[query, key] = number[key] <= number[query]
    got = attention_mask(layout, 0, size)
    assert torch.equal(got if got is not None else torch.ones_like(want), want)
    for first in range(size):                 # a decoding step sees the same rows
        got = attention_mask(layout, first, size)
        assert torch.equal(got if got is not None else torch.ones_like(want[first:]), want[first:])


def test_hidden_pads_are_seen_by_nobody():
    layout = Layout(config(**TEXT))
    hidden = torch.tensor([[False, False, False, True, True], [False] * 5])
    mask = attention_mask(layout, 0, 13, hidden)
    assert mask.shape == (2, 1, 13, 13)
    assert not mask[0, :, :, 3:5].any()
    assert torch.equal(mask[1, 0], attention_mask(layout, 0, 13))
    causal = attention_mask(layout, 0, 13, hidden, "causal")
    assert [causal[0, 0, row, 4].item() for row in range(13)] == [row >= 4 for row in range(13)]
    assert attention_mask(layout, 9, 13, hidden, "decoding") is None
    assert attention_mask(layout, 9, 13, hidden).shape == (2, 1, 4, 13)


# ---- training forward


@every_variant
def test_no_look_ahead(changes):
    """Changing the codes of one block moves the logits of later blocks only, and of all of them."""
    generator = build(**changes)
    indices, ids = codes(1), condition(generator, 1)
    first, block = generator.layout.first_predicted, generator.layout.block
    with torch.no_grad():
        before = generator(indices, ids)[0]
        for changed in range(TOTAL):
            steps = to_steps(indices, generator.config.block_shape).clone()
            steps[0, changed] = (steps[0, changed] + 1) % NUM_CODES
            after = generator(to_grid(steps, GRID, generator.config.block_shape), ids)[0]
            moved = {first + int(i) for i in ((after - before).abs().amax(-1) > 1e-6).nonzero()}
            one_by_one = generator.config.start == "hybrid" and changed < block
            later = changed + 1 if one_by_one else (changed // block + 1) * block
            assert moved == set(range(max(later, first), TOTAL)), f"token {changed}"


@every_variant
def test_loss_is_the_mean_over_predicted_video_tokens(changes):
    generator = build(**changes)
    indices, ids = codes(), condition(generator)
    logits, targets = generator(indices, ids), generator.targets(indices)
    predicted = TOTAL - generator.layout.first_predicted
    assert logits.shape == (2, predicted, generator.layout.vocab_size if generator.config.full_head else NUM_CODES)
    offset = generator.layout.video_offset if generator.config.full_head else 0
    log_p = logits.log_softmax(-1).gather(-1, targets[..., None] + offset)[..., 0]
    nll, rank = generator.score(indices, ids)
    torch.testing.assert_close(nll, -log_p)
    torch.testing.assert_close(generator.loss(indices, ids), -log_p.mean())
    assert torch.equal(generator.nll(indices, ids), nll)
    assert torch.equal(rank == 0, logits.argmax(-1) == targets + offset)
    flat = indices.flatten(1)
    torch.testing.assert_close(generator(flat, ids), logits)


def test_block_of_one_is_ordinary_causal_decoding():
    """The same weights in a textbook causal transformer, written out here."""
    generator = build(block_shape=[1, 1, 1], **UNCONDITIONAL)
    indices = codes().flatten(1)
    ids = torch.cat([torch.zeros(2, 1, dtype=torch.long), indices[:, :-1] + 1], dim=1)       # 0 begins
    transformer = generator.transformer
    x = generator.token_embedding(ids) + transformer.position_embedding[:, :TOTAL]
    for layer in transformer.layers:
        query, key, value = layer.attention.qkv(layer.norm1(x)).chunk(3, -1)
        heads = [part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (query, key, value)]
        out = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + layer.attention.proj(out.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.norm2(x))
    torch.testing.assert_close(generator(indices), generator.head(transformer.norm(x)), rtol=1e-4, atol=1e-5)


def test_hybrid_with_block_of_one_is_plain_with_block_of_one():
    plain, hybrid = build(block_shape=[1, 1, 1]), build(block_shape=[1, 1, 1], start="hybrid")
    hybrid.load_state_dict(plain.state_dict())
    indices, ids = codes(), condition(plain)
    torch.testing.assert_close(plain(indices, ids), hybrid(indices, ids))


def test_pads_do_not_matter_when_hidden():
    generator = build(block_shape=[1, 1, 4], pad_token=2, **TEXT)
    ids = torch.tensor([[4, 5, 2, 2, 2]])
    before = generator(codes(1), ids)
    with torch.no_grad():
        generator.token_embedding.weight[generator.layout.condition_offset + 2] += 1
    torch.testing.assert_close(generator(codes(1), ids), before)
    ids[0, 1] = 7
    assert not torch.allclose(generator(codes(1), ids), before)


@every_variant
def test_every_parameter_is_trained(changes):
    """No parameter waits for a gradient (DDP would wait with it); the head covers video codes."""
    generator = build(**changes).train()
    generator.loss(codes(), condition(generator)).backward()
    assert all(p.grad is not None for p in generator.parameters())


def test_condition_dropout_trains_the_unconditional_embedding():
    torch.manual_seed(0)
    generator = build(condition_dropout=0.5).train()
    indices, ids = codes(64), condition(generator, 64)
    generator.loss(indices, ids).backward()
    assert generator.uncond_embedding.grad.abs().sum() > 0
    generator.zero_grad()
    generator.eval()
    generator.loss(indices, ids).backward()            # never dropped outside training
    assert generator.uncond_embedding.grad is None or not generator.uncond_embedding.grad.any()
    torch.testing.assert_close(generator(indices), generator(indices, None))
    assert not isinstance(build(condition_dropout=0.0).uncond_embedding, torch.nn.Parameter)


def test_dropped_conditions_equal_no_condition():
    generator = build(condition_dropout=0.999999, pad_token=2, **TEXT).train()
    indices, ids = codes(), condition(generator)
    torch.testing.assert_close(generator(indices, ids), generator(indices))


def test_activation_checkpointing_changes_nothing():
    indices = codes()
    gradients = []
    for switch in (False, True):
        generator = build(activation_checkpointing=switch, condition_dropout=0.0).train()
        generator.loss(indices, condition(generator)).backward()
        gradients.append([p.grad for p in generator.parameters()])
    for first, second in zip(*gradients):
        torch.testing.assert_close(first, second)


def test_overfits_one_batch():
    torch.manual_seed(0)
    generator = Generator(config(start="hybrid", width=32, condition_dropout=0.0)).train()
    indices, ids = codes(), torch.tensor([[0], [1]])
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = generator.loss(indices, ids)
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    generator.eval()
    assert torch.equal(generator.generate(ids, greedy=True), indices)


# ---- cached decoding


@every_variant
def test_cached_logits_equal_uncached(changes, monkeypatch):
    generator = build(**changes)
    ids, given = condition(generator), prefix(generator)
    recorded = []
    inner = CachedDecoder.__call__
    monkeypatch.setattr(CachedDecoder, "__call__",
                        lambda self, *step: recorded.append(inner(self, *step)) or recorded[-1])
    clip = generator.generate(ids, given, generator=torch.Generator().manual_seed(0), lookahead=1)
    cached = torch.cat(recorded, dim=1)
    full = generator(clip, ids)[:, -cached.shape[1]:]
    if generator.config.full_head:
        full = full[..., generator.layout.video_offset:generator.layout.video_offset + NUM_CODES]
    torch.testing.assert_close(cached, full, rtol=1e-4, atol=1e-5)
    block, first = generator.layout.block, 0 if given is None else given[0].numel()
    steps = block + (TOTAL - block) // block if generator.config.start == "hybrid" else (TOTAL - first) // block
    assert len(recorded) == steps


class Eager:
    """In the place of a CUDA graph: the function itself, over the same tensors of fixed shapes."""

    def __init__(self, function, generators):
        self.function, self.shapes = function, set()
        draws = function.args[-1]
        assert generators == ([] if draws is None else draws.generators)      # what a graph must know of

    def __call__(self, *inputs):
        self.shapes.add(tuple(tensor.shape for tensor in inputs))
        assert len(self.shapes) == 1
        return self.function(*inputs)


FILTERS = [dict(top_k=None, top_p=None), dict(top_k=9, top_p=0.8)]


@every_variant
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_steps_of_fixed_shapes_equal_growing_ones(changes, filters, monkeypatch):
    """What is recorded on a GPU, run on the CPU: each step as a whole, with what it draws."""
    generator = build(**changes)
    arguments = dict(condition=condition(generator), prefix=prefix(generator), **filters,
                     cfg_scale=None if generator.config.condition == "none" else 2.0)
    want = generator.generate(**arguments, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr("nbp.generator.decoding.can_record", lambda prefix: True)
    monkeypatch.setattr("nbp.generator.decoding.Recorded", Eager)
    for lookahead in (None, 1, 3):
        found = generator.generate(**arguments, generator=torch.Generator().manual_seed(3), lookahead=lookahead)
        assert torch.equal(found, want)
    monkeypatch.setattr("nbp.generator.decoding.Drawing.can_be_recorded", lambda drawing: False)
    assert torch.equal(generator.generate(**arguments, generator=torch.Generator().manual_seed(3)), want)


@pytest.mark.parametrize(("sampling", "streams", "recorded"), [
    (dict(), ["cuda:1", "cuda:1"], True), (dict(), [None], True), (dict(), ["cuda:1", "cuda:0"], False),
    (dict(), ["cpu"], False), (dict(multinomial=True), ["cuda:1"], False), (dict(multinomial=True), [None], False),
    (dict(greedy=True), [], True), (dict(greedy=True, multinomial=True), [], True)])
def test_what_a_graph_may_draw(sampling, streams, recorded):
    """Nothing that the host or another GPU computes."""
    drawing = Drawing(Sampling(**sampling), [name and SimpleNamespace(device=torch.device(name)) for name in streams],
                      torch.device("cpu"))
    drawing.sums = SimpleNamespace(device=torch.device("cuda:1"))
    assert drawing.can_be_recorded() == recorded


def test_a_pass_that_guesses_nothing_waits_for_nothing(monkeypatch):
    """Of many clips each step is a pass: nobody asks the device which guesses were right."""
    generator = build()
    labels = torch.arange(2 * ROWS) % 3
    want = generator.generate(labels, generator=torch.Generator().manual_seed(3), lookahead=1)

    def refuse(draft, stop):
        raise AssertionError("guessed")

    monkeypatch.setattr(SpeculativeDraft, "_guess", refuse)
    assert torch.equal(generator.generate(labels, generator=torch.Generator().manual_seed(3)), want)
    with pytest.raises(AssertionError, match="guessed"):
        generator.generate(labels[:1])


def test_steps_are_recorded_on_the_device_of_their_tensors(monkeypatch):
    """Of a launched rank it is not the current one, on whose stream nothing would be recorded."""
    entered = []

    @contextmanager
    def on(name, *arguments, **options):
        entered.append((name, *arguments, *options.values()))
        yield

    monkeypatch.setattr(torch.cuda, "device", partial(on, "device"))
    monkeypatch.setattr(torch.cuda, "graph", partial(on, "graph"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(
        replay=lambda: entered.append("replayed"), register_generator_state=lambda stream: entered.append(stream)))
    recorded = Recorded(lambda x: x + 1, ["a stream"])
    for _ in range(3):
        recorded(torch.zeros(1))
    cpu = torch.device("cpu")
    assert entered[:2] == [("device", cpu), "a stream"]
    assert entered[2][0] == "graph" and entered[2][2] == "stream of cpu"
    assert entered[3:] == ["replayed", ("device", cpu), "replayed"]


def test_weights_that_a_step_gathers_are_not_recorded(monkeypatch):
    """Those of ZeRO-3, whose collectives a recording cannot hold."""
    monkeypatch.setattr("nbp.generator.decoding.can_record", lambda prefix: True)
    monkeypatch.setattr("nbp.generator.decoding.Recorded", Eager)
    generator = build()
    assert generator._decoder(condition(generator), 2, 8, None)._mask is not None
    next(generator.transformer.parameters()).ds_id = 0
    assert generator._decoder(condition(generator), 2, 8, None)._mask is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_variant
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_replayed_steps_equal_launched_ones(changes, filters, monkeypatch):
    generator = build(**changes).cuda()
    ids, given = condition(generator), prefix(generator)
    arguments = dict(condition=None if ids is None else ids.cuda(), prefix=None if given is None else given.cuda(),
                     **filters)
    launched = generator.generate(**arguments, generator=torch.Generator("cuda").manual_seed(3))
    monkeypatch.setattr("nbp.generator.decoding.can_record", lambda prefix: True)
    assert torch.equal(generator.generate(**arguments, generator=torch.Generator("cuda").manual_seed(3)), launched)


@every_variant
def test_a_prefix_is_kept_and_continued(changes):
    generator = build(**changes)
    ids = condition(generator)
    shape = generator.config.block_shape
    whole = generator.generate(ids, prefix(generator), greedy=True)
    if shape[0] == 1:
        assert torch.equal(generator.generate(ids, whole[:, :1], greedy=True), whole)
        assert torch.equal(generator.generate(ids, whole[:, :1].flatten(1), greedy=True), whole)
    assert torch.equal(generator.generate(ids, whole, greedy=True), whole)
    if shape[0] == shape[1] == 1:
        known = 2 * generator.layout.block if generator.config.begin_token else GRID[1] * GRID[2]
        assert torch.equal(generator.generate(ids, whole.flatten(1)[:, :known], greedy=True), whole)


def test_generate_leaves_the_mode_alone():
    generator = build().train()
    generator.generate(torch.tensor([[0]]), greedy=True)
    assert generator.training
    assert generator.generate(torch.tensor([0, 1]), greedy=True).shape == (2, *GRID)     # labels as (B,)


def test_other_grids():
    generator = build(start="hybrid")
    assert generator.generate(torch.tensor([0]), grid=(1, 2, 8), greedy=True).shape == (1, 1, 2, 8)
    assert generator.generate(torch.tensor([0]), grid=(3, 4, 8), greedy=True).shape == (1, 3, 4, 8)
    # Fewer tokens than a block: the hybrid start predicts them one by one.
    assert generator.generate(torch.tensor([0]), grid=(1, 1, 3), greedy=True).shape == (1, 1, 1, 3)
    assert generator.loss(codes(1, (1, 1, 3)), torch.tensor([0])).isfinite()
    drawn = generator.generate(torch.tensor([0, 1]), grid=(1, 1, 3), top_p=0.9)
    assert drawn.shape == (2, 1, 1, 3) and 0 <= drawn.min() and drawn.max() < NUM_CODES


# ---- bad input


@pytest.mark.parametrize("call, message", [
    (lambda g: g(codes().float()), "indices must be integer video codes"),
    (lambda g: g(codes()[0]), r"indices must be integer video codes .*\(2, 4, 8\)"),
    (lambda g: g(codes() + NUM_CODES), r"indices must lie in 0..39, got"),
    (lambda g: g(codes() - NUM_CODES), r"indices must lie in 0..39"),
    (lambda g: g(codes(2, (1, 1, 6))), "6 tokens are not a multiple of the block of 4"),
    (lambda g: g(codes(2, (8, 8, 8))), "longer than max_seq_len=128"),
    (lambda g: g(codes(), torch.tensor([0])), r"condition must be integer ids \(2, 1\)"),
    (lambda g: g(codes(), torch.tensor([0., 1.])), "condition must be integer ids"),
    (lambda g: g(codes(), torch.tensor([0, 3])), "condition must lie in 0..2, got 0..3"),
    (lambda g: g(codes(), torch.tensor([0, -1])), "condition must lie in 0..2, got -1..0"),
    (lambda g: g.generate(grid=(1, 1, 6)), "6 tokens are not a multiple"),
    (lambda g: g.generate(grid=(8, 8, 8)), "longer than max_seq_len"),
    (lambda g: g.generate(prefix=codes()[:, :1, :, :6]), "does not fit"),
    (lambda g: g.generate(prefix=codes(2, (3, 4, 8))), "prefix: between 0 and 64"),
    (lambda g: g.generate(prefix=codes().flatten(1)[:, :7]), "prefix: 7 tokens are not a multiple"),
    (lambda g: g.generate(torch.tensor([0]), temperature=0.0), "temperature must be a number above 0, got 0.0"),
    (lambda g: g.generate(torch.tensor([0]), top_k=-1), "top_k must be .* got -1"),
    (lambda g: g.generate(torch.tensor([0]), top_k=1.5), "top_k must be .* got 1.5"),
    (lambda g: g.generate(torch.tensor([0]), top_p=1.5), r"top_p must be in \[0, 1\].* got 1.5"),
    (lambda g: g.generate(torch.tensor([0]), cfg_scale=float("nan")), "cfg_scale must be a number"),
    (lambda g: g.generate(cfg_scale=2.0), "cfg_scale=2.0 needs a condition"),
    (lambda g: g.generate(torch.tensor([0, 1]), generator=[torch.Generator()]), "1 generators for a batch of 2"),
])
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(build())


def test_bad_arguments_of_other_models():
    with pytest.raises(ValueError, match="no begin token: generate needs a prefix of at least 8 codes"):
        build(**VARIANTS["no begin 8"]).generate()
    with pytest.raises(ValueError, match="condition given to a model without one"):
        build(**UNCONDITIONAL)(codes(), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="flat codes are not whole latent frames"):
        build(block_shape=[1, 2, 2])(codes().flatten(1)[:, :40])
    with pytest.raises(ValueError, match="not tiled by blocks"):
        build(block_shape=[2, 2, 2])(codes(2, (1, 4, 8)))


@pytest.mark.parametrize("changes, message", [
    (dict(width=15), "width must be divisible by num_heads=2, got 15"),
    (dict(block_shape=[1, 3, 1]), "block_shape must be a divisor of grid"),
    (dict(block_shape=[1, 4]), "block_shape must be"),
    (dict(condition="class"), "condition must be none, label or text"),
    (dict(start="fast"), "start must be plain or hybrid"),
    (dict(start="hybrid", begin_token=False), "begin_token must be true for a hybrid start"),
    (dict(clamp_samples=True), "clamp_samples must be false without full_head"),
    (dict(condition_len=2), "condition_len must be 1 for labels"),
    (dict(num_condition_ids=0), "num_condition_ids must be at least 1"),
    (dict(pad_token=2), "pad_token must be a text id"),
    (TEXT, "pad_token is missing: name the text id that fills up"),
    (dict(dropout=1.0), "dropout must be in"),
])
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes).check()


@every_variant
def test_attention_in_spans_of_queries_changes_nothing(changes, monkeypatch):
    """A long training sequence is attended span by span; loss and gradients are those of one mask."""
    monkeypatch.setattr(masks, "QUERIES", 5)
    model = build(**changes).double()
    asked = []
    monkeypatch.setattr(model.transformer, "forward", partial(record, model.transformer.forward, asked))
    found = model.loss(codes(2), condition(model, 2))
    gradients = torch.autograd.grad(found, [*model.transformer.layers.parameters()])
    spans = asked[-1]
    assert isinstance(spans, list) and len(spans) > 5 and all(5 <= span.last - span.first < 10 for span in spans)
    assert [span.first for span in spans[1:]] == [span.last for span in spans[:-1]]
    want = model.nll(codes(2), condition(model, 2)).mean()
    assert not isinstance(asked[-1], list)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(gradients, torch.autograd.grad(want, [*model.transformer.layers.parameters()]))


def record(forward, asked, x, mask, *rest):
    asked.append(mask)
    return forward(x, mask, *rest)
