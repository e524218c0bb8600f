"""Weights that are sums over a code's digits: what is added, that nothing changes at the start, and how it leaves."""

import dataclasses

import pytest
import torch

from nbp.config import GeneratorConfig
from nbp.generator.levels import SharedByLevel
from nbp.generator.model import Generator
from nbp.tokenizer.fsq import FSQ

LEVELS = [3, 4]


def config(**more):
    return GeneratorConfig(**{**dict(
        num_layers=1, num_heads=2, width=16, num_codes=12, grid=[2, 2, 2], block_shape=[1, 1, 2], condition="label",
        start="hybrid", num_condition_ids=2, condition_len=1, max_seq_len=16, dropout=0.0, code_levels=LEVELS), **more})


@pytest.fixture
def trained():
    """A generator whose shared parts are no longer zero."""
    torch.manual_seed(0)
    generator = Generator(config()).eval()
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("parts"):
                parameter.normal_()
    return generator


@pytest.mark.parametrize("first", [0, 5])
def test_each_code_gets_the_parts_of_its_digits(first):
    shared = SharedByLevel(LEVELS, first, rows=20, width=1)
    with torch.no_grad():
        shared.parts.copy_(torch.tensor([[1.0], [2], [4], [10], [20], [40], [80]]))
    found = shared(torch.zeros(20, 1))[:, 0]
    digits = ((FSQ(LEVELS).indices_to_codes(torch.arange(12)[None, None, None])[0, :, 0, 0].T
               * torch.tensor([1.0, 2.0])).round().long() + torch.tensor([1, 2]))      # (12, 2)
    for code, (one, two) in enumerate(digits.tolist()):
        assert found[first + code] == [1, 2, 4][one] + [10, 20, 40, 80][two]
    assert not found[:first].any() and not found[first + 12:].any()


def test_a_new_model_is_what_it_is_without():
    models = []
    for levels in (LEVELS, None):
        torch.manual_seed(1)
        models.append(Generator(config(code_levels=levels)).eval())
    codes, labels = torch.randint(12, (3, 2, 2, 2)), torch.tensor([0, 1, 0])
    torch.testing.assert_close(models[0](codes, labels), models[1](codes, labels))


def test_every_part_learns(trained):
    trained.loss(torch.arange(12).repeat(4)[:48].view(6, 2, 2, 2), torch.zeros(6, dtype=torch.long)).backward()
    for name, parameter in trained.named_parameters():
        if name.endswith("parts"):
            assert (parameter.grad.abs().sum(1) > 0).all(), name


def test_it_is_saved_and_sampled_as_plain_weights(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    plain = Generator.from_pretrained(tmp_path)
    assert plain.config == dataclasses.replace(trained.config, code_levels=None)
    codes, labels = torch.randint(12, (3, 2, 2, 2)), torch.tensor([0, 1, 0])
    with torch.no_grad():
        torch.testing.assert_close(plain(codes, labels), trained(codes, labels))
        drawn = [model.generate(labels, generator=[torch.Generator().manual_seed(n) for n in range(3)])
                 for model in (plain, trained)]
    assert torch.equal(*drawn)
    assert not any("parametrizations" in name for name in plain.state_dict())


def test_a_training_checkpoint_becomes_plain_weights(trained, tmp_path):
    from nbp.hub.run_checkpoints import StoredModel
    from nbp.workflows.converting import _write_native

    _write_native(tmp_path, StoredModel("generator", trained.config, trained.state_dict()), "a checkpoint")
    plain = Generator.from_pretrained(tmp_path)
    torch.testing.assert_close(plain.head.weight, trained.head.weight)


def test_levels_of_another_codebook_are_refused():
    with pytest.raises(ValueError, match=r"code_levels.*num_codes=12"):
        config(code_levels=[3, 5]).check()
