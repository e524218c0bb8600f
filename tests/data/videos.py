"""Videos made on the spot: each frame carries its own number as a row of black and white squares."""

import os
from fractions import Fraction

import av
import numpy as np


def numbered(count, height=48, width=80):
    """uint8 (count, height, width, 3): smooth noise that scrolls, with the frame number as 8 squares on top."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 4, width // 8 + 4, 3)).astype(np.uint8)
    noise = noise.repeat(8, 0).repeat(8, 1)
    frames = np.stack([noise[t % 24:t % 24 + height, t % 16:t % 16 + width] for t in range(count)])
    for t in range(count):
        for bit in range(8):
            frames[t, :8, bit * 8:bit * 8 + 8] = 255 * (t >> bit & 1)
    return frames


def number_of(frame):
    """The number written into a frame of `numbered`."""
    return sum(int(frame[2:6, bit * 8 + 2:bit * 8 + 6].mean() > 127) << bit for bit in range(8))


def encode(path, frames, codec, fps, options=None, times_ms=None):
    """Write a video with any codec FFmpeg has; `times_ms` gives frames their own time stamps."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = int(times_ms[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def die_on_three(job):
    """Job of a process pool, here because spawned processes import its module: 3 kills the process."""
    if job == 3:
        os._exit(1)
    return job * 10
