"""What a container says about showing its pictures: edges cut off, pixels that are not square, turned pictures.

Rule: what FFmpeg's own program and players show. Edges are cut to whole pixels of colour; the width is scaled by the
sample aspect ratio, the height stays; then the display matrix turns the picture, a slanted one by the nearest quarter.
A picture of another size inside a file is brought to the size of the first. Colours are those of FFmpeg's own program
(`-pix_fmt rgb24`).
Legend: T frames, H W pixels.
"""

import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import av

# Formats that need no interpolation, so that the quick converter gives what FFmpeg's filters do.
QUICK_FORMATS = ("yuv420p", "yuvj420p", "rgb24")
_REPORT = threading.Lock()       # of the level that FFmpeg reports at, which is common to all threads


@dataclass(frozen=True)
class Display:
    """From decoded pictures to shown ones."""

    width: int               # square pixels, before turning
    height: int
    swap: bool = False       # rows become columns; then
    mirror_rows: bool = False
    mirror_columns: bool = False
    edges: tuple[int, ...] = (0, 0, 0, 0)   # cut off before all else: left, right, top, bottom

    @classmethod
    def of(cls, stream: "av.VideoStream", frame: "av.VideoFrame") -> "Display":
        """How the pictures of a stream are shown; `frame` is its first one."""
        aspect = float(stream.sample_aspect_ratio or 1)
        height, width, edges = frame.height, frame.width, _edges(stream)
        if any(edges):
            columns, rows = 8 // frame.format.chroma_width(8), 8 // frame.format.chroma_height(8)   # share a colour
            width = (width - edges[0] - edges[1]) // columns * columns
            height = (height - edges[2] - edges[3]) // rows * rows
        width = max(1, round(width * aspect)) if aspect > 0 else width
        try:
            matrix = frame.side_data["DISPLAYMATRIX"]  # type: ignore[typeddict-item]  # the stub is that of another class
        except KeyError:
            return cls(width, height, edges=edges)
        # x' = a x + c y and y' = b x + d y for columns x, rows y, in 16.16 fixed point.
        a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
        if max(abs(b), abs(c)) > max(abs(a), abs(d)):
            return cls(width, height, True, b < 0, c < 0, edges)
        return cls(width, height, False, d < 0, a < 0, edges)

    @property
    def shown_size(self) -> tuple[int, int]:
        """(height, width) as shown."""
        return (self.width, self.height) if self.swap else (self.height, self.width)

    @property
    def plain(self) -> bool:
        """Pictures are shown as they are stored, whole, but for the width of their pixels."""
        return not (self.swap or self.mirror_rows or self.mirror_columns or any(self.edges))

    def turned(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, H, W, 3) of this size, turned as they are shown."""
        if self.plain:
            return frames
        frames = frames.transpose(0, 2, 1, 3) if self.swap else frames
        rows, columns = -1 if self.mirror_rows else 1, -1 if self.mirror_columns else 1
        return np.ascontiguousarray(frames[:, ::rows, ::columns])


def _edges(stream: "av.VideoStream") -> tuple[int, ...]:
    """Rows and columns that the container cuts off (left, right, top, bottom), which only FFmpeg's report names."""
    import av

    with _REPORT:
        level = av.logging.get_level()
        av.logging.set_level(av.logging.INFO)
        try:
            report = stream.container.dumps_format()  # type: ignore[attr-defined]  # its stub lacks it
        finally:
            av.logging.set_level(level)
    own = report.split(f"Stream #0:{stream.index}", 1)[-1].split("Stream #")[0]
    found = re.search(r"Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)$", own, re.MULTILINE)
    return tuple(map(int, found.groups())) if found else (0, 0, 0, 0)


class Pixels:
    """Decoded pictures -> uint8 (H, W, 3) of a `Display` before turning; keeps what is costly to set up."""

    def __init__(self, display: Display) -> None:
        from av.video.reformatter import VideoReformatter

        self._display, self._converter = display, VideoReformatter()
        self._graph: av.filter.Graph | None = None
        self._kind: tuple[object, ...] = ()   # of the pictures that the graph is for

    def __call__(self, picture: "av.VideoFrame") -> np.ndarray:
        size = self._display.width, self._display.height
        if (picture.format.name in QUICK_FORMATS and (picture.width, picture.height) == size
                and not any(self._display.edges) and not picture.interlaced_frame):
            return self._converter.reformat(picture, format="rgb24", threads=1).to_ndarray()
        kind = picture.format.name, picture.width, picture.height, picture.colorspace, picture.color_range
        if self._graph is None or kind != self._kind:
            self._graph, self._kind = self._filters(picture), kind
        self._graph.vpush(picture)
        return self._graph.vpull().to_ndarray(format="rgb24")

    def _filters(self, picture: "av.VideoFrame") -> "av.filter.Graph":
        from av.filter import Graph

        graph, edges = Graph(), self._display.edges
        graph.threads = 1
        cut = [graph.add("crop", "iw-{0}-{1}:ih-{2}-{3}:{0}:{2}".format(*edges))] if any(edges) else []
        graph.link_nodes(
            graph.add_buffer(None, picture.width, picture.height, picture.format, time_base=picture.time_base), *cut,
            graph.add("scale", f"{self._display.width}:{self._display.height}"), graph.add("format", "rgb24"),
            graph.add("buffersink")).configure()
        return graph
