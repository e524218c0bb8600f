import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from nbp.evaluation import quality
from nbp.evaluation.lpips import LPIPS

VGG_CONVS = (2, 2, 3, 3, 3)


@pytest.fixture(scope="module", params=["vgg", "alex"])
def model(request, lpips_path):
    return LPIPS.from_file(lpips_path(request.param), request.param)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    target = F.interpolate(torch.rand(2, 3, 8, 8, generator=generator), 64, mode="bilinear")
    return (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


def test_convolutions_in_bfloat16_need_no_autocast(lpips_path, images):
    """Under DeepSpeed there is none."""
    model = LPIPS.from_file(lpips_path("alex"), "alex")
    want = model(*images)
    assert torch.allclose(model.bfloat16()(*images), want, rtol=0.05)


def plain_vgg_distance(state, images, target):
    """The definition, written out: ImageNet normalisation, features before each pooling, unit length, heads."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = torch.cat([images, target])
    x = (x - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    distance = 0
    for stage, num_convs in enumerate(VGG_CONVS):
        x = F.max_pool2d(x, 2) if stage else x
        for conv in range(num_convs):
            key = f"stages.{stage}.{2 * conv + (stage > 0)}"
            x = F.relu(F.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], padding=1))
        a, b = (x / x.norm(dim=1, keepdim=True)).chunk(2)
        distance = distance + ((a - b) ** 2 * state[f"heads.{stage}"].view(-1, 1, 1)).sum(1).mean((1, 2))
    return distance


def test_follows_the_definition(lpips_path, images):
    path = lpips_path("vgg")
    got = LPIPS.from_file(path, "vgg")(*images)
    # LPIPS rounds the ImageNet constants to three digits.
    assert torch.allclose(got, plain_vgg_distance(load_file(path), *images), rtol=2e-2)


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_heads_are_those_of_torchmetrics(net, lpips_path):
    import torchmetrics.functional.image as functional

    heads = torch.load(f"{functional.__path__[0]}/lpips_models/{net}.pth", map_location="cpu", weights_only=True)
    state = load_file(lpips_path(net))
    for k in range(5):
        assert torch.equal(state[f"heads.{k}"], heads[f"lin{k}.model.1.weight"].flatten())


def test_known_cases(model, images):
    noisy, target = images
    assert model(target, target).tolist() == [0, 0]
    weak, strong = model(target + (noisy - target) / 4, target), model(noisy, target)
    assert (0 < weak).all() and (weak < strong).all()
    assert torch.allclose(strong, model(target, noisy))
    assert torch.allclose(strong, torch.cat([model(a[None], b[None]) for a, b in zip(noisy, target)]), rtol=1e-4)


def test_is_a_loss(model, images):
    noisy, target = images[0].requires_grad_(), images[1]
    model(noisy, target).mean().backward()
    assert torch.isfinite(noisy.grad).all() and noisy.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in model.parameters())
    black = torch.zeros(1, 3, 64, 64, requires_grad=True)
    model(black, torch.zeros(1, 3, 64, 64)).sum().backward()
    assert torch.isfinite(black.grad).all()


def test_video_counts_every_frame(model, images):
    noisy, target = (torch.stack([x, x.flip(3), x], 2) for x in images)    # (B,C,T,H,W)
    noisy[:, :, 2] = target[:, :, 2]
    got = quality.lpips(model, noisy, target, batch_size=4)
    expected = (model(noisy[:, :, 0], target[:, :, 0]) + model(noisy[:, :, 1], target[:, :, 1])) / 3
    assert torch.allclose(got, expected, rtol=1e-4)


def test_bad_input_is_refused(model, images, tmp_path):
    noisy, target = images
    with pytest.raises(ValueError, match="differ in shape"):
        model(noisy[:1], target)
    with pytest.raises(ValueError, match="accepted: \\(B,3,H,W\\)"):
        model(noisy[:, :, :8, :8], target[:, :, :8, :8])
    with pytest.raises(ValueError, match="divide uint8 by 255"):
        model(noisy.byte(), target.byte())
    with pytest.raises(ValueError, match="net is 'resnet'; accepted: 'vgg', 'alex'"):
        LPIPS("resnet")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors does not hold the weights"):
        LPIPS.from_file(tmp_path / "other.safetensors")
