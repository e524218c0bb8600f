"""Packed weights and the step in C++: what PyTorch computes, the same clips, and no way to store or train them."""

import copy
import warnings

import pytest
import torch
from builds import BUILDS, HERE, built
from generators import VARIANTS, build, codes, condition, prefix

from nbp.generator import packed
from nbp.generator.native import library
from nbp.generator.transformer import KVCache
from nbp.system.processor import has_amx

MOST = {torch.float32: 1e-5, torch.bfloat16: 0.05}         # relative error


pytestmark = pytest.mark.usefixtures("tiles")
BEST = library.build_name(torch.float32)
PACKS = pytest.mark.skipif(BEST is None or not built(BEST), reason="no build for this processor, or no compiler")


def pack(generator, build):
    """Pack with a build that may not be the one that this processor would take."""
    generator._packed_head = packed.PackedHead(generator._drawn_head(), build)
    packed.pack_layers(generator.transformer, build)
    return generator


def made(build_of, **changes):
    """A generator of the build's type, and the same packed; every weight, bias and norm is one that shows."""
    dtype = BUILDS[build_of]
    generator = build(**{"width": 32 if dtype == torch.bfloat16 else 16, **changes})
    with torch.no_grad():
        for name, tensor in generator.named_parameters():
            if name.endswith("bias") or ".norm" in name:
                tensor += torch.randn_like(tensor) * 0.3
            elif tensor.ndim == 2:
                tensor *= (16 / generator.config.width) ** 0.5      # else a large model's softmax is all or nothing
    generator.to(dtype)
    return generator, pack(copy.deepcopy(generator), build_of)


def close(found, plain, exact):
    """Whether it is about as near to what float64 gives as PyTorch is in the same type, and near."""
    errors = [float((result.double() - exact).norm() / exact.norm()) for result in (found, plain)]
    return errors[0] < 4 * errors[1] + 1e-7 and errors[0] < MOST[plain.dtype]


@PACKS
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
    assert isinstance(generator.transformer.layers[0], packed.PackedLayers)
    assert torch.equal(generate(), want)


@pytest.mark.parametrize("build_of", HERE)
@pytest.mark.parametrize("name", ["plain 4", "plain frame", "hybrid 4", "rotary", "text, pads hidden",
                                  "text hybrid, pads causal"])
def test_what_the_layers_compute(build_of, name):
    plain, fast = made(build_of, **VARIANTS[name])
    ids, given, exact = codes(), condition(plain), copy.deepcopy(plain).double()
    with torch.no_grad():
        hidden = [model._hidden(ids, given) for model in (fast, plain, exact)]
        assert close(*hidden)
        assert close(fast._packed_head(hidden[1]), plain.head(hidden[1]), exact.head(hidden[1].double()))


@pytest.mark.parametrize("build_of", HERE)
@pytest.mark.parametrize("heads, width", [(1, 32), (4, 32), (3, 96), (1, 544), (2, 160)])
@pytest.mark.parametrize("clips, rows", [(1, 1), (2, 3), (1, 16), (3, 35), (2, 101)])
def test_sizes(build_of, heads, width, clips, rows):
    """Heads of any size, more rows than registers and tiles hold, columns that fill no whole piece."""
    plain, fast = made(build_of, num_heads=heads, width=width, num_codes=77)
    exact = copy.deepcopy(plain).double()
    x = torch.randn(clips, rows, width).to(BUILDS[build_of])
    mask = torch.rand(clips, 1, rows, rows) < 0.5
    mask[..., 0] = True
    with torch.no_grad():
        for seen in (None, mask, mask[0, 0]):
            states = [model.transformer(x.to(model.head.weight.dtype), seen) for model in (fast, plain, exact)]
            assert close(*states)
        logits = fast._packed_head(x)
        assert logits.dtype == torch.float32 and close(logits, plain.head(x), exact.head(x.double()))


@pytest.mark.parametrize("build_of", HERE)
@pytest.mark.parametrize("rotary", [False, True])
def test_nothing_but_a_position_s_own_past_counts(build_of, rotary):
    """To the bit: whatever the batch, the number of positions in a call, and the number of threads; and a cache that
    is written over from an earlier position on."""
    _, fast = made(build_of, rotary=rotary, block_shape=[1, 1, 1])
    layers, width = fast.transformer, fast.config.width
    x = torch.randn(3, 40, width).to(BUILDS[build_of])
    causal = torch.ones(40, 40).tril().bool()
    threads = torch.get_num_threads()
    with torch.no_grad():
        whole = layers(x, causal)
        assert torch.equal(layers(x[1:2], causal), whole[1:2])
        cache = KVCache(1, 64)
        layers(torch.randn_like(x), causal, cache)
        for start, end in [(0, 33), (10, 11), (11, 12), (12, 28), (28, 40)]:
            part = layers(x[:, start:end], causal[start:end, :end], cache, start)
            assert torch.equal(part, whole[:, start:end])
        try:
            for count in (1, 3, 8):
                torch.set_num_threads(count)
                assert torch.equal(layers(x, causal), whole)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("build_of", HERE)
def test_damaged_weights_show(build_of):
    """NaN comes out where it goes in, for `Draft.check` to find, and only in its own clip."""
    _, fast = made(build_of)
    x = torch.randn(2, 8, fast.config.width)
    x[0, 3, 5] = float("nan")
    with torch.no_grad():
        states = fast.transformer(x, None)
        logits = fast._packed_head(states)
    assert states[0].isnan().all() and states[1].isfinite().all()
    assert logits[0].isnan().all() and logits[1].isfinite().all()


@pytest.mark.parametrize("build_of", HERE)
def test_what_does_not_fit_is_refused(build_of):
    """Before its addresses go to C++."""
    _, fast = made(build_of)
    x, layers = torch.randn(2, 8, fast.config.width), fast.transformer.layers[0]
    cache = KVCache(1, 8)
    with torch.no_grad():
        layers(x, None, cache, 0, 0)
        for states, mask, start in [(x, torch.ones(1, 8).bool(), 0), (x, torch.ones(3, 1, 8, 8).bool(), 0),
                                    (x, torch.ones(8, 8), 0), (x.to("meta"), None, 0)]:
            with pytest.raises(RuntimeError, match="a bool mask of"):
                layers(states, mask, None, 0, start)
        for states, start in [(x, 1), (x[:1], 0)]:
            with pytest.raises(RuntimeError, match="cache .* does not fit"):
                layers(states, None, cache, 0, start)
        with pytest.raises(RuntimeError, match="packed head"):
            fast._packed_head(x[..., :16].repeat(1, 1, 7))
    with pytest.raises(RuntimeError, match="sampling only"):
        layers(x.requires_grad_(), None, None, 0, 0)


@pytest.mark.skipif(not all(map(built, BUILDS)), reason="not all builds run here")
def test_builds_share_nothing():
    """One of them must not see what another one is set to, whichever was loaded first."""
    first, _, last = [library.load(name) for name in BUILDS]
    last.use_tiles(True)
    assert first.use_tiles(False) == 0 and last.use_tiles(-1) == has_amx()


@PACKS
def test_packed_twice():
    generator = build()
    want = generator.generate(torch.tensor([0]), greedy=True)
    generator.pack()
    generator.pack()
    generator.pack(int8=True)
    assert torch.equal(generator.generate(torch.tensor([0]), greedy=True), want)


@PACKS
def test_nothing_to_store_or_train(tmp_path):
    generator = build(block_shape=[1, 1, 4])
    generator.pack()
    with pytest.raises(RuntimeError, match="sampling only"):
        generator.save_pretrained(tmp_path / "model")
    assert torch.equal(copy.deepcopy(generator).generate(torch.tensor([0]), greedy=True),
                       generator.generate(torch.tensor([0]), greedy=True))


@pytest.mark.parametrize("fast", [False, True])
def test_when_bfloat16_is_packed(fast, monkeypatch):
    monkeypatch.setattr(library, "multiplies_bfloat16", lambda device: fast)
    able = fast and torch.cpu._is_avx512_bf16_supported()
    assert packed.can_pack(torch.ones(1, dtype=torch.bfloat16), 32) is able
    assert not packed.can_pack(torch.ones(1, dtype=torch.bfloat16), 16) and not packed.can_pack(torch.ones(1), 24)
    assert not packed.can_pack(torch.ones(1, dtype=torch.float64), 32)


@PACKS
@pytest.mark.parametrize("fault, message", [("missing", "was not built"), ("old", "from other sources"),
                                            ("damaged", "cannot be used")])
def test_a_build_that_is_not_there(fault, message, tmp_path, monkeypatch):
    """Said once, with what to do; PyTorch and numpy take its place."""
    generator = build()
    want = generator.generate(torch.tensor([0]), generator=torch.Generator().manual_seed(0))
    if fault != "old":
        monkeypatch.setattr(library, "FOLDER", tmp_path)
        if fault == "damaged":
            (tmp_path / f"{BEST}{library.SUFFIX}").write_bytes(b"no library")
    else:
        monkeypatch.setattr(library, "source", lambda: 1)
    library.load.cache_clear()
    try:
        usual = torch.get_num_threads()
        torch.set_num_threads(3)
        with pytest.warns(UserWarning, match=f"{message}.*sh setup.sh") as warned:
            generator.generate(torch.tensor([0, 1]))
        torch.set_num_threads(usual)
        assert len(warned) == 1
        generator.pack()
        assert not isinstance(generator.transformer.layers[0], packed.PackedLayers)
        found = generator.generate(torch.tensor([0]), generator=torch.Generator().manual_seed(0))
        assert torch.equal(found, want)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            build().pack()
    finally:
        library.load.cache_clear()
