"""Folders that may lie elsewhere: a local path, or any URL that fsspec opens (s3://, gs://, https://, memory://)."""

from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname


def local_path(folder: str | Path) -> Path | None:
    """Path of a folder on this machine (a plain path or a file:// URL), or None for a URL of elsewhere."""
    text = str(folder)
    if text.startswith("file://"):
        return Path(url2pathname(urlparse(text).path))
    return None if "://" in text else Path(text)


def open_folder(folder: str | Path) -> "LocalFolder | RemoteFolder":
    """`LocalFolder` or `RemoteFolder` of a path or URL.

    Raises:
        ValueError: fsspec has no such protocol, or its package is not installed.
    """
    path = local_path(folder)
    return RemoteFolder(str(folder)) if path is None else LocalFolder(path)


class LocalFolder:
    """Files of a folder on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str | Path) -> bytes | None:
        """Content of a file, or None if there is none."""
        path = self.path / name
        return path.read_bytes() if path.is_file() else None


class RemoteFolder:
    """Files behind a URL."""

    path = None

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{url} cannot be opened: {error}") from error

    def read(self, name: str | Path) -> bytes | None:
        """Content of a file, or None if there is none."""
        url = f"{self._root.rstrip('/')}/{name}"
        try:
            return self._files.cat_file(url)
        except FileNotFoundError:
            return None
        except Exception as error:      # of as many kinds as there are protocols
            raise ValueError(f"{url} cannot be read: {type(error).__name__}: {error}") from error
