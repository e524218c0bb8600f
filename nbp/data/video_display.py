"""What a container says about showing its pictures: pixels that are not square, and turned or mirrored pictures.

Rule: what a player shows. The width is scaled by the sample aspect ratio, the height stays; then the display matrix
turns the picture, a slanted one by the nearest quarter. A picture of another size inside a file is brought to the size
of the first.
Legend: T frames, H W pixels.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import av


@dataclass(frozen=True)
class Display:
    """From decoded pictures to shown ones."""

    width: int               # square pixels, before turning
    height: int
    swap: bool = False       # rows become columns; then
    mirror_rows: bool = False
    mirror_columns: bool = False

    @classmethod
    def of(cls, stream: "av.VideoStream", frame: "av.VideoFrame") -> "Display":
        """How the pictures of a stream are shown; `frame` is its first one."""
        aspect = float(stream.sample_aspect_ratio or 1)
        width = max(1, round(frame.width * aspect)) if aspect > 0 else frame.width
        try:
            matrix = frame.side_data["DISPLAYMATRIX"]  # type: ignore[typeddict-item]  # the stub is that of another class
        except KeyError:
            return cls(width, frame.height)
        # x' = a x + c y and y' = b x + d y for columns x, rows y, in 16.16 fixed point.
        a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
        if max(abs(b), abs(c)) > max(abs(a), abs(d)):
            return cls(width, frame.height, True, b < 0, c < 0)
        return cls(width, frame.height, False, d < 0, a < 0)

    @property
    def shown_size(self) -> tuple[int, int]:
        """(height, width) as shown."""
        return (self.width, self.height) if self.swap else (self.height, self.width)

    @property
    def plain(self) -> bool:
        """Pictures are shown as they are stored, but for the width of their pixels."""
        return not (self.swap or self.mirror_rows or self.mirror_columns)

    def turned(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, H, W, 3) of this size, turned as they are shown."""
        if self.plain:
            return frames
        frames = frames.transpose(0, 2, 1, 3) if self.swap else frames
        rows, columns = -1 if self.mirror_rows else 1, -1 if self.mirror_columns else 1
        return np.ascontiguousarray(frames[:, ::rows, ::columns])
