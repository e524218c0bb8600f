"""Opening video files: the best video stream of each, one kind of error for all that is wrong with it."""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av

File = str | os.PathLike[str]

# What FFmpeg reads and people have; folders are searched for these.
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".qt", ".avi", ".mkv", ".webm", ".gif", ".mpg", ".mpeg", ".mpe", ".m1v",
                  ".m2v", ".vob", ".wmv", ".asf", ".flv", ".f4v", ".ts", ".m2t", ".mts", ".m2ts", ".3gp", ".3g2",
                  ".ogv", ".rm", ".rmvb", ".dv", ".divx", ".mxf", ".y4m")


PLAYLISTS = {"hls", "dash", "concat", "concatf", "imf", "webm_dash_manifest"}     # FFmpeg's names


class VideoError(ValueError):
    """A video file or picture that cannot be used; the text names it, and so does `path`.

    `path` is optional only because DataLoader rebuilds the exception of a worker from its text.
    """

    def __init__(self, text: str, path: File | None = None) -> None:
        super().__init__(text if path is None else f"{path}: {text}")
        self.path = None if path is None else str(path)


@contextlib.contextmanager
def open_video(path: File, strict: bool = False) -> Iterator[tuple["av.container.InputContainer", "av.VideoStream"]]:
    """Yield (container, its best video stream: no cover picture); errors inside the block become VideoError.

    With `strict` the decoder reports damage that it would otherwise paint over.
    """
    import av

    if not os.path.isfile(path):
        raise VideoError("no such file", path)
    if os.path.getsize(path) == 0:
        raise VideoError("the file is empty", path)
    try:
        # A whole path: FFmpeg takes what is before a colon for a protocol. Titles, in any encoding, are not looked at.
        with av.open(os.path.abspath(path), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                raise VideoError("the file holds no video stream", path)
            if stream.codec_context is None:
                raise VideoError("its codec is not known to this FFmpeg", path)
            if stream.disposition & av.stream.Disposition.attached_pic:
                raise VideoError("the file holds no video stream, only a cover picture", path)
            if container.format.name in PLAYLISTS:
                raise VideoError("is a list of other files, not a video", path)
            if container.format.name.endswith("_pipe"):
                raise VideoError("is a picture, not a video", path)
            stream.thread_count = 1  # DataLoader workers are the parallelism
            # Pictures are cut out of what is coded to the pixel, not to where memory is aligned.
            stream.codec_context.flags |= av.codec.context.Flags.unaligned
            if strict:
                stream.codec_context.options = {"err_detect": "explode"}
            yield container, stream
    except VideoError:
        raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"cannot be decoded: {getattr(error, 'strerror', None) or error}", path) from error
