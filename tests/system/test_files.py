"""Files are whole or absent."""

import errno
import os
from types import SimpleNamespace

import pytest

from nbp.system.files import atomic_path, read_json, sha256, write_json


def test_an_interrupted_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "scores.json"
    write_json(path, {"a": 1})
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["scores.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    write_json(path, {"a": 1})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/scores.json'"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["scores.json"]


def test_a_library_that_reports_a_full_disk_in_its_own_words_is_understood(tmp_path, monkeypatch):
    def fail():
        with atomic_path(tmp_path / "last.ckpt"):
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    with pytest.raises(RuntimeError, match="failed writing"):
        fail()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(OSError, match=r"No space left on device: '.*/last.ckpt'"):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_file_keeps_the_usual_permissions(tmp_path):
    write_json(tmp_path / "one.json", 1)
    (tmp_path / "other").touch()
    assert (tmp_path / "one.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_damaged_json_file_is_named(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="bad.json is not valid JSON"):
        read_json(tmp_path / "bad.json")


def test_numbers_that_json_lacks_become_null(tmp_path):
    value = {"psnr": float("inf"), "parts": [(1.5, float("nan")), {"x": -float("inf")}], "n": 2}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == {"psnr": None, "parts": [[1.5, None], {"x": None}], "n": 2}
    text = (tmp_path / "a.json").read_text()
    assert "NaN" not in text and "Infinity" not in text


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea")
