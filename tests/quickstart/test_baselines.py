"""Baselines: each does exactly what its name says."""

import numpy as np
import pytest
import torch

from nbp.config import TokenizerConfig
from nbp.data import clip_set
from nbp.data.tokens import TokenDataset, TokenWriter
from nbp.hub.models import model_hash
from nbp.quickstart import baselines
from nbp.tokenizer.model import Tokenizer

STRIDES = (4, 8, 8)


def random_clips(count=3, num_frames=5, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, num_frames, size, size, 3), dtype=np.uint8)


def write_tokens(folder, indices, labels, num_codes, tokenizer_hash="0" * 64, classes=("a", "b")):
    meta = {"grid": list(indices.shape[1:]), "num_codes": num_codes, "tokenizer_hash": tokenizer_hash, "data": {},
            "classes": list(classes)}
    with TokenWriter(folder, meta) as writer:
        writer.add(range(len(indices)), indices, labels, [f"{n}.mp4" for n in range(len(indices))])
    return TokenDataset(folder)


def test_pool_averages_the_first_frame_alone_and_then_groups_of_four():
    clip = random_clips(1, num_frames=9)[0]
    pooled = baselines.pool(clip, STRIDES)
    groups = [clip[:1], clip[1:5], clip[5:]]
    expected = [group[:, :8, 8:].reshape(-1, 3).mean(0) for group in groups]
    for value, frame in zip(expected, (0, 3, 8)):
        block = pooled[frame, :8, 8:]
        assert (block == block[0, 0]).all()
        assert np.abs(block[0, 0] - value).max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(baselines.pool(pooled, STRIDES), pooled)


def test_pool_refuses_a_size_that_the_strides_do_not_divide():
    with pytest.raises(ValueError, match="4 frames of 16x16"):
        baselines.pool(random_clips(1, num_frames=4)[0], STRIDES)


def test_freeze_repeats_the_last_given_frame():
    video = random_clips()
    frozen = baselines.freeze(video, 2)
    np.testing.assert_array_equal(frozen[:, :2], video[:, :2])
    np.testing.assert_array_equal(frozen[:, 2:], np.stack([video[:, 1]] * 3, 1))
    with pytest.raises(ValueError, match="1..4, got 5"):
        baselines.freeze(video, 5)


def test_clips_of_picks_by_path_and_names_what_is_missing():
    real = {"video": random_clips(), "label": np.arange(3), "path": np.array(["a", "b", "c"])}
    picked = baselines.clips_of(real, np.array(["c", "a"]), "real.npz")
    np.testing.assert_array_equal(picked["label"], [2, 0])
    np.testing.assert_array_equal(picked["video"], real["video"][[2, 0]])
    with pytest.raises(ValueError, match="real.npz lacks 1 of 1 predicted clips, first 'd'"):
        baselines.clips_of(real, np.array(["d"]), "real.npz")


def test_draws_follow_the_frequencies_of_their_class(tmp_path):
    indices = np.zeros((2, 2, 4, 4), np.int64)
    indices[0, 0] = 3                      # class 0 uses codes 3 and 0 equally often, class 1 only code 7
    indices[1] = 7
    frequencies = baselines.class_frequencies(write_tokens(tmp_path, indices, [0, 1], num_codes=8))
    assert frequencies[0].tolist() == [0.5, 0, 0, 0.5, 0, 0, 0, 0] and frequencies[1, 7] == 1
    drawn = baselines.draw(frequencies, [0, 1, 0], (5, 8, 8), torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 5, 8, 8) and (drawn[1] == 7).all()
    assert set(drawn[0].unique().tolist()) == {0, 3} and 0.4 < (drawn[0] == 3).float().mean() < 0.6
    again = baselines.draw(frequencies, [0, 1, 0], (5, 8, 8), torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again) and not torch.equal(drawn[0], drawn[2])


def test_draws_need_labels(tmp_path):
    tokens = write_tokens(tmp_path, np.zeros((2, 1, 2, 2), np.int64), [0, 0], num_codes=4)
    with pytest.raises(ValueError, match="no clips of b"):
        baselines.class_frequencies(tokens)
    with pytest.raises(ValueError, match="labels must lie in 0..1, got -1..0"):
        baselines.draw(torch.ones(2, 4), [-1, 0], (1, 2, 2), None)


def test_command_writes_four_sets_that_match_their_partners(tmp_path):
    torch.manual_seed(0)
    config = TokenizerConfig([8, 8, 8, 8], [0, 0, 0, 0], [[1, 2, 2], [2, 2, 2], [2, 2, 2]], [4, 4])
    tokenizer = Tokenizer(config).eval()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_tokens(tmp_path / "tokens", np.arange(16).reshape(2, 2, 2, 2), [0, 1], 16, model_hash(tokenizer))
    video, label, path = random_clips(), np.array([0, 1, 0]), np.array(["x", "y", "z"])
    clip_set.write_arrays(tmp_path / "real.npz", {"video": video, "label": label, "path": path})
    clip_set.save(tmp_path / "generated", video[:2], [1, 0], indices=np.zeros((2, 2, 2, 2)))
    clip_set.save(tmp_path / "predicted", video[:2], label[:2], path[[2, 1]])
    baselines.main([*(f"--{name}={tmp_path / name}" for name in ("generated", "predicted", "tokenizer", "tokens")),
                    f"--real={tmp_path / 'real.npz'}", f"--out={tmp_path / 'out'}", "--prefix-frames=1",
                    "--device=cpu"])
    sets = {name: clip_set.load(tmp_path / "out" / name) for name in
            ("pooled", "frozen", "class_tokens", "uniform_tokens")}
    assert sets["pooled"]["video"].shape == video.shape and sets["pooled"]["path"].tolist() == ["x", "y", "z"]
    np.testing.assert_array_equal(sets["frozen"]["video"][:, 4], video[[2, 1], 0])
    for name in ("class_tokens", "uniform_tokens"):
        assert sets[name]["label"].tolist() == [1, 0] and sets[name]["video"].shape == video[:2].shape
        indices = torch.from_numpy(sets[name]["indices"])
        decoded = tokenizer.decode_from_code_indices(indices).clamp(0, 1).permute(0, 2, 3, 4, 1).detach().numpy() * 255
        assert np.abs(decoded - sets[name]["video"]).max() <= 0.51
    assert sets["class_tokens"]["indices"][0].min() >= 8 and sets["class_tokens"]["indices"][1].max() < 8
