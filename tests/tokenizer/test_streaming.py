"""Chunk by chunk gives what the whole gives, and needs memory for a chunk only."""

import pytest
import torch

from nbp.config import TokenizerConfig
from nbp.tokenizer.layers import CausalConv3d
from nbp.tokenizer.model import Tokenizer
from nbp.tokenizer.streaming import decode_chunks, encode_chunks

LEVELS = [8, 8, 8, 5, 5, 5]
CONFIGS = {
    "official strides": TokenizerConfig([8, 16, 16, 32], [1, 1, 1, 2], [[1, 2, 2], [2, 2, 2], [2, 2, 2]], LEVELS),
    "time first": TokenizerConfig([8, 16], [1, 1], [[2, 1, 1]], LEVELS),
    "no time stride": TokenizerConfig([8, 8], [1, 1], [[1, 2, 2]], LEVELS),
    "patches": TokenizerConfig([8, 16], [1, 2], [[2, 2, 2]], LEVELS, [4, 4, 4]),
    "patches, split units": TokenizerConfig([8, 16], [1, 2], [[2, 2, 2]], LEVELS, [2, 2, 2], "split"),
    "full units": TokenizerConfig([8, 16], [1, 2], [[2, 1, 1]], LEVELS, [1, 1, 1], "full"),
    "released": TokenizerConfig([8, 16], [1, 2], [[1, 2, 2]], LEVELS, [4, 4, 4], "split"),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def tokenizer(request):
    torch.manual_seed(0)
    return Tokenizer(request.param).eval()


@pytest.fixture
def video():
    return torch.rand(2, 3, 25, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("lengths", [[1, 24], [5, 4, 16], [1] + [4] * 6, [25]])
def test_chunks_equal_the_whole(tokenizer, video, lengths):
    with torch.no_grad():
        _, want = tokenizer.encode(video)
        pixels = tokenizer.decode_from_code_indices(want)
    stride = tokenizer.config.downsample[0]
    lengths = [1, 24] if any((length - (n == 0)) % stride for n, length in enumerate(lengths)) else lengths
    parts = list(encode_chunks(tokenizer, video.split(lengths, dim=2)))
    assert torch.equal(torch.cat(parts, dim=1), want)
    decoded = list(decode_chunks(tokenizer, parts))
    assert [part.shape[2] for part in decoded] == lengths
    torch.testing.assert_close(torch.cat(decoded, dim=2), pixels, rtol=0, atol=1e-5)


def test_bfloat16_is_channels_last_all_the_way(tokenizer, video):
    """In other layouts a CPU copies the input and the result of every convolution."""
    seen = []
    for layer in tokenizer.modules():
        if isinstance(layer, torch.nn.Conv3d) and layer.kernel_size != (1, 1, 1):
            layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    tokenizer.bfloat16()
    with torch.no_grad():
        indices = tokenizer.encode(video.bfloat16())[1]
        tokenizer.decode_from_code_indices(indices)
    list(decode_chunks(tokenizer, encode_chunks(tokenizer, video.bfloat16().split([9, 16], dim=2))))
    convolved = [x for x in seen if x.shape[1] > 1]
    assert len(convolved) > 10
    assert all(x.is_contiguous(memory_format=torch.channels_last_3d) for x in convolved)


def test_two_streams_and_the_whole_do_not_disturb_each_other(tokenizer, video):
    first, second = (encode_chunks(tokenizer, v.split([9, 16], dim=2)) for v in (video, 1 - video))
    pieces = [(next(first), next(second)) for _ in range(2)]
    for number, source in enumerate((video, 1 - video)):
        assert torch.equal(torch.cat([piece[number] for piece in pieces], dim=1), tokenizer.encode(source)[1])
    assert not any(name.endswith("past") for name in tokenizer.state_dict())


def test_what_is_refused(video):
    tokenizer = Tokenizer(CONFIGS["official strides"]).eval()
    with pytest.raises(ValueError, match=r"chunk 0 must have 1 \+ 4k frames, got 4"):
        next(encode_chunks(tokenizer, [video[:, :, :4]]))
    with pytest.raises(ValueError, match="chunk 1 must have 4k frames, got 5"):
        list(encode_chunks(tokenizer, [video[:, :, :1], video[:, :, :5]]))
    for value in (255.0, float("nan")):
        broken = video.clone()
        broken[:, :, 3] = value
        with pytest.raises(ValueError, match=r"video must lie in \[0, 1\]"):
            list(encode_chunks(tokenizer, [broken[:, :, :1], broken[:, :, 1:5]]))
    tokenizer.encoder.conv_in = torch.nn.Conv3d(3, 8, 3, padding=1)
    with pytest.raises(ValueError, match="looks back"):
        next(encode_chunks(tokenizer, [video[:, :, :1]]))


def test_a_layer_keeps_two_frames_at_most(video):
    """The memory of a stream does not grow with what it has seen."""
    from nbp.tokenizer.streaming import _streaming
    for stride, kept in ((1, 2), (2, 1)):
        layer = _streaming(torch.nn.Sequential(CausalConv3d(3, 4, (stride, 1, 1)), ))
        for chunk in video.split([5, 4, 16], dim=2):
            layer(chunk)
            assert layer[0].past.shape[2] == kept and layer[0].past.is_contiguous()
