"""Contact sheets."""

import numpy as np
import pytest
from PIL import Image

from nbp.data.sheet import contact_sheet, write_picture


def clips(count, length=9, height=8, width=12):
    """Clip n's frame t is grey 10 n + t."""
    return np.stack([np.stack([np.full((height, width, 3), 10 * n + t, np.uint8) for t in range(length)])
                     for n in range(count)])


def test_strips_in_columns_show_frames_spread_over_the_clip():
    sheet = contact_sheet(clips(3), num_frames=3, columns=2)
    assert sheet.shape == (16, 72, 3) and sheet.dtype == np.uint8
    assert sheet[::8, ::12, 0].tolist() == [[0, 4, 8, 10, 14, 18], [20, 24, 28, 255, 255, 255]]


def test_a_short_clip_shows_every_frame_once():
    assert contact_sheet(clips(1, length=2), num_frames=5)[0, ::12, 0].tolist() == [0, 1]
    mixed = contact_sheet([clips(1, 5)[0], clips(1, 2)[0]], num_frames=5)
    assert mixed[::8, ::12, 0].tolist() == [[0, 1, 2, 3, 4], [0, 1, 255, 255, 255]]


def test_titles_stand_left_of_the_strips(tmp_path):
    sheet = contact_sheet(list(clips(2)), num_frames=2, titles=["real", "made"])
    assert sheet.shape == (20, 150 + 2 * 14, 3)
    assert sheet[:8, :150].min() < 128 and sheet[10:18, :150].min() < 128, "both have letters"
    assert sheet[0, 150, 0] == 0 and sheet[0, 150 + 12, 0] == 255 and sheet[10, 150 + 14, 0] == 18
    write_picture(tmp_path / "a.png", sheet)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), sheet)
    with pytest.raises(IndexError):
        contact_sheet([])
