"""Files that were cut or put together without coding them again, and clocks that cannot be taken at their word."""

import av
import numpy as np
import pytest
from files import DROPPED, TIMES, Pipe, make, reference, to_pipe
from videos import number_of

from nbp.data.video_io import VideoError, check_video, probe, read_frames
from nbp.data.video_packets import packets_of, pictures_of

OPEN_GOPS = {"x264-params": "open-gop=1:keyint=20:bframes=3:scenecut=0"}


def copy_packets(source, out, length, shift):
    """Copy so many packets from the second key frame on, as `ffmpeg -c copy` does."""
    with av.open(str(source)) as old, av.open(str(out), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.dts is not None]
        key = [number for number, packet in enumerate(packets) if packet.is_keyframe][1]
        start = min(packet.pts for packet in packets[key:key + length])
        for packet in packets[key:key + length]:
            packet.pts, packet.dts, packet.stream = packet.pts - start + shift, packet.dts - start + shift, stream
            new.mux(packet)


def numbers(path):
    """Numbers in the frames of a file, which any way of asking for them gives, and --verify with it."""
    info = check_video(path)
    frames = read_frames(path, range(info.num_frames))
    for index in [*range(0, info.num_frames, 6), info.num_frames - 1]:
        assert np.array_equal(read_frames(path, [index])[0], frames[index]), index
    with pytest.raises(VideoError, match=f"ends before frame {info.num_frames}"):
        read_frames(path, [info.num_frames])
    return [number_of(frame) for frame in frames]


def held(shown):
    """What is on screen from the first to the last of the frames that a file holds."""
    return [max(number for number in shown if number <= index) for index in range(min(shown), max(shown) + 1)]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("options", [{"g": "20", "bf": "3"}, OPEN_GOPS], ids=["closed", "open"])
@pytest.mark.parametrize("length", [14, 15, 18])
def test_a_cut_among_b_frames_leaves_gaps_at_the_end_and_pictures_without_what_they_refer_to(
        tmp_path, suffix, options, length):
    make(tmp_path / "whole.mp4", codec_options=options)
    copy_packets(tmp_path / "whole.mp4", tmp_path / f"cut.{suffix}", length, shift=4)
    with av.open(tmp_path / f"cut.{suffix}") as container:
        shown = [number_of(frame.to_ndarray(format="rgb24")) for frame in pictures_of(container.demux(video=0))]
    assert numbers(tmp_path / f"cut.{suffix}") == held(shown)


@pytest.mark.parametrize("suffix, codec", [("ts", "libx264"), ("ts", "mpeg2video"), ("mpg", None), ("vob", None)])
@pytest.mark.parametrize("moved_s", [0, 5000])
def test_a_clock_that_starts_anew_or_jumps_goes_on(tmp_path, suffix, codec, moved_s):
    if moved_s and suffix != "ts":
        pytest.skip("program streams cannot start so late")
    for name, times, shift in (("a", TIMES[:30], 0), ("b", TIMES[:40], 1000 * moved_s)):
        make(tmp_path / f"{name}.{suffix}", times=times, codec=codec, codec_options={"g": "12", "bf": "0"},
             shift_ms=shift)
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab"))
    assert probe(joined).fps == 25 and numbers(joined) == [*range(30), *range(40)]


def test_the_clock_of_a_broadcast_runs_over(tmp_path):
    make(tmp_path / "over.ts", shift_ms=round((2 ** 33 / 90000 - 1.2 - 1.4) * 1000))
    assert numbers(tmp_path / "over.ts") == list(range(60))


def test_a_broadcast_that_begins_among_frames_begins_with_its_first_whole_one(tmp_path):
    make(tmp_path / "whole.ts", codec_options={"g": "20", "bf": "2"})
    content = (tmp_path / "whole.ts").read_bytes()
    (tmp_path / "late.ts").write_bytes(content[188 * 20:])
    shown = numbers(tmp_path / "late.ts")
    assert 0 < shown[0] <= 20 and shown == list(range(shown[0], 60))
    make(tmp_path / "one.ts", codec_options={"g": "200", "bf": "2"})
    (tmp_path / "none.ts").write_bytes((tmp_path / "one.ts").read_bytes()[188 * 20:])
    for run in (probe, check_video):
        with pytest.raises(VideoError, match="none.ts: no picture in it can be decoded"):
            run(tmp_path / "none.ts")


@pytest.mark.parametrize("delay", [0, 1])
def test_gif_pictures_without_a_time_are_shown_as_browsers_show_them(tmp_path, delay):
    make(tmp_path / "a.gif", times=TIMES[:20])
    content = (tmp_path / "a.gif").read_bytes()
    assert content.count(b"\x21\xf9\x04") == 20
    parts = content.split(b"\x21\xf9\x04")
    quick = [part[:1] + bytes([delay, 0]) + part[3:] for part in parts[1:]]
    (tmp_path / "a.gif").write_bytes(b"\x21\xf9\x04".join([parts[0], *quick]))
    assert probe(tmp_path / "a.gif").fps == 10 and numbers(tmp_path / "a.gif") == list(range(20))


def test_an_avi_written_to_a_pipe_states_no_length(tmp_path):
    to_pipe(tmp_path / "a.avi")
    assert numbers(tmp_path / "a.avi") == list(range(60))


@pytest.mark.parametrize("times", [TIMES, DROPPED, TIMES[np.arange(60) % 3 != 1]], ids=["whole", "dropped", "third"])
@pytest.mark.parametrize("codec, options", [
    ("libxvid", {"bf": "2"}), ("mpeg4", {"bf": "2"}), ("libx264", {"bf": "3"}), ("libx264", {"bf": "0"})])
def test_avi_with_frames_out_of_order(tmp_path, times, codec, options):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    make(tmp_path / "a.avi", times=times, codec=codec, codec_options={"g": "12", **options})
    shown = numbers(tmp_path / "a.avi")
    if codec == "libx264":   # FFmpeg guesses its delay; the encoder wrote what is right
        assert shown == [int(times[times <= 40 * index].max()) // 40 for index in range(60)]
    else:
        expected, frames = reference(tmp_path / "a.avi", 25), read_frames(tmp_path / "a.avi", range(50))
        assert np.array_equal(frames, expected[:50])


@pytest.mark.parametrize("depth", ["0", "2"])
@pytest.mark.parametrize("suffix", ["m1v", "m2v"])
def test_bare_streams_hold_a_frame_for_each_picture(tmp_path, suffix, depth):
    """FFmpeg's guess of the first time stamp of MPEG-1 is one picture early."""
    make(tmp_path / f"a.{suffix}", codec_options={"g": "12", "bf": depth})
    assert numbers(tmp_path / f"a.{suffix}") == list(range(60))


@pytest.mark.parametrize("suffix, how", [
    ("mpg", {"codec_options": {"g": "5", "bf": "2"}, "sound_s": 3}), ("ts", {"codec": "libx264"}),
    ("ts", {"codec": "mpeg4", "codec_options": {"g": "250", "bf": "2"}})])
def test_streams_without_an_index_give_the_same_frames_one_by_one_and_by_both_readers(tmp_path, suffix, how):
    """Behind a seek FFmpeg guesses times in program streams, and MPEG-4 decodes what lacks its key frame."""
    pytest.importorskip("decord")
    path = tmp_path / f"a.{suffix}"
    make(path, **how)
    frames = read_frames(path, range(60))
    assert [number_of(frame) for frame in frames] == list(range(60))
    assert all(np.array_equal(read_frames(path, [index])[0], frames[index]) for index in range(17, 60))
    assert np.array_equal(read_frames(path, range(60), "decord"), frames)


def test_a_join_between_frames_leaves_the_rate(tmp_path):
    """The sound of the second part moves its start by half a frame."""
    for name, shift, sound in (("a", 0, 0), ("b", 800, 1)):
        make(tmp_path / f"{name}.ts", times=TIMES[:20], codec_options={"g": "12", "bf": "0"}, shift_ms=shift,
             sound_s=sound)
    (tmp_path / "ab.ts").write_bytes(b"".join((tmp_path / f"{name}.ts").read_bytes() for name in "ab"))
    assert probe(tmp_path / "ab.ts").fps == 25 and sorted({*numbers(tmp_path / "ab.ts")}) == list(range(20))


def test_streams_that_begin_late_are_no_error():
    class Container:
        def demux(self, stream):
            yield stream
            raise IndexError("list index out of range")   # as PyAV at the end of a broadcast

    assert list(packets_of(Container(), "packet")) == ["packet"]


def test_a_pipe_is_no_seekable_file(tmp_path):
    with Pipe(tmp_path / "x") as pipe:
        assert not pipe.seekable()
