"""Run configuration: dataclass schemas and `load_config`.

Dataclass defaults < YAML files (`base: [...]` merged in order) < dotted command line.
The only importer of omegaconf, and only when a YAML file is read, so that models can be
built without it. Architecture and data fields have no default: a missing one is an error.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

MISSING = "???"


@dataclass
class DataConfig:
    """A dataset of video files and how clips are cut from it."""

    name: str = MISSING
    root: str = MISSING                # annotation paths are relative to this folder
    train_list: str = MISSING          # `path<TAB>label` per line
    val_list: str = MISSING
    resolution: int = MISSING          # pixels, square, divisible by the tokenizer's spatial stride
    num_frames: int = 17               # 1 + 4k
    fps: Optional[float] = None        # None: the file's own rate
    resize: str = "aspect"             # aspect: short side, then crop | squash: both sides, as the official reader
    flip: bool = False                 # random horizontal flip in training
    reader: str = "pyav"               # pyav | decord
    max_bad_files: int = 0             # unreadable files that are skipped, counted and logged before it is an error


@dataclass
class TokenizerConfig:
    """Causal 3D-conv autoencoder with FSQ; stage i has `widths[i]` channels and `num_res_blocks[i]` residual units."""

    widths: List[int] = MISSING
    num_res_blocks: List[int] = MISSING
    strides: List[List[int]] = MISSING     # between stages, (t, h, w) each
    fsq_levels: List[int] = MISSING

    @property
    def num_codes(self):
        return math.prod(self.fsq_levels)

    @property
    def downsample(self):
        """Total stride (t, h, w)."""
        return tuple(math.prod(axis) for axis in zip(*self.strides))

    def latent_grid(self, num_frames, height, width):
        """Latent grid (t, h, w) of a video of this size."""
        t, h, w = self.downsample
        return (num_frames - 1) // t + 1, height // h, width // w

    def check(self):
        if not len(self.widths) == len(self.num_res_blocks) == len(self.strides) + 1:
            raise ValueError(
                "tokenizer config: widths, num_res_blocks and strides must have n, n and n-1 entries, got "
                f"{len(self.widths)}, {len(self.num_res_blocks)} and {len(self.strides)}")
        for stride in self.strides:
            if len(stride) != 3 or any(s not in (1, 2) for s in stride):
                raise ValueError(f"tokenizer config: strides entries are (t, h, w) of 1 or 2, got {list(stride)}")
        if any(width % 4 for width in self.widths):
            raise ValueError(f"tokenizer config: widths must be divisible by 4, got {list(self.widths)}")
        if any(level < 2 for level in self.fsq_levels):
            raise ValueError(f"tokenizer config: fsq_levels must be at least 2, got {list(self.fsq_levels)}")


@dataclass
class GeneratorConfig:
    """Decoder-only transformer with block-causal attention over [condition | begin | video]."""

    num_layers: int = MISSING
    num_heads: int = MISSING
    width: int = MISSING
    num_codes: int = MISSING               # the tokenizer's codebook size
    grid: List[int] = MISSING              # latent grid (t, h, w) of a clip
    block_shape: List[int] = MISSING       # tokens predicted in one step, as (t, h, w)
    condition: str = MISSING               # none | label | text
    start: str = MISSING                   # plain: every block at once | hybrid: first block token by token
    num_condition_ids: int = 0             # classes, or entries of the text vocabulary
    condition_len: int = 0                 # condition tokens in front of the video
    max_seq_len: int = 5120
    dropout: float = 0.1
    condition_dropout: float = 0.1         # share of training clips that see the unconditional embedding
    activation_checkpointing: bool = False

    @property
    def block_size(self):
        return math.prod(self.block_shape)


# ---- loading


def load_config(schema, path=None, overrides=(), values=None):
    """Build a `schema` dataclass from a YAML file and dotted overrides.

    Args:
        schema: dataclass type.
        path: YAML file or None; its `base` entries (relative to the file) are merged first, in order.
        overrides: strings `section.field=value`.
        values: nested dict merged between file and overrides.

    Returns:
        An instance of `schema`, with every nested dataclass built.

    Raises:
        ValueError: unknown field (with the nearest known name), wrong type, missing value or unreadable file;
            the message names the field and where it came from.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(schema)
    layers = [(path, _read_yaml(path))] if path is not None else []
    if values is not None:
        layers.append(("values", OmegaConf.create(values)))
    for item in overrides:
        if "=" not in item:
            raise ValueError(f"override {item!r} is not of the form section.field=value")
        layers.append((f"command line {item!r}", OmegaConf.from_dotlist([item])))
    for source, layer in layers:
        _check_names(schema, OmegaConf.to_container(layer), source)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise ValueError(f"{source}: {_first_line(error)}") from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ValueError(f"{path}: no value for {', '.join(missing)}: set it in the file or as NAME=VALUE")
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {_first_line(error)}") from error
    _check_all(config)
    return config


def to_dict(config):
    """Nested plain dict of a config dataclass."""
    return dataclasses.asdict(config)


def save_config(config, path):
    """Write the resolved config as YAML, atomically."""
    from omegaconf import OmegaConf

    from nbp.files import write_text

    write_text(path, OmegaConf.to_yaml(OmegaConf.create(to_dict(config))))


def _read_yaml(path):
    from omegaconf import OmegaConf

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config file {path} does not exist")
    try:
        layer = OmegaConf.load(path)
    except Exception as error:
        raise ValueError(f"config file {path} is not valid YAML: {error}") from error
    if not OmegaConf.is_dict(layer):
        raise ValueError(f"config file {path} must hold a mapping of fields")
    bases = layer.pop("base", [])
    return OmegaConf.merge(*[_read_yaml(path.parent / base) for base in bases], layer)


def _check_names(schema, values, source, prefix=""):
    """Reject unknown names with a suggestion; OmegaConf's own message has none."""
    fields = {f.name: f.type for f in dataclasses.fields(schema)}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f", did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(sorted(fields))}"
            raise ValueError(f"{source}: unknown field {prefix}{name}{hint}")
        if dataclasses.is_dataclass(fields[name]) and isinstance(value, dict):
            _check_names(fields[name], value, source, f"{prefix}{name}.")


def _check_all(config):
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            _check_all(value)
    if hasattr(config, "check"):
        config.check()


def _first_line(error):
    return str(error).splitlines()[0]
