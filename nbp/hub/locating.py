"""Where a model is: from what a person writes, a path or a model hub id, to a native folder or an official file."""

from pathlib import Path

WEIGHTS, CONFIG = "model.safetensors", "config.json"
KINDS = ("tokenizer", "generator")
FILE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")   # a name with one is a file's, no model hub id
OFFICIAL_FILES = ("*.pt", "*.ckpt")
# Of a repository that holds one model, and of one that holds a pipeline.
NATIVE_FILES = (WEIGHTS, "*.json", "README.md", "text_tokenizer/*")


def locate(path: str | Path, kind: str | None = None) -> Path:
    """Native folder or official file of a model. `path` is either of them; a folder with a `tokenizer/` and a
    `generator/`, or with one official file; or the id of any of these on a model hub, as "name/model", which is fetched
    into the cache of huggingface_hub once. `kind` is "tokenizer" or "generator", None where one model is all there is.
    ValueError: nothing there, or several official files."""
    folder = Path(path)
    if folder.is_file():
        return folder
    if not folder.is_dir():
        folder = _fetch(path, kind)
    if kind is not None and (folder / kind / CONFIG).is_file():
        return folder / kind
    files = [] if (folder / CONFIG).exists() else [file for pattern in OFFICIAL_FILES for file in folder.glob(pattern)
                                                             if not file.name.startswith(".")]
    if len(files) > 1:
        raise ValueError(f"{path} holds several files ({', '.join(sorted(file.name for file in files))}): name one")
    return files[0] if files else folder


def _fetch(path: str | Path, kind: str | None) -> Path:
    parts = str(path).split("/")
    if Path(path).suffix in FILE_SUFFIXES and not Path(path).exists():
        raise ValueError(f"{path} does not exist")
    if Path(path).exists() or len(parts) != 2 or not all(parts) or str(path).startswith("."):
        raise ValueError(f"{path} is not a model folder (expected {CONFIG} and {WEIGHTS} in it)")
    try:
        from huggingface_hub import snapshot_download

        kinds = (kind,) if kind else KINDS
        native = [*NATIVE_FILES, *(f"{kind}/{name}" for kind in kinds for name in NATIVE_FILES)]
        folder = Path(snapshot_download(str(path), allow_patterns=native))
        if not any(file.name == CONFIG for file in folder.rglob("*")):      # an original release
            folder = Path(snapshot_download(str(path), allow_patterns=list(OFFICIAL_FILES)))
        return folder
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"{path} is neither a model folder nor a model hub id that can be read: {error}") from error
