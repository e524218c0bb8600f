"""Named protocols of Frechet video distance, and the preprocessing they prescribe.

A distance is comparable only under one protocol, so a preset decides everything; a changed field changes
the printed name (`nbp-rfvd+frames=16`). Sources: the papers and released code of MAGVIT, TATS, LARP and NBP.
Legend: B clips, T frames, H W pixels, C channels.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from einops import rearrange
from torch import Tensor

I3D_SIZE = 224
ACCEPTED = {
    "network": ("i3d-tf", "i3d-port", "i3d-styleganv"),
    "quantize": ("floor", "round", "none"),
    "fit": ("squash", "crop"),
    "precision": ("float32", "bfloat16"),
    "real_split": ("any", "train", "val"),
    "real_clips": ("centre", "spaced", "random"),
}
SHORT_NAMES = {"num_frames": "frames", "num_real": "real", "num_fake": "fake"}  # in printed names


def _in_name(value: Any) -> str:  # noqa: ANN401
    """A field's value as names of protocols say it: one way for 8 and 8.0, and all digits of others."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "null" if value is None else str(value)


@dataclass(frozen=True)
class Protocol:
    """Everything that a score depends on besides the two sets."""

    name: str
    network: str                       # i3d-tf: eps 1e-3 | i3d-port: eps 1e-5 | i3d-styleganv: TorchScript file
    quantize: str                      # float pixels before the network: floor or round to 8 bit, or none
    fit: str                           # to a square: squash both sides, or crop the middle after scaling the short one
    antialias: bool = False            # filter when shrinking
    resolution: int | None = None      # pixels that both sets are resized to before 224; None: as they come
    num_frames: int | None = 16        # the first ones of every clip; None: all
    num_real: int | None = None        # clips; None: the whole set
    num_fake: int | None = None
    repeats: int = 1                   # disjoint fake sets of num_fake clips, mean and deviation reported
    real_split: str = "any"            # list of a data config that real clips are taken from; any: the val list
    real_clips: str = "centre"         # where in a real video file: the middle, evenly spaced, or random by the seed
    clips_per_video: int | None = 1    # clips of one real video file; None: as many as num_real needs
    fps: float | None = None           # rate at which real video files are read; None: their own
    precision: str = "float32"         # of the network

    def __post_init__(self) -> None:
        for name, accepted in ACCEPTED.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"protocol {self.name}: {name} is {getattr(self, name)!r}; "
                                 f"accepted: {', '.join(accepted)}")
        for name in ("resolution", "num_frames", "num_real", "num_fake", "repeats", "clips_per_video"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"protocol {self.name}: {name} is {value!r}; accepted: a positive whole number")
        if self.fps is not None and not (type(self.fps) in (int, float) and self.fps > 0):
            raise ValueError(f"protocol {self.name}: fps is {self.fps!r}; accepted: a positive number, or null")
        if not isinstance(self.antialias, bool):
            raise ValueError(f"protocol {self.name}: antialias is {self.antialias!r}; accepted: true, false")

    def replace(self, **changes: object) -> "Protocol":
        """A protocol with other fields (full or short names); its own name says which. ValueError: unknown field (with
        a suggestion) or a value that is not accepted."""
        full_names = {short: full for full, short in SHORT_NAMES.items()}
        for full, short in SHORT_NAMES.items():
            if {full, short} <= changes.keys():
                raise ValueError(f"a protocol has one field {full}, and {short} is its short name; give one of them")
        changed_fields: dict[str, Any] = {full_names.get(key, key): value for key, value in changes.items()}
        known = [field.name for field in dataclasses.fields(self) if field.name != "name"]
        for key in changed_fields:
            if key not in known:
                close = difflib.get_close_matches(key, [*known, *full_names], 1)
                raise ValueError(f"a protocol has no field {key!r}" + (f"; did you mean {close[0]!r}?" if close else
                                                                       f"; accepted: {', '.join(known)}"))
        changed_fields = {key: value for key, value in changed_fields.items() if value != getattr(self, key)}
        base, *earlier = self.name.split("+")
        stated = dict(part.split("=", 1) for part in earlier)
        stated |= {SHORT_NAMES.get(key, key): _in_name(value) for key, value in changed_fields.items()}
        name = "+".join([base, *(f"{key}={value}" for key, value in stated.items())])
        return dataclasses.replace(self, name=name, **changed_fields)

    def features_key(self) -> dict[str, str | int | bool | None]:
        """The fields that features depend on: two protocols that agree in them share cached features."""
        return {key: getattr(self, key) for key in ("network", "quantize", "fit", "antialias", "resolution",
                                                    "num_frames", "precision")}


_MAGVIT: dict[str, Any] = dict(network="i3d-tf", quantize="round", fit="squash", repeats=4)
_NBP_GFVD: dict[str, Any] = dict(network="i3d-styleganv", quantize="none", fit="crop")
PROTOCOLS = {protocol.name: protocol for protocol in (
    Protocol("magvit-ucf", **_MAGVIT, resolution=128, num_real=10_000, num_fake=10_000, real_split="train",
             real_clips="random", clips_per_video=None),
    Protocol("magvit-k600", **_MAGVIT, resolution=64, num_real=50_000, num_fake=50_000, real_split="val",
             real_clips="spaced", clips_per_video=6),
    Protocol("tats-2048", network="i3d-port", quantize="floor", fit="squash", num_real=2048, num_fake=2048,
             real_split="train", real_clips="random", clips_per_video=None),
    # Centre clips: the list's length is the count, 9,537 for UCF-101.
    Protocol("nbp-gfvd-ucf", **_NBP_GFVD, num_fake=10_000, real_split="train", fps=8.0),
    Protocol("nbp-gfvd-k600", **_NBP_GFVD, resolution=64, num_fake=50_000, real_split="val", fps=25.0),
    Protocol("nbp-rfvd", network="i3d-port", quantize="floor", fit="squash", num_frames=17, real_split="val"),
    Protocol("larp", network="i3d-styleganv", quantize="floor", fit="squash", antialias=True, num_fake=10_000,
             real_split="train"),
    # Small runs: the original's constants, every frame that the tokenizer sees.
    Protocol("quickstart", network="i3d-tf", quantize="round", fit="squash", num_frames=None, real_split="val"),
)}


def get_protocol(name: str | Path, _readers: tuple[Path, ...] = ()) -> Protocol:
    """A preset by name, or by the path of a YAML file with the fields of `Protocol` (`base` names a preset). A name may
    be followed by changed fields, as `Protocol.replace` prints them: `nbp-rfvd+frames=16`. ValueError: unknown preset
    or field."""
    if str(name).endswith((".yaml", ".yml")):
        return _read_protocol(name, _readers)
    base, *changes = str(name).split("+")
    if base not in PROTOCOLS:
        close = difflib.get_close_matches(base, PROTOCOLS, 1)
        raise ValueError(f"unknown protocol {base!r}; accepted: {', '.join(PROTOCOLS)}, or a YAML file"
                         + (f"; did you mean {close[0]!r}?" if close else ""))
    return PROTOCOLS[base].replace(**parse_changes(changes))


def parse_changes(items: Iterable[str]) -> dict[str, Any]:
    """["frames=16", ...] -> {"frames": 16, ...}, values as in YAML. ValueError: an item not of the form field=value."""
    changes: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"{item!r} is not of the form field=value")
        try:
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{item!r}: the value is not valid YAML: {error}") from error
    return changes


def _read_protocol(path: str | Path, readers: tuple[Path, ...]) -> Protocol:
    if (file := Path(path).resolve()) in readers:
        raise ValueError(f"{path}: its base leads back to itself")
    try:
        fields = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as a protocol: {error}") from error
    if not isinstance(fields, dict) or "base" not in fields or "name" not in fields:
        raise ValueError(f"{path}: a protocol file has a `name`, a `base` preset and the fields that differ")
    base, name = fields.pop("base"), fields.pop("name")
    if not isinstance(name, str) or not name or "+" in name:
        raise ValueError(f"{path}: name is {name!r}; accepted: a text without +, which is kept for changed fields")
    if unknown := [key for key in fields if not isinstance(key, str)]:
        raise ValueError(f"{path}: {unknown[0]!r} is not the name of a field")
    if name in PROTOCOLS:
        raise ValueError(f"{path}: name is {name!r}, which is a published preset's; accepted: any other than "
                         f"{', '.join(PROTOCOLS)}")
    try:
        return dataclasses.replace(get_protocol(base, (*readers, file)).replace(**fields), name=name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def to_video(frames: np.ndarray | Tensor) -> Tensor:
    """Frames (B,T,H,W,3), uint8 or float in [0,1] -> float32 video (B,3,T,H,W) in [0,1]. ValueError: anything else."""
    frames = torch.as_tensor(frames)
    if frames.ndim != 5 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames have shape {tuple(frames.shape)}; accepted: (B,T,H,W,3)")
    if frames.dtype == torch.uint8:
        frames = frames.float() / 255
    elif frames.is_floating_point():
        low, high = frames.min().item(), frames.max().item()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"float frames run from {low:.4g} to {high:.4g}; accepted: [0,1], or uint8")
        frames = frames.float()
    else:
        raise ValueError(f"frames are {frames.dtype}; accepted: uint8, or float in [0,1]")
    return rearrange(frames, "b t h w c -> b c t h w")


def prepare(frames: np.ndarray | Tensor, protocol: Protocol) -> Tensor:
    """What the network of a protocol gets to see: frames (B,T,H,W,3), uint8 or float in [0,1] -> float32
    (B,3,T',224,224) in [-1,1]. ValueError: clips shorter than the protocol's, or wrong dtype, shape or range."""
    video = to_video(frames)
    if protocol.num_frames is not None:
        if video.shape[2] < protocol.num_frames:
            raise ValueError(f"clips have {video.shape[2]} frames; protocol {protocol.name} needs "
                             f"{protocol.num_frames}")
        video = video[:, :, :protocol.num_frames]
    if protocol.resolution is not None:
        video = resize(video, protocol.resolution, protocol.fit, protocol.antialias)
    video = quantize(video, protocol.quantize)
    return 2 * resize(video, I3D_SIZE, protocol.fit, protocol.antialias) - 1


def quantize(video: Tensor, how: str) -> Tensor:
    """Values in [0,1] to multiples of 1/255, by "floor" or "round"; "none" keeps them. Pixels that came from uint8 stay
    what they are: 255 * (k / 255) is k in float32 for every k."""
    return video if how == "none" else (video * 255 + {"floor": 0.0, "round": 0.5}[how]).floor() / 255


def resize(video: Tensor, size: int, fit: str, antialias: bool) -> Tensor:
    """Bilinear resize of (B,C,T,H,W) to `size` x `size`; `fit` as in `Protocol`."""
    batch, (h, w) = len(video), video.shape[3:]
    shape = (size, size)
    if fit == "crop":  # the short side to `size`, the middle of the long one is cut below
        shape = (size, math.ceil(w * size / h)) if h < w else (math.ceil(h * size / w), size)
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    if shape != (h, w):
        frames = F.interpolate(frames, shape, mode="bilinear", align_corners=False, antialias=antialias)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    frames = frames[:, :, top:top + size, left:left + size]        # (B*T, C, size, size)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=batch)  # (B, C, T, size, size)
