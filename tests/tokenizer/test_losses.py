"""Loss terms against values worked out by hand, and the detached two-player step."""

import math

import pytest
import torch
from torch.func import functional_call

from nbp.config import DiscriminatorConfig
from nbp.tokenizer import losses
from nbp.tokenizer.discriminator import Discriminator


def test_reconstruction_loss():
    x, y = torch.zeros(1, 3, 1, 2, 2), torch.full((1, 3, 1, 2, 2), 0.5)
    assert losses.reconstruction_loss(x, y, l1=2.0, l2=4.0).item() == pytest.approx(2 * 0.5 + 4 * 0.25)


def test_hinge_and_non_saturating_losses():
    real, fake = [torch.tensor([[2.0, 0.5]])], [torch.tensor([[-3.0, 0.5]])]
    assert losses.discriminator_loss(real, fake, "hinge").item() == pytest.approx(0.25 + 0.75)
    assert losses.adversarial_loss(fake, "hinge").item() == pytest.approx(1.25)
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    assert losses.discriminator_loss(real, fake, "non_saturating").item() == pytest.approx(
        (softplus(-2) + softplus(-.5)) / 2 + (softplus(-3) + softplus(.5)) / 2, rel=1e-6)
    assert losses.adversarial_loss(fake, "non_saturating").item() == pytest.approx(
        (softplus(3) + softplus(-.5)) / 2, rel=1e-6)


def test_lecam_is_zero_inside_the_averages_and_quadratic_outside():
    one = [torch.ones(1, 4)]
    assert losses.lecam_loss(one, one, torch.tensor(1.0), torch.tensor(1.0)).item() == 0
    assert losses.lecam_loss(one, one, torch.tensor(3.0), torch.tensor(-1.0)).item() == pytest.approx(4 + 4)
    far = [torch.tensor([[20.0, -20.0]])]       # whose mean is that of the averages
    assert losses.lecam_loss(far, far, torch.tensor(0.0), torch.tensor(0.0)).item() == pytest.approx(200 + 200)


def test_gradient_penalty_of_a_linear_critic_is_its_squared_weight():
    def critic(video):
        return [(3 * video).sum((1, 2, 3, 4))[:, None]], []

    assert losses.gradient_penalty(critic, torch.rand(2, 3, 1, 2, 2)).item() == pytest.approx(9 * 12)


@pytest.mark.parametrize("step, expected", [(0, 0), (9, 0), (10, 0.25), (12, 0.75), (13, 1), (99, 1)])
def test_adversarial_ramp(step, expected):
    assert losses.adversarial_ramp(step, 10, 4) == expected


@pytest.mark.parametrize("video, frame", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("num_frames", [1, 5, 17])
def test_each_critic_judges_clips_of_any_length(video, frame, num_frames):
    critic = Discriminator(DiscriminatorConfig(video=video, frame=frame, width=8, num_layers=2))
    logits, features = critic(torch.rand(2, 3, num_frames, 32, 32))
    assert len(logits) == video + frame and len(features) == 2 * (video + frame)
    assert all(x.ndim == 2 and len(x) == 2 for x in logits)


def test_one_backward_of_the_sum_gives_each_side_its_own_gradient():
    torch.manual_seed(0)
    critic = Discriminator(DiscriminatorConfig(width=8, num_layers=2))
    video, fake = torch.rand(2, 3, 5, 16, 16), torch.rand(2, 3, 5, 16, 16, requires_grad=True)

    def sides():
        frozen = {name: p.detach() for name, p in critic.named_parameters()}
        generator = losses.adversarial_loss(functional_call(critic, frozen, (fake,))[0], "hinge")
        return generator, losses.discriminator_loss(critic(video)[0], critic(fake.detach())[0], "hinge")

    weights = list(critic.parameters())
    together = torch.autograd.grad(sum(sides()), [fake, *weights])
    apart = torch.autograd.grad(sides()[0], [fake]) + torch.autograd.grad(sides()[1], weights)
    for one, other in zip(together, apart):
        torch.testing.assert_close(one, other)


def test_even_use_is_zero_at_independent_unit_latents_and_grows_with_saturation():
    latents = torch.randn(4, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    assert losses.even_use_loss(latents) < 1e-3
    saturated = latents.clone()
    saturated[:, 1] = 4.0
    assert losses.even_use_loss(saturated) > 5
    twice = latents.clone()
    twice[:, 1] = latents[:, 0]
    assert losses.even_use_loss(twice) == pytest.approx(2 / 3, rel=0.05)
