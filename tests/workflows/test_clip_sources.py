import numpy as np
import pytest
import torch

from nbp.config import TokenizerConfig
from nbp.data import clip_set
from nbp.data.annotations import write_lists
from nbp.data.tokens import TokenWriter
from nbp.data.video_io import VideoError, probe, read_frames, write_video
from nbp.evaluation.features import extract_features
from nbp.evaluation.protocols import get_protocol
from nbp.tokenizer.model import Tokenizer
from nbp.workflows.clip_sources import Cut, open_clips


def ramp(count, step=8):
    """Frames that tell their number: frame t is grey t * step."""
    return np.stack([np.full((16, 16, 3), step * t, np.uint8) for t in range(count)])


def shown(frames, step=8):
    """Numbers of the frames of `ramp`, as read back."""
    return (frames.float().mean((1, 2, 3)) / step).round().int().tolist()


def read_all(clips):
    return torch.stack([clips[number] for number in range(len(clips))]).numpy()


def test_arrays(make_frames, tmp_path):
    frames = make_frames(4)
    np.save(tmp_path / "a.npy", frames)
    np.savez(tmp_path / "one.npz", frames)
    np.savez(tmp_path / "named.npz", video=frames, label=np.arange(4))
    clip_set.save(tmp_path / "set", frames, [3, 2, 1, 0])
    opened = [open_clips(tmp_path / name) for name in ("a.npy", "one.npz", "named.npz", "set")]
    for clips in opened:
        assert np.array_equal(read_all(clips), frames)
    assert len({clips.fingerprint for clips in opened}) == 1
    assert [None if clips.labels is None else clips.labels.tolist() for clips in opened] == [
        None, None, [0, 1, 2, 3], [3, 2, 1, 0]]


def test_videos_give_their_middle_frames(make_frames, tmp_path):
    write_video(tmp_path / "sub" / "b.mp4", ramp(21), 10, crf=0)
    write_video(tmp_path / "a.mp4", ramp(21)[::-1], 10, crf=0)
    (tmp_path / "list.txt").write_text("sub/b.mp4\tclass\na.mp4\tclass\n")
    folder, rows = open_clips(tmp_path, Cut(9)), open_clips(tmp_path / "list.txt", Cut(9))
    assert shown(folder[1]) == list(range(6, 15))
    assert torch.equal(rows[0], folder[1]) and torch.equal(rows[1], folder[0])
    assert len(open_clips(tmp_path)[0]) == 21
    assert shown(open_clips(tmp_path, Cut(23))[1]) == [*range(21), 20, 20]
    with pytest.raises(VideoError, match="a.mp4: too short: 21 frames give 21 of 43 clip frames"):
        open_clips(tmp_path, Cut(43))[0]
    with pytest.raises(VideoError, match="a.mp4: has 21 frames, 22 are needed"):
        open_clips(tmp_path, Cut(22, place="first"))[0]


def test_picture_sequences(make_frames, tmp_path):
    from PIL import Image

    frames = make_frames(2, num_frames=3)
    for number, clip in enumerate(frames):
        (tmp_path / f"clip{number}").mkdir()
        for t, frame in enumerate(clip):
            Image.fromarray(frame).save(tmp_path / f"clip{number}" / f"{t:03d}.png")
    assert np.array_equal(read_all(open_clips(tmp_path)), frames)
    with pytest.raises(ValueError, match="clip0 holds 3 pictures, 4 are needed"):
        open_clips(tmp_path, Cut(4))[0]
    before = open_clips(tmp_path).fingerprint
    (tmp_path / "clip1" / "000.png").rename(tmp_path / "clip0" / "003.png")
    assert open_clips(tmp_path).fingerprint != before, "the same pictures, divided otherwise"


def test_numbers_in_names_count(tmp_path):
    from PIL import Image

    for number in (1, 2, 10):
        write_video(tmp_path / "videos" / f"clip{number}.mp4", np.full((3, 16, 16, 3), 8 * number, np.uint8), 10)
        (tmp_path / "pictures" / f"clip{number}").mkdir(parents=True)
        for t in (1, 2, 10):
            picture = Image.new("RGB", (16, 16), (10 * number + t,) * 3)
            picture.save(tmp_path / "pictures" / f"clip{number}" / f"{t}.png")
    assert [shown(clip)[0] for clip in open_clips(tmp_path / "videos")] == [1, 2, 10]
    assert [shown(clip, 1) for clip in open_clips(tmp_path / "pictures")] == [[11, 12, 20], [21, 22, 30],
                                                                             [101, 102, 110]]


def test_nothing_to_read(tmp_path, make_frames):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        open_clips(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no clips.npz, no tokens, no videos .* and no pictures"):
        open_clips(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(ValueError, match="a.zip: accepted are a folder"):
        open_clips(tmp_path / "a.zip")
    (tmp_path / "list.txt").write_text("gone.mp4\t\n")
    with pytest.raises(ValueError, match="1 of 1 files do not exist, the first .*gone.mp4"):
        open_clips(tmp_path / "list.txt")
    np.savez(tmp_path / "two.npz", a=make_frames(1), b=make_frames(1))
    with pytest.raises(ValueError, match="two.npz holds a, b; expected an array `video`"):
        open_clips(tmp_path / "two.npz")


def test_a_corrupt_file_among_good_ones_is_named(make_frames, network, protocol, tmp_path):
    for number, clip in enumerate(make_frames(3)):
        write_video(tmp_path / f"{number}.mp4", clip, 10)
    (tmp_path / "1.mp4").write_bytes(b"not a video")
    with pytest.raises(VideoError, match="1.mp4"):
        extract_features(open_clips(tmp_path), network, protocol)


def test_damage_that_the_decoder_paints_over_is_refused(sample_videos, config, network, protocol, tmp_path):
    folder = tmp_path / "videos" / "val"
    damaged = folder / "2.mp4"
    data = bytearray(sample_videos[2].read_bytes())
    middle = len(data) // 2
    data[middle:middle + 3000] = bytes(byte ^ 0xA5 for byte in data[middle:middle + 3000])
    damaged.write_bytes(data)
    (tmp_path / "videos" / "val.txt").write_text("".join(f"val/{number}.mp4\ta\n" for number in range(3)))
    assert len(read_frames(damaged, range(probe(damaged).num_frames)))   # an ordinary reader notices nothing
    whole = Cut(probe(damaged).num_frames, place="first")
    with pytest.raises(VideoError, match="2.mp4"):
        open_clips(folder, whole)[2]
    config.write_text(config.read_text().replace("num_frames: 5", f"num_frames: {probe(damaged).num_frames}"))
    with pytest.raises(VideoError, match="2.mp4"):
        open_clips(config)[2]


def test_a_corrupt_picture_among_good_ones_is_named(make_frames, network, protocol, tmp_path):
    from PIL import Image

    for number, clip in enumerate(make_frames(2)):
        (tmp_path / str(number)).mkdir()
        for t, frame in enumerate(clip):
            Image.fromarray(frame).save(tmp_path / str(number) / f"{t}.png")
    bad = tmp_path / "1" / "3.png"
    whole = bad.read_bytes()
    for content in (whole[:len(whole) // 2], b"not a picture", whole[:40] + bytes(40) + whole[80:]):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="1/3.png cannot be read as a picture"):
            extract_features(open_clips(tmp_path), network, protocol)
    Image.new("RGB", (8, 8)).save(bad)
    with pytest.raises(ValueError, match=r"1 holds pictures of several sizes: \(8, 8\), \(16, 16\)"):
        extract_features(open_clips(tmp_path), network, protocol)


def test_deep_pictures_and_mixtures_are_refused(make_frames, tmp_path):
    from PIL import Image

    (tmp_path / "a").mkdir()
    for t in range(3):
        Image.fromarray(np.full((8, 8), 300 * t, np.uint16)).save(tmp_path / "a" / f"{t}.png")
    with pytest.raises(ValueError, match="a/0.png is a picture of mode I;16; accepted: 8 bit"):
        open_clips(tmp_path)[0]
    write_video(tmp_path / "preview.mp4", make_frames(1)[0], 8)
    with pytest.raises(ValueError, match=r"holds 1 videos \(preview.mp4\) and 3 pictures .* Keep one kind"):
        open_clips(tmp_path)


def test_corrupt_arrays_are_named(make_frames, tmp_path):
    np.save(tmp_path / "a.npy", make_frames(4))
    np.savez(tmp_path / "stored.npz", video=make_frames(4))
    np.savez_compressed(tmp_path / "packed.npz", video=make_frames(4))
    for name in ("a.npy", "stored.npz", "packed.npz"):
        whole = (tmp_path / name).read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 2:len(whole) // 2 + 40] = bytes(40)
        for content in (whole[:len(whole) // 2], b"PK\x03\x04 nothing", b"", *([damaged] if name != "a.npy" else [])):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=name):
                open_clips(tmp_path / name)


@pytest.mark.parametrize("name, codec, pixels", [
    ("a.mp4", "libx264", "yuv420p"), ("a.avi", "mpeg4", "yuv420p"), ("a.webm", "libvpx-vp9", "yuv420p"),
    ("a.mkv", "libx264", "yuv420p"), ("a.mov", "libx264", "yuv420p"), ("a.gif", "gif", "gray")])
def test_containers(tmp_path, name, codec, pixels):
    import av

    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height = stream.width = 16
        stream.pix_fmt = pixels
        for image in ramp(8, 32):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    assert shown(open_clips(tmp_path)[0], 32) == list(range(8))
    assert shown(open_clips(tmp_path, Cut(4))[0], 32) == [2, 3, 4, 5]


def test_cut_of_a_protocol():
    assert Cut.of(get_protocol("nbp-gfvd-ucf"), real=True) == Cut(16, 8.0, "centre", 1, None)
    assert Cut.of(get_protocol("magvit-ucf"), real=True, seed=3) == Cut(16, None, "random", None, 10_000, 3)
    assert Cut.of(get_protocol("magvit-k600"), real=False) == Cut(16, place="first")
    assert Cut.of(get_protocol("nbp-gfvd-k600"), real=False, seed=3) == Cut(16, place="first")
    assert Cut(16, num_clips=10_000, clips_per_video=None).per_video(9537) == 2
    assert Cut(16, num_clips=10_000, clips_per_video=None).per_video(10) == 4


def test_rate_and_places(tmp_path):
    for name in "ab":
        write_video(tmp_path / f"{name}.mp4", ramp(31), 10, crf=0)
    assert shown(open_clips(tmp_path, Cut(4, fps=5.0))[0]) == [12, 14, 16, 18]
    spaced = open_clips(tmp_path, Cut(4, place="spaced", clips_per_video=3))
    assert [shown(clip)[0] for clip in spaced] == 2 * [0, 14, 27]
    random = open_clips(tmp_path, Cut(4, place="random", clips_per_video=8))
    starts = [shown(clip)[0] for clip in random]
    assert len(starts) == 16 and len(set(starts)) > 4 and starts == [shown(clip)[0] for clip in random]
    other = open_clips(tmp_path, Cut(4, place="random", clips_per_video=8, seed=1))
    assert [shown(clip)[0] for clip in other] != starts and other.fingerprint != random.fingerprint
    assert shown(open_clips(tmp_path, Cut(16, fps=3.3))[0])[-6:] == [30] * 6
    with pytest.raises(VideoError, match=r"a.mp4: has 31 frames, 46 are needed for 16 at 3.3 fps \(the file has 10"):
        open_clips(tmp_path, Cut(16, fps=3.3, place="first"))[0]


def test_the_rate_of_a_protocol_is_that_of_real_files(tmp_path):
    """A generated file is a clip already: 25 fps are asked for, 8 fps are what it was written at."""
    write_video(tmp_path / "a.mp4", ramp(17), 8, crf=0)
    protocol = get_protocol("nbp-gfvd-k600")
    fake = open_clips(tmp_path, Cut.of(protocol, real=False))
    assert shown(fake[0]) == list(range(16)) and fake.rates() == [8.0]
    real = open_clips(tmp_path, Cut.of(protocol.replace(frames=4), real=True))
    with pytest.warns(UserWarning, match="a.mp4 has 8 fps and is read at 25: frames are repeated"):
        assert real.rates() == [25.0]
    assert shown(real[0]) == [8, 8, 8, 8]
    assert shown(open_clips(tmp_path, Cut(fps=4.0))[0]) == list(range(0, 17, 2))


@pytest.fixture
def config(tmp_path):
    """A data config over one training and two validation videos of 21 frames at 10 fps."""
    for name in ("train/0.mp4", "val/0.mp4", "val/1.mp4"):
        write_video(tmp_path / "videos" / name, ramp(21), 10, crf=0)
    write_lists(tmp_path / "videos", [("train/0.mp4", "a")], [("val/0.mp4", "a"), ("val/1.mp4", "a")])
    path = tmp_path / "data.yaml"
    path.write_text(f"name: test\nroot: {tmp_path / 'videos'}\ntrain_list: train.txt\nval_list: val.txt\n"
                    "resolution: 8\nnum_frames: 5\nflip: true\nmax_bad_files: 1\n")
    return path


def test_data_config(config, tmp_path):
    val, train = open_clips(config), open_clips(config, split="train")
    assert (len(val), len(train)) == (2, 1) and val.labels.tolist() == [0, 0]
    assert val[0].shape == (5, 8, 8, 3) and shown(val[0]) == [8, 9, 10, 11, 12]
    assert shown(open_clips(config, Cut(fps=5.0))[0]) == [6, 8, 10, 12, 14]
    spaced = open_clips(config, Cut(place="spaced", clips_per_video=2))
    assert [shown(clip)[0] for clip in spaced] == [0, 16, 0, 16] and len(spaced.labels) == 4
    random = open_clips(config, Cut(place="random", clips_per_video=10))
    starts = [shown(clip)[0] for clip in random]
    assert len(starts) == 20 and len(set(starts)) > 4 and starts == [shown(clip)[0] for clip in random]
    (tmp_path / "videos" / "val" / "1.mp4").write_bytes(b"not a video")
    with pytest.raises(VideoError, match="1.mp4"):   # max_bad_files does not hold for scores
        open_clips(config)[1]


@pytest.mark.parametrize("cut", [Cut(5), Cut(5, fps=4.0), Cut(5, place="spaced", clips_per_video=3),
                                 Cut(5, place="random", clips_per_video=4),
                                 Cut(5, place="random", clips_per_video=4, seed=2), Cut(40)], ids=str)
def test_a_folder_a_list_and_a_data_config_give_the_same_clips(config, tmp_path, cut):
    """Also of files that are shorter than a clip, whose last frame is held."""
    for number in range(2):
        write_video(tmp_path / "videos" / f"val/{number}.mp4", ramp(24 + number, 5), 10, crf=0)
    text = config.read_text().replace("resolution: 8", "resolution: 16")
    config.write_text(text.replace("num_frames: 5", f"num_frames: {cut.num_frames}"))
    (tmp_path / "list.txt").write_text("videos/val/0.mp4\nvideos/val/1.mp4\n")
    sources = tmp_path / "videos/val", tmp_path / "list.txt", config
    folder, rows, data = (open_clips(source, cut) for source in sources)
    assert len(folder) == len(rows) == len(data)
    for number in range(len(folder)):
        assert torch.equal(folder[number], rows[number]) and torch.equal(folder[number], data[number]), number


def test_a_data_config_is_cropped_at_its_centre_wherever_clips_begin(config, tmp_path):
    frames = np.zeros((21, 16, 48, 3), np.uint8)
    frames[:, :, 16:32] = 200
    write_video(tmp_path / "videos" / "val" / "0.mp4", frames, 10, crf=0)
    for place in ("centre", "spaced", "random"):
        clips = open_clips(config, Cut(place=place, clips_per_video=4))
        assert all(int(clips[number].min()) > 150 for number in range(len(clips) // 2)), place


def test_content_is_the_same_however_it_is_cut(config, tmp_path):
    val = tmp_path / "videos" / "val"
    for number, name in enumerate(("train/0", "val/1")):
        write_video(tmp_path / "videos" / f"{name}.mp4", ramp(21 + number), 10)
    (tmp_path / "list.txt").write_text("videos/val/1.mp4\t\nvideos/val/0.mp4\t\n")
    opened = [open_clips(val, Cut(5)), open_clips(val, Cut(5, place="random", clips_per_video=3)),
              open_clips(tmp_path / "list.txt", Cut(5, fps=5.0)), open_clips(config), open_clips(val).subset([0])]
    assert len({clips.content for clips in opened}) == 1 and len({clips.fingerprint for clips in opened}) == 5
    assert open_clips(config, split="train").content != opened[0].content


def test_token_cache(tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig([8, 8], [1, 1], [[2, 2, 2]], [4, 4])).eval()
    indices = np.random.default_rng(0).integers(0, 16, (3, 2, 4, 4))
    from nbp.hub.models import model_hash

    meta = {"grid": [2, 4, 4], "num_codes": 16, "tokenizer_hash": model_hash(tokenizer), "data": {}, "classes": ["a"]}
    with TokenWriter(tmp_path / "val", meta) as writer:
        writer.add([0, 1, 2], indices, [0, 0, -1], ["x", "y", "z"])
    clips = open_clips(tmp_path / "val", tokenizer=tokenizer)
    expected = tokenizer.decode_from_code_indices(torch.from_numpy(indices)).clamp(0, 1).permute(0, 2, 3, 4, 1)
    assert clips[0].dtype == torch.float32 and not clips.forkable and clips.labels.tolist() == [0, 0, -1]
    assert np.allclose(read_all(clips), expected.detach().numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="val is a token cache; --tokenizer names the model"):
        open_clips(tmp_path / "val")
    other = Tokenizer(TokenizerConfig([8, 8], [1, 1], [[2, 2, 2]], [4, 4])).eval()
    with pytest.raises(ValueError, match="holds tokens of another tokenizer"):
        open_clips(tmp_path / "val", tokenizer=other)
