import pickle

import numpy as np
import pytest
import torch

from nbp.data.tokens import TokenDataset, TokenWriter

META = {"grid": [2, 3, 4], "num_codes": 64000, "tokenizer_hash": "a" * 64, "data": {"fps": 8, "resize": "aspect"},
        "classes": ["Archery", "PlayCello"]}


def made(items):
    """The sample of each item number, a pure function of it."""
    indices = np.stack([np.random.default_rng(item).integers(0, 64000, (2, 3, 4)) for item in items])
    return items, indices, [item % 3 - 1 for item in items], [f"clip{item}.mp4" for item in items]


def write(folder, rank=0, world=1, stop_after=None, total=23, batch=3):
    """Write the rank's items; with `stop_after`, die behind that many batches."""
    with TokenWriter(folder, META, rank, world, shard_size=4) as writer:
        items = [item for item in range(rank, total, world) if item >= writer.next_item and not writer.finished]
        for count, first in enumerate(range(0, len(items), batch)):
            if count == stop_after:
                raise KeyboardInterrupt
            writer.add(*made(items[first:first + batch]))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_round_trip(tmp_path):
    write(tmp_path)
    dataset = TokenDataset(tmp_path, "a" * 64)
    assert len(dataset) == 23 and (dataset.grid, dataset.num_codes) == ((2, 3, 4), 64000)
    for item in (0, 5, 22):
        sample = dataset[item]
        assert sample["indices"].dtype == torch.int64 and sample["indices"].shape == (2, 3, 4)
        assert np.array_equal(sample["indices"], made([item])[1][0])
        assert sample["label"] == item % 3 - 1 and sample["path"] == f"clip{item}.mp4"
        assert sample["text"] == ["", "archery", "play cello"][item % 3]
    assert torch.equal(dataset[(5, 17, 123)]["indices"], dataset[5]["indices"])


def test_workers_read_the_cache(tmp_path):
    write(tmp_path)
    dataset = TokenDataset(tmp_path)
    dataset[0]  # opens a shard in the parent
    dataset = pickle.loads(pickle.dumps(dataset))  # as a spawned worker gets it
    dataset[0]
    batches = list(torch.utils.data.DataLoader(dataset, 8, num_workers=1))
    assert torch.equal(torch.cat([batch["indices"] for batch in batches]), torch.from_numpy(made(range(23))[1]))


@pytest.mark.parametrize("world", [2, 5])
def test_the_number_of_processes_does_not_change_the_order(tmp_path, world):
    write(tmp_path / "one")
    for rank in range(world):
        write(tmp_path / "many", rank, world)
    one, many = TokenDataset(tmp_path / "one"), TokenDataset(tmp_path / "many")
    assert many.paths == one.paths and np.array_equal(many.labels, one.labels)
    assert all(torch.equal(many[item]["indices"], one[item]["indices"]) for item in range(23))


@pytest.mark.parametrize("stop_after", [0, 1, 2, 4, 7])
def test_a_resumed_run_gives_identical_files(tmp_path, stop_after):
    write(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "stopped", stop_after=stop_after)
    with pytest.raises(ValueError, match="unfinished: part 1 of 1 is missing"):
        TokenDataset(tmp_path / "stopped")
    write(tmp_path / "stopped")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    write(tmp_path / "stopped")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_failed_write_leaves_no_half_shard(tmp_path, monkeypatch):
    import safetensors.numpy

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["meta.json"]
    write(tmp_path)
    assert len(TokenDataset(tmp_path)) == 23


def test_skipped_items_are_no_problem(tmp_path):
    with TokenWriter(tmp_path, META, shard_size=4) as writer:
        writer.add(*made([0, 1, 5]))
        writer.add(*made([6, 9]))
    assert TokenDataset(tmp_path).items.tolist() == [0, 1, 5, 6, 9]


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="tokens of another tokenizer: hash aaaaaaaaaaaa, expected bbbbbbbbbbbb"):
        TokenDataset(tmp_path, "b" * 64)


@pytest.mark.parametrize("change, message", [
    ({"tokenizer_hash": "c" * 64}, 'tokenizer_hash is "aaa.*, now "ccc'),
    ({"data": {"fps": 16, "resize": "aspect"}}, r'settings: data\.fps is 8, now 16\. Choose'),
])
def test_other_settings_do_not_mix(tmp_path, change, message):
    write(tmp_path)
    with pytest.raises(ValueError, match=message):
        TokenWriter(tmp_path, META | change, shard_size=4)
    with pytest.raises(ValueError, match="num_parts is 1, now 2"):
        TokenWriter(tmp_path, META, world=2, shard_size=4)


def test_what_changes_no_token_may_change(tmp_path):
    data = META["data"] | {"annotations_sha256": "a" * 64}
    with TokenWriter(tmp_path, META | {"data": data}, shard_size=4) as writer:
        writer.add(*made([0, 1]))
    data |= {"root": "elsewhere", "max_bad_files": 5, "flip": True}
    assert TokenWriter(tmp_path, META | {"data": data}, shard_size=4).finished


@pytest.mark.parametrize("change, message", [
    ({"grid": [2, 3]}, r"grid must be \(t, h, w\)"),
    ({"num_codes": 100_000}, "num_codes must be in"),
    ({"extra": 1}, "must have exactly"),
])
def test_bad_meta_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        TokenWriter(tmp_path, META | change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("indices, message", [
    (np.zeros((1, 2, 3, 3), int), r"shape \(1, 2, 3, 3\), the cache holds grids of \[2, 3, 4\]"),
    (np.full((1, 2, 3, 4), 64000), r"integers in \[0, 64000\)"),
    (np.full((1, 2, 3, 4), -1), r"integers in \[0, 64000\)"),
    (np.zeros((1, 2, 3, 4)), "got float64"),
    (np.zeros((2, 2, 3, 4), int), "1 items, 2 indices"),
])
def test_bad_samples_are_refused(tmp_path, indices, message):
    writer = TokenWriter(tmp_path, META)
    with pytest.raises(ValueError, match=message):
        writer.add([0], indices, [0], ["a.mp4"])


def test_items_must_ascend(tmp_path):
    writer = TokenWriter(tmp_path, META)
    writer.add(*made([3]))
    with pytest.raises(ValueError, match="item 3 is already stored .* the next one is 4"):
        writer.add(*made([3]))


def test_unusable_caches(tmp_path):
    with pytest.raises(ValueError, match="is not a token cache"):
        TokenDataset(tmp_path)
    with TokenWriter(tmp_path / "empty", META):
        pass
    with pytest.raises(ValueError, match="holds no samples"):
        TokenDataset(tmp_path / "empty")
    write(tmp_path / "cut")
    shard = tmp_path / "cut" / "tokens-0000-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match="tokens-0000-00001.safetensors is missing or damaged"):
        TokenDataset(tmp_path / "cut")
    shard.unlink()
    with pytest.raises(ValueError, match="tokens-0000-00001.safetensors is missing or damaged"):
        TokenDataset(tmp_path / "cut")


@pytest.fixture
def elsewhere(tmp_path):
    """A finished cache of two parts on disk, and a copy of it in fsspec's memory file system."""
    import fsspec

    for rank in range(2):
        write(tmp_path / "cache", rank, 2)
    files = fsspec.filesystem("memory")
    for path in (tmp_path / "cache").iterdir():
        files.pipe_file(f"/{tmp_path.name}/cache/{path.name}", path.read_bytes())
    return tmp_path / "cache", f"memory://{tmp_path.name}/cache"


def test_a_cache_behind_a_url_is_the_cache_on_disk(elsewhere):
    disk, url = elsewhere
    local = TokenDataset(disk, "a" * 64)
    for address in (url, f"file://{disk}"):
        remote = pickle.loads(pickle.dumps(TokenDataset(address, "a" * 64)))
        assert len(remote) == 23 and remote.paths == local.paths and np.array_equal(remote.labels, local.labels)
        for item in range(23):
            assert torch.equal(remote[item]["indices"], local[item]["indices"])


def test_what_is_missing_behind_a_url(elsewhere, monkeypatch):
    import fsspec

    disk, url = elsewhere
    with pytest.raises(ValueError, match="other is not a token cache"):
        TokenDataset(url + "/other")
    with pytest.raises(ValueError, match="nosuch://bucket cannot be opened"):
        TokenDataset("nosuch://bucket")
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/page/meta.json", b"<html>log in</html>")
    with pytest.raises(ValueError, match="meta.json of memory.*/page is no JSON"):
        TokenDataset(url + "/page")
    with monkeypatch.context() as patch:
        patch.setattr(type(files), "cat_file", lambda *_: (_ for _ in ()).throw(RuntimeError("403, Forbidden")))
        with pytest.raises(ValueError, match="/cache/meta.json cannot be read: RuntimeError: 403, Forbidden"):
            TokenDataset(url)
    files.pipe_file(f"{root}/tokens-0001-00000.safetensors", b"half")
    with pytest.raises(ValueError, match="tokens-0001-00000.safetensors is missing or damaged"):
        TokenDataset(url)
    files.rm(f"{root}/part-0001.json")
    with pytest.raises(ValueError, match="unfinished: part 2 of 2 is missing"):
        TokenDataset(url)
