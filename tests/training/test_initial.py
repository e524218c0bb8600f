"""Runs that start from existing weights: native folders, official files, and models that do not fit."""

import dataclasses
import shutil

import pytest
import torch

from nbp import train
from nbp.config import GeneratorConfig, load_run
from nbp.generator.model import Generator
from nbp.tokenizer.model import Tokenizer
from nbp.training import generator as generator_builder
from nbp.training import tokenizer as tokenizer_builder
from nbp.training.metrics_log import read_metrics
from nbp.workflows import converting

GENERATOR, TOKENIZER = "tests/fixtures/runs/generator.yaml", "tests/fixtures/runs/tokenizer.yaml"
PLAIN = ["model.condition=none", "model.condition_len=0", "model.num_condition_ids=0", "model.start=plain",
         "model.begin_token=false"]


def equal(model, other):
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_tokenizer_starts_from_a_model_folder_with_its_average(finished, load_tokenizer_run):
    source = Tokenizer.from_pretrained(finished / "model")
    module = tokenizer_builder.build(load_tokenizer_run(f"init_from={finished / 'model'}"))[0]
    assert equal(module.model, source) and equal(module.ema, source)
    assert all(p.requires_grad for p in module.model.parameters())


def test_a_tuned_tokenizer_begins_where_the_other_ended(finished, tokenizer_run, tmp_path):
    """One step at learning rate 0: the validation scores are those of the weights it started from."""
    still = ["optim.lr=0.0", "loss.adversarial=0", "trainer.val_every_steps=1",
             "curriculum=[{steps: 1, num_frames: 5, batch_size: 2}]"]
    train.main([TOKENIZER, *tokenizer_run(tmp_path, *still, f"init_from={finished / 'model'}")])
    [found] = read_metrics(tmp_path)["val/psnr"].values()
    assert found == pytest.approx([*read_metrics(finished)["val/psnr"].values()][-1], rel=1e-5)


def test_a_resumed_run_needs_no_longer_what_it_began_with(finished, tokenizer_run, tmp_path):
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(finished / "model", source)
    more = [f"init_from={source}", "trainer.val_samples=0"]
    train.main([TOKENIZER, *tokenizer_run(run, *more, "curriculum=[{steps: 2, num_frames: 5, batch_size: 2}]")])
    shutil.rmtree(source)
    longer = ["curriculum=[{steps: 3, num_frames: 5, batch_size: 2}]", "trainer.accept_changes=true"]
    train.main([TOKENIZER, *tokenizer_run(run, *more, *longer)])
    assert sorted(read_metrics(run)["train/loss"]) == [0, 1, 2]
    with pytest.raises(ValueError, match="source"):
        train.main([TOKENIZER, *tokenizer_run(run, *more, *longer, "trainer.resume=never")])


@pytest.mark.parametrize("optimizer", [(), ("optim.optimizer=muon", "optim.muon_lr=1e-2")])
def test_a_decoder_tuned_alone_keeps_every_token(finished, tokenizer_run, load_tokenizer_run, tmp_path, optimizer):
    source = Tokenizer.from_pretrained(finished / "model")
    more = [f"init_from={finished / 'model'}", "freeze_encoder=true", *optimizer]
    train.main([TOKENIZER, *tokenizer_run(tmp_path / "tuned", *more)])
    tuned = Tokenizer.from_pretrained(tmp_path / "tuned" / "model")
    assert equal(tuned.encoder, source.encoder) and not equal(tuned.decoder, source.decoder)
    module = tokenizer_builder.build(load_tokenizer_run(*more))[0]
    optimized = {id(p) for group in module.parameter_groups() for p in group["params"]}
    assert optimized == {id(p) for part in (module.model.decoder, module.discriminator) for p in part.parameters()}


@pytest.mark.parametrize("more", [(), ("init_from=w.pt", "loss.even_use=0.1")])
def test_an_encoder_is_frozen_only_with_weights_and_no_loss_of_its_own(load_tokenizer_run, more):
    with pytest.raises(ValueError, match="freeze_encoder=true needs init_from"):
        load_tokenizer_run("freeze_encoder=true", *more)


def test_a_generator_starts_from_an_official_file(generator_run, tmp_path):
    official = GeneratorConfig(2, 2, 32, 125, [5, 4, 4], [1, 1, 4], "none", "plain", begin_token=False, full_head=True,
                               clamp_samples=True, multinomial=True, pad_visibility="decoding", condition_dropout=0.0,
                               max_seq_len=512)
    source = Generator(official)
    source.save_pretrained(tmp_path / "native")
    converting.native_to_official(tmp_path / "native", tmp_path / "official.ckpt")
    overrides = generator_run(tmp_path / "run", *PLAIN, f"init_from={tmp_path / 'official.ckpt'}")
    module = generator_builder.build(load_run(GENERATOR, [*overrides, "model.full_head=true"]))[0]
    assert equal(module.model, source)


def test_a_plain_generator_may_take_another_block(generator_run, tmp_path):
    source = Generator(load_run(GENERATOR, generator_run(tmp_path, *PLAIN)).model)
    source.save_pretrained(tmp_path / "native")
    run = load_run(GENERATOR, generator_run(tmp_path, *PLAIN, "model.block_shape=[1,1,2]",
                                            f"init_from={tmp_path / 'native'}"))
    assert equal(generator_builder.build(run)[0].model, source)


@pytest.mark.parametrize("shape, given", [([1, 1, 4], 32), ([1, 1, 5], 35), ([1, 1, 40], 40), ([1, 2, 2], 32),
                                          ([5, 2, 2], 80), ([1, 1, 20], 40)])
def test_what_is_given_to_a_model_that_cannot_begin_are_whole_blocks(generator_run, tmp_path, shape, given):
    model = load_run(GENERATOR, generator_run(tmp_path, *PLAIN, f"model.block_shape={shape}")).model
    assert generator_builder.given_tokens(model) == given


def test_a_model_that_cannot_begin_is_validated_in_blocks_that_end_inside_a_frame(generator_run, tmp_path):
    train.main([GENERATOR, *generator_run(tmp_path, *PLAIN, "model.block_shape=[1,1,5]", "max_steps=2",
                                          "trainer.val_every_steps=2")])
    assert (tmp_path / "samples" / "step0000002.png").is_file()


@pytest.mark.parametrize("before", [None, [5, 5, 5]])
def test_a_generator_with_shared_levels_goes_on_from_its_exported_weights(before, generator_run, tmp_path):
    """Its folder holds weights that are no sums any more; training may also share levels from here on."""
    torch.manual_seed(0)
    config = load_run(GENERATOR, generator_run(tmp_path)).model
    source = Generator(dataclasses.replace(config, code_levels=before))
    with torch.no_grad():
        for name, part in source.named_parameters():
            if name.endswith(".parts"):
                part.normal_()
    source.save_pretrained(tmp_path / "native")
    run = load_run(GENERATOR, generator_run(tmp_path, "model.code_levels=[5,5,5]", f"init_from={tmp_path / 'native'}"))
    model = generator_builder.build(run)[0].model
    assert model.config.code_levels == [5, 5, 5]
    assert equal(model.without_code_levels(), source.without_code_levels())


@pytest.mark.parametrize("overrides, message", [
    (["model.num_heads=4"], "model.num_heads is 4, there it is 2"),
    (["model.block_shape=[1,1,2]"], r"model.block_shape is \[1, 1, 2\], there it is \[1, 1, 4\]"),
    (["model.full_head=true", "model.width=64"], "model.full_head is True, there it is False; model.width is 64"),
])
def test_other_architectures_are_refused_by_field(generator_run, tmp_path, overrides, message):
    config = load_run(GENERATOR, generator_run(tmp_path)).model
    Generator(dataclasses.replace(config)).save_pretrained(tmp_path / "native")
    run = load_run(GENERATOR, generator_run(tmp_path, f"init_from={tmp_path / 'native'}", *overrides))
    with pytest.raises(ValueError, match=message):
        generator_builder.build(run)


def test_another_kind_and_a_missing_file_are_refused(finished, generator_run, tmp_path):
    for path, message in ((finished / "model", "holds a tokenizer, expected a generator"),
                          (tmp_path / "nowhere.ckpt", "nowhere.ckpt")):
        with pytest.raises(ValueError, match=message):
            generator_builder.build(load_run(GENERATOR, generator_run(tmp_path, f"init_from={path}")))


def test_a_video_tokenizer_starts_from_an_image_tokenizer(tokenizer_run, load_tokenizer_run, tmp_path):
    """The image run keeps time in its strides; one step at rate 0 shows what the video run starts with."""
    train.main([TOKENIZER, *tokenizer_run(
        tmp_path / "images", "model.strides=[[1,2,2],[1,2,2],[1,2,2]]", "trainer.ema_decay=0",
        "curriculum=[{steps: 2, num_frames: 1, batch_size: 2}]")])
    images = Tokenizer.from_pretrained(tmp_path / "images" / "model")
    module, data, _ = tokenizer_builder.build(load_tokenizer_run(
        f"inflate_from={tmp_path / 'images' / 'model'}"))
    video = data.val[0]["video"][None]
    with torch.inference_mode():
        found = module.averaged(video)[0]
        frames = [images(video[:, :, t:t + 1])[0] for t in (0, 4, 8, 12, 16)]
    torch.testing.assert_close(found[:, :, ::4], torch.cat(frames, 2), rtol=0, atol=1e-4)
    assert torch.equal(found[:, :, 4:5], found[:, :, 1:2])


def test_only_one_origin_of_weights(load_tokenizer_run):
    with pytest.raises(ValueError, match="init_from='w.pt' and inflate_from='x': set only one"):
        load_tokenizer_run("init_from=w.pt", "inflate_from=x")
