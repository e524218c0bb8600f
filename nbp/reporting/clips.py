"""Clips as moving pictures inside a page and as contact sheets with titles.

Legend: T frames, H W pixels; frames are uint8 (T,H,W,3).
"""

import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nbp.data.sheet import contact_sheet, write_picture
from nbp.data.video_io import write_video

SCALE, MAX_ZOOM = 2, 3
SHEET_FRAMES = 6
GIVEN_COLOUR = (64, 130, 246)


def side_by_side(clips: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Join clips of one size left to right, mid-grey between them: frames (T,H,W',3)."""
    bar = np.full((*clips[0].shape[:2], gap, 3), 128, np.uint8)
    parts = [part for clip in clips for part in (clip, bar)][:-1]
    return np.concatenate(parts, axis=2)


def mark_given(clip: np.ndarray, num_given: int, border: int = 2) -> np.ndarray:
    """The clip in a frame that is blue while its frames were given and dark while they are predicted."""
    padded = np.pad(clip, ((0, 0), (border, border), (border, border), (0, 0)), constant_values=32)
    edge = np.ones(padded.shape[1:3], bool)
    edge[border:-border, border:-border] = False
    padded[:num_given, edge] = GIVEN_COLOUR
    return padded


def moving(frames: np.ndarray, fps: float) -> tuple[str, int]:
    """A clip for a page: (data URI of an h264 file, widest display in CSS pixels). Each pixel is coded as SCALE x
    SCALE, so that colour keeps its resolution."""
    width = MAX_ZOOM * frames.shape[2]
    frames = frames.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, frames, fps, crf=20)
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode(), width


def write_sheet(path: str | Path, rows: Sequence[tuple[str, np.ndarray]]) -> None:
    """Write a contact sheet: one row for each (title, frames), SHEET_FRAMES frames spread over the clip."""
    titles, clips = zip(*rows)
    write_picture(path, contact_sheet(clips, SHEET_FRAMES, titles=titles))
