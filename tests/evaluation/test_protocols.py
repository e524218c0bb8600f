import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from nbp.evaluation.protocols import PROTOCOLS, Protocol, get_protocol, prepare, quantize

# One row a preset, one column a field of Protocol, in its order. MAGVIT (arXiv 2212.05199): 8 bit, resized to 128 or 64
# and then to 224, 4 x 10,000 clips against random training clips of UCF-101, 4 x 50,000 against 6 clips a video of
# K600. TATS (2204.03638): 2048 / 2048, 16 frames, the port's I3D on 8 bit. NBP (2502.07737) and its code: float pixels,
# first 16 of 17 frames, centre clips of UCF-101 train at 8 fps and of K600 val at 25 fps, 64x64; rFVD on all 17 of the
# whole validation list, 8 bit. LARP (2410.21264) and its code: antialiased resizing, 8 bit, training list.
FIELDS = ("name network quantize fit antialias resolution num_frames num_real num_fake repeats real_split real_clips "
          "clips_per_video fps precision").split()
PUBLISHED = """
magvit-ucf    i3d-tf        round squash False 128  16   10000 10000 4 train random None None float32
magvit-k600   i3d-tf        round squash False 64   16   50000 50000 4 val   spaced 6    None float32
tats-2048     i3d-port      floor squash False None 16   2048  2048  1 train random None None float32
nbp-gfvd-ucf  i3d-styleganv none  crop   False None 16   None  10000 1 train centre 1    8.0  float32
nbp-gfvd-k600 i3d-styleganv none  crop   False 64   16   None  50000 1 val   centre 1    25.0 float32
nbp-rfvd      i3d-port      floor squash False None 17   None  None  1 val   centre 1    None float32
larp          i3d-styleganv floor squash True  None 16   None  10000 1 train centre 1    None float32
quickstart    i3d-tf        round squash False None None None  None  1 val   centre 1    None float32
"""


def test_presets_have_the_published_settings():
    assert [field.name for field in dataclasses.fields(Protocol)] == FIELDS
    rows = [line.split() for line in PUBLISHED.strip().splitlines()]
    assert rows == [[str(getattr(protocol, name)) for name in FIELDS] for protocol in PROTOCOLS.values()]
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())


def test_a_changed_field_changes_the_name():
    protocol = get_protocol("nbp-rfvd").replace(num_frames=16)
    assert protocol.name == "nbp-rfvd+frames=16" and protocol.num_frames == 16
    assert get_protocol("nbp-rfvd").replace(frames=16) == protocol
    assert get_protocol("nbp-rfvd+frames=16") == protocol
    assert get_protocol("nbp-rfvd").replace(num_frames=17).name == "nbp-rfvd"
    assert protocol.replace(fit="crop", num_frames=9).name == "nbp-rfvd+frames=9+fit=crop"
    assert protocol.replace(real=10, fake=20).name == "nbp-rfvd+frames=16+real=10+fake=20"


def test_a_printed_name_is_a_protocol():
    changed = get_protocol("tats-2048").replace(num_frames=None, antialias=True, fps=12.5, fit="crop")
    assert changed.name == "tats-2048+frames=null+antialias=True+fps=12.5+fit=crop"
    assert get_protocol(changed.name) == changed
    with pytest.raises(ValueError, match="'frames' is not of the form field=value"):
        get_protocol("tats-2048+frames")
    with pytest.raises(ValueError, match="unknown protocol 'tats'"):
        get_protocol("tats+frames=9")


def test_protocol_from_yaml(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nbase: tats-2048\nnum_frames: 17\n")
    protocol = get_protocol(path)
    assert (protocol.name, protocol.num_frames, protocol.num_real) == ("mine", 17, 2048)
    path.write_text("name: mine\nbase: tats-2048+frames=17\nfit: crop\n")
    assert get_protocol(path).fit == "crop" and get_protocol(path).num_frames == 17
    path.write_text("name: mine\nbase: tats-2048\nframe: 17\n")
    with pytest.raises(ValueError, match="no field 'frame'; did you mean 'frames'"):
        get_protocol(path)
    for name in ("tats-2048", "larp"):
        path.write_text(f"name: {name}\nbase: tats-2048\nnum_frames: 17\n")
        with pytest.raises(ValueError, match=f"name is '{name}', which is a published preset's"):
            get_protocol(path)
    path.write_text("num_frames: 17\n")
    with pytest.raises(ValueError, match="mine.yaml: a protocol file has a `name`, a `base`"):
        get_protocol(path)


@pytest.mark.parametrize("text, message", [
    ("name: mine\nbase: mine.yaml\n", "mine.yaml: its base leads back to itself"),
    ("name: mine\nbase: quickstart\n16: 3\n", "mine.yaml: 16 is not the name of a field"),
    ("name: [\n", "mine.yaml cannot be read as a protocol"),
    ("name: null\nbase: quickstart\n", "mine.yaml: name is None; accepted: a text without"),
    ("name: mine\nbase: quickstart\nframes: 9\nnum_frames: 10\n", "mine.yaml: .* one field num_frames, and frames"),
    ("name: mine\nbase: quickstart\nfps: .nan\n", "mine.yaml: .*fps is nan; accepted: a positive number"),
])
def test_bad_files_are_named(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        get_protocol("mine.yaml")


def test_files_and_values_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="none.yaml cannot be read as a protocol: .*No such file"):
        get_protocol(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match=r"'frames=\[': the value is not valid YAML"):
        get_protocol("quickstart+frames=[")


@pytest.mark.parametrize("change, message", [
    (dict(network="i3d"), "network is 'i3d'; accepted: i3d-tf, i3d-port, i3d-styleganv"),
    (dict(num_frames=0), "num_frames is 0; accepted: a positive whole number"),
    (dict(num_real="all"), "num_real is 'all'"),
    (dict(real_split="test"), "real_split is 'test'; accepted: any, train, val"),
    (dict(real_clips="first"), "real_clips is 'first'; accepted: centre, spaced, random"),
    (dict(fps=0), "fps is 0; accepted: a positive number"),
    (dict(fps=True), "fps is True; accepted: a positive number"),
    (dict(num_frames=True), "num_frames is True; accepted: a positive whole number"),
    (dict(antialias="no"), "antialias is 'no'; accepted: true, false"),
    (dict(antialias=1), "antialias is 1; accepted: true, false"),
])
def test_bad_fields_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        get_protocol("quickstart").replace(**change)


def test_unknown_preset():
    with pytest.raises(ValueError, match="unknown protocol 'nbp-rvfd'.*did you mean 'nbp-rfvd'"):
        get_protocol("nbp-rvfd")


def plain(**changes):
    return Protocol("plain", **(dict(network="i3d-tf", quantize="round", fit="squash", num_frames=None) | changes))


def test_preparation_of_a_flat_clip():
    frames = torch.full((2, 9, 32, 48, 3), 51, dtype=torch.uint8)
    frames[1] = 255
    video = prepare(frames, plain())
    assert video.shape == (2, 3, 9, 224, 224) and video.dtype == torch.float32
    assert torch.allclose(video[0], torch.tensor(-0.6)) and torch.allclose(video[1], torch.tensor(1.0))


def test_uint8_and_float_frames_agree():
    frames = torch.randint(0, 256, (1, 9, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for how in ("floor", "round", "none"):
        assert torch.equal(prepare(frames, plain(quantize=how)), prepare(frames.float() / 255, plain(quantize=how)))


def test_quantization():
    values = torch.tensor([0.0, 0.49, 0.51, 254.6, 255.0]) / 255
    assert (quantize(values, "floor") * 255).round().tolist() == [0, 0, 0, 254, 255]
    assert (quantize(values, "round") * 255).round().tolist() == [0, 0, 1, 255, 255]
    assert quantize(values, "none") is values


def test_crop_takes_the_middle():
    frames = torch.zeros(1, 9, 20, 60, 3, dtype=torch.uint8)
    frames[:, :, :, 20:40] = 255
    assert prepare(frames, plain(fit="crop"))[..., 8:-8].min() > 0.999
    assert prepare(frames, plain())[..., :60].max() < -0.999


def test_resolution_and_frame_count():
    frames = torch.randint(0, 256, (1, 17, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video = prepare(frames, plain(num_frames=16, resolution=8))
    assert video.shape == (1, 3, 16, 224, 224)
    assert video.var() < prepare(frames, plain(num_frames=16)).var()
    with pytest.raises(ValueError, match="clips have 17 frames; protocol plain needs 18"):
        prepare(frames, plain(num_frames=18))


@pytest.mark.parametrize("frames, message", [
    (np.zeros((1, 9, 8, 8, 3), np.int64), "frames are torch.int64; accepted: uint8, or float in"),
    (np.full((1, 9, 8, 8, 3), 255.0), r"float frames run from 255 to 255; accepted: \[0,1\]"),
    (np.full((1, 9, 8, 8, 3), -1.0), r"float frames run from -1 to -1; accepted: \[0,1\]"),
    (np.full((1, 9, 8, 8, 3), np.nan), r"accepted: \[0,1\]"),
    (np.zeros((1, 3, 9, 8, 8), np.uint8), r"accepted: \(B,T,H,W,3\)"),
    (np.zeros((9, 8, 8, 3), np.uint8), r"accepted: \(B,T,H,W,3\)"),
])
def test_wrong_dtype_range_or_shape_is_refused(frames, message):
    with pytest.raises(ValueError, match=message):
        prepare(frames, plain())
