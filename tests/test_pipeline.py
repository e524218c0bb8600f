"""The pipeline: what the commands give, bit for bit, in a few lines of Python."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from pipelines import ABOUT, CLASSES, make_pipeline, make_tokenizer

import nbp
from nbp import generate
from nbp.config import GeneratorConfig
from nbp.data import clip_set
from nbp.data.clips import video_to_frames
from nbp.generator.model import Generator
from nbp.hub.about import About, SamplingAdvice, ScoreNote, read_about, write_about
from nbp.pipeline import VideoPipeline
from nbp.planning.memory import Allocations
from nbp.workflows.drafting import window_to_keep


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved class-conditional pipeline."""
    folder = tmp_path_factory.mktemp("models") / "NBP-tiny"
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return nbp.VideoPipeline.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def clips(pipe):
    return pipe(classes=["jumper", "maze"], num_clips=3, seed=3)


def test_a_clip_is_the_command_s_bit_for_bit(folder, clips, tmp_path):
    assert clips.shape == (3, 3, 17, 32, 32) and clips.dtype == torch.float32
    assert 0 <= clips.min() and clips.max() <= 1
    generate.main([str(folder), "--labels", "jumper", "2", "--num-clips", "3", "--seed", "3", "--out", str(tmp_path)])
    found = clip_set.load(tmp_path)
    assert found["label"].tolist() == [1, 2, 1] and np.array_equal(found["video"], video_to_frames(clips))
    assert nbp.probe(tmp_path / "mp4" / "00000.mp4").fps == 15


def test_the_folder_s_sampling_is_the_default_of_both(pipe, clips):
    asked = dict(classes=["jumper", "maze"], num_clips=3, seed=3)
    assert torch.equal(pipe(temperature=0.8, top_p=0.95, **asked), clips)
    assert not torch.equal(pipe(temperature=1.0, **asked), clips)


def test_a_clip_depends_on_the_seed_and_its_number_only(pipe, clips):
    alone = pipe(classes=["jumper", "maze"], num_clips=3, seed=3, batch_size=1)
    assert torch.allclose(alone, clips, atol=1e-4), "only rounding depends on the batch"
    assert torch.allclose(pipe(classes=["jumper"], seed=3)[0], clips[0], atol=1e-4)
    assert (pipe(classes=["jumper"], seed=4)[0] - clips[0]).abs().mean() > 0.01


def test_streamed_is_whole(pipe, clips):
    pieces = list(pipe.stream(classes=["jumper", "maze"], num_clips=3, seed=3))
    assert [piece.shape[2] for piece in pieces] == [1, 4, 4, 4, 4]
    assert torch.equal(torch.cat(pieces, dim=2), clips)
    drafts = pipe.drafts(classes=["jumper", "maze"], num_clips=3, seed=3, lookahead=1)
    counts, previews = zip(*[(int(draft.drawn().sum()), draft.preview()) for draft, _ in drafts])
    assert counts == (0, 1, 2, 3, *range(4, 81, 4)), "the first block one by one, then a row at each step"
    assert torch.equal(previews[-1], clips) and all(preview.shape == clips.shape for preview in previews)


def test_given_frames_are_continued_as_the_command_does(folder, pipe, clips, tmp_path):
    for number, clip in enumerate(clips):
        nbp.write_video(tmp_path / f"{number}.mp4", clip, fps=15)
    (tmp_path / "val.txt").write_text("".join(f"{number}.mp4\t{name}\n" for number, name in enumerate(CLASSES)))
    (tmp_path / "train.txt").write_text((tmp_path / "val.txt").read_text())
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    config = tmp_path / "data.yaml"
    config.write_text(f"name: made\nroot: {tmp_path}\ntrain_list: train.txt\nval_list: val.txt\nresolution: 32\n")
    generate.main([str(folder), "--data", str(config), "--num-clips", "3", "--seed", "7", "--out",
                   str(tmp_path / "out")])
    videos = torch.stack([nbp.read_video(tmp_path / f"{number}.mp4") for number in range(3)])
    longer = pipe.extend(videos[:, :, :5], 17, classes=[0, 1, 2], seed=7)
    assert torch.equal(longer[:, :, :5], videos[:, :, :5])
    assert np.array_equal(clip_set.load(tmp_path / "out")["video"], video_to_frames(longer))


@pytest.mark.parametrize("given, num_frames", [(1, 2), (5, 8), (6, 17), (7, 41), (17, 18), (17, 35), (30, 31)])
def test_video_of_any_length_is_continued_to_any(pipe, given, num_frames):
    video = torch.rand(3, given, 32, 32, generator=torch.Generator().manual_seed(0))
    longer = pipe.extend(video, num_frames, classes=["maze"])
    assert longer.shape == (3, num_frames, 32, 32) and torch.equal(longer[:, :given], video)
    pieces = list(pipe.stream(classes=["maze"], video=video, num_frames=num_frames))
    assert all(piece.shape[2] for piece in pieces) and torch.equal(torch.cat(pieces, dim=2)[0], longer)


def test_windows_are_continued_clips(pipe, clips):
    """Behind a whole clip the last 5 frames are given to the next one."""
    longer = pipe.extend(clips, 29, classes=["maze"])
    assert torch.equal(longer[:, :, 17:], pipe.extend(clips[:, :, -5:], 17, classes=["maze"])[:, :, 5:])


def test_a_window_slides_over_the_tokens(pipe):
    """The last two latent frames of a window are given to the next, and all are decoded as one video."""
    windows, pieces = [], []
    for draft, piece in pipe.pieces(classes=["maze"], seed=2, num_frames=37):
        if not windows or windows[-1] is not draft:
            windows.append(draft)
        pieces += [] if piece is None else [piece]
    first, second, third = (draft.indices() for draft in windows)
    assert torch.equal(second[:, :2], first[:, 3:]) and torch.equal(third[:, :2], second[:, 3:])
    tokens = torch.cat([first, second[:, 2:], third[:, 2:]], dim=1)[:, :10]
    assert [piece.shape[2] for piece in pieces] == [1] + [4] * 9
    assert torch.equal(torch.cat(pieces, dim=2), pipe.decode(tokens))
    whole = pipe.tokenizer.decode_from_code_indices(tokens).clamp(0, 1)
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, rtol=0, atol=1e-5)
    assert torch.equal(torch.cat(pieces, dim=2)[:, :, :17], pipe(classes=["maze"], seed=2))


@pytest.mark.parametrize("num_frames, given", [(9, False), (5, True)])
def test_a_block_that_spans_the_clip_in_time_goes_no_further(num_frames, given):
    generator = Generator(GeneratorConfig(2, 2, 32, 125, [2, 4, 4], [2, 2, 2], "none", "plain", num_condition_ids=0,
                                          condition_len=0)).eval()
    pipe = VideoPipeline(make_tokenizer(), generator, About())
    assert pipe(num_clips=1).shape == (1, 3, 5, 32, 32)
    with pytest.raises(ValueError, match=r"block of \[2, 2, 2\] spans the whole clip.*at most 5 frames, got"):
        list(pipe.stream(num_clips=None if given else 1, num_frames=num_frames,
                         video=torch.rand(1, 3, 1, 32, 32) if given else None))


def test_memory_does_not_grow_with_the_length(pipe):
    def peak(num_frames):
        with Allocations() as allocations:
            for _ in pipe.stream(classes=["maze"], num_frames=num_frames):
                pass
        return sum(allocations.peak)

    assert peak(129) <= 1.05 * peak(33)


def test_frames_become_tokens_and_come_back(pipe, clips):
    tokens = pipe.encode(clips)
    assert tokens.shape == (3, 5, 4, 4) and tokens.dtype == torch.int32
    assert pipe.decode(tokens).shape == clips.shape
    assert torch.equal(pipe.encode(clips[0]), tokens[0]) and pipe.decode(tokens[0]).shape == clips.shape[1:]


def test_prompts_condition_a_text_model(tmp_path):
    made = make_pipeline("text", tmp_path / "words")
    made.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "words").rename(tmp_path / "gone")
    pipe = VideoPipeline.from_pretrained(tmp_path / "pipeline", device="cpu")
    clip = pipe(prompts=["a maze", "a jumper"], seed=1)
    assert clip.shape == (2, 3, 17, 32, 32) and not torch.equal(clip, pipe(prompts=["coin run", "maze"], seed=1))
    assert torch.equal(pipe(classes=["maze"], seed=1), pipe(prompts=["maze"], seed=1))
    with pytest.raises(ValueError, match=r"give classes or prompts, not both; got \['maze'\] and \['a maze'\]"):
        pipe(classes=["maze"], prompts=["a maze"])
    generate.main([str(tmp_path / "pipeline"), "--num-clips", "3", "--out", str(tmp_path / "out")])
    assert np.array_equal(clip_set.load(tmp_path / "out")["video"], video_to_frames(pipe(prompts=CLASSES)))


def test_an_unconditional_model_needs_nothing():
    assert make_pipeline("none")(num_clips=2).shape == (2, 3, 17, 32, 32)


def test_a_saved_pipeline_says_what_it_was(folder, pipe):
    assert pipe.about == ABOUT and pipe.fps == 15 and pipe.size == (32, 32) and pipe.num_frames == 17
    assert nbp.load_magvit2(folder, device="cpu").num_codes == 125
    assert nbp.load_transformer(folder / "generator", device="cpu").config == pipe.generator.config


def test_other_threads_see_packed_weights_only_when_they_are_ready(folder, monkeypatch):
    pipe, seen, pack = VideoPipeline.from_pretrained(folder, device="cpu"), [], Generator.pack
    monkeypatch.setattr(Generator, "pack", lambda *options: (seen.append(pipe._packed), pack(*options)))
    pipe(classes=["maze"])
    assert seen == [None] and pipe._packed is not None


@pytest.mark.parametrize("call, words", [
    (lambda pipe: pipe(classes=["mase"]), "class mase: the model takes 0..2, or coinrun, jumper, maze; did you mean "
                                          "'maze'?"),
    (lambda pipe: pipe(classes=[3]), "class 3: the model takes 0..2"),
    (lambda pipe: pipe(prompts=["a maze"]), "prompts are for models conditioned on text; this one takes classes"),
    (lambda pipe: pipe(classes="12"), "classes must be a list, got '12'; write ['12']"),
    (lambda pipe: pipe(classes=0), "classes must be a list, got 0; write [0]"),
    (lambda pipe: pipe.extend(torch.rand(3, 5, 32, 32), 17, classes=0), "classes must be a list, got 0"),
    (lambda pipe: pipe(prompts="maze"), "prompts must be a list, got 'maze'"),
    (lambda pipe: pipe(classes=["\u00b2"]), "class \u00b2: the model takes 0..2"),
    (lambda pipe: pipe.extend(torch.rand(3, 5, 32, 32), 17.0), "num_frames must be a whole number, at least 1, got"),
    (lambda pipe: pipe(num_clips=0), "num_clips must be at least 1, got 0"),
    (lambda pipe: pipe(num_clips=2.0), "num_clips must be a whole number, got 2.0"),
    (lambda pipe: pipe(temperature=0), "temperature must be a number above 0, got 0"),
    (lambda pipe: pipe(temprature=1), "sampling has no temprature; known: greedy, temperature, top_k, top_p, cfg"),
    (lambda pipe: pipe.extend(torch.rand(3, 17, 32, 32), 17), "must be above the 17 frames that are given, got 17"),
    (lambda pipe: pipe.extend(torch.rand(3, 5, 32, 48), 17), "32x32 pixels, got 32x48; read_video(path, size=32) fits"),
    (lambda pipe: pipe.extend(torch.zeros(5, 32, 32, 3, dtype=torch.uint8), 17), "video must be a float tensor (3,"),
    (lambda pipe: next(pipe.stream(num_frames=0)), "num_frames must be a whole number, at least 1, got 0"),
    (lambda pipe: next(pipe.stream(video=torch.rand(2, 3, 5, 32, 32), num_clips=1)), "got 1 and 2 to continue"),
    (lambda pipe: pipe.encode(np.zeros((3, 17, 32, 32), np.float32)), "must be a float tensor (3, T, H, W) or"),
    (lambda pipe: pipe.encode(torch.rand(0, 3, 5, 32, 32)), "video holds no clip or no frame, got shape (0, 3, 5"),
    (lambda pipe: pipe.decode(torch.zeros(0, 5, 4, 4, dtype=torch.int64)), "none of them 0, got shape (0, 5, 4, 4)"),
    (lambda pipe: pipe.extend(torch.cat([torch.full((3, 30, 32, 32), 7.0), torch.zeros(3, 9, 32, 32)], 1), 45),
     "video must lie in [0, 1], got [0"),
    (lambda pipe: pipe.generator.generate(torch.zeros(1, 1, dtype=torch.int64), grid=(4, 4)),
     "grid must be (t, h, w), each at least 1, got (4, 4)"),
    (lambda pipe: pipe(seed=10**30), f"seed must be a whole number between -1{12 * '0'}"),
])
def test_what_makes_no_sense_is_told(pipe, call, words):
    with pytest.raises(ValueError) as error:
        call(pipe)
    assert words in str(error.value)


def test_the_command_says_the_same(folder, tmp_path):
    with pytest.raises(ValueError, match="class mase: the model takes 0..2, or coinrun, jumper, maze; did you mean"):
        generate.main([str(folder), "--labels", "mase", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        generate.main(["--out", str(tmp_path / "out")])


def test_models_of_two_codebooks_do_not_go_together():
    pipe = make_pipeline()
    generator = make_pipeline(num_condition_ids=3).generator
    generator.config.num_codes = 64
    with pytest.raises(ValueError, match="the generator predicts 64 codes, the tokenizer has 125"):
        VideoPipeline(pipe.tokenizer, generator)


def test_a_generator_that_is_trained_on_is_sampled_as_it_is_then(tmp_path):
    pipe = make_pipeline()
    before = pipe(seed=1)
    with torch.no_grad():
        pipe.generator.head.weight.mul_(-1)
    assert not torch.equal(pipe(seed=1), before)
    pipe.save_pretrained(tmp_path)
    changed = pipe(seed=1)
    assert torch.equal(VideoPipeline.from_pretrained(tmp_path, device="cpu")(seed=1), changed)
    pipe.generator.head.weight.data.mul_(-1)        # tells nobody, as fused optimizers
    assert torch.equal(pipe(seed=1), before)


def test_sampling_leaves_training_alone_and_the_other_way_round(clips):
    """Classes are left out at random in training, which the copy that samples must not go on with."""
    pipe = make_pipeline(condition_dropout=0.99)
    want = pipe(classes=["maze"], seed=3)
    pipe.generator.train()
    assert torch.equal(pipe(classes=["maze"], seed=3), want) and pipe.generator.training
    pipe.generator.eval()
    assert torch.equal(pipe(classes=["maze"], seed=3), want)


def test_a_pipeline_that_has_sampled_is_copied_and_pickled(pipe, clips):
    for again in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert torch.equal(again(classes=["jumper", "maze"], num_clips=3, seed=3), clips)


def test_it_samples_in_inference_mode_and_under_autocast(folder, pipe, clips):
    with torch.inference_mode():
        loaded = VideoPipeline.from_pretrained(folder, device="cpu")
        assert torch.equal(loaded(classes=["jumper", "maze"], num_clips=3, seed=3), clips)
    with torch.autocast("cpu", torch.bfloat16):
        assert pipe(classes=["maze"], seed=3).isfinite().all()


def test_classes_may_be_an_array_and_seeds_of_numpy(pipe, clips):
    assert torch.equal(pipe(classes=np.array([1, 2]), num_clips=3, seed=np.int64(3)), clips)
    assert len(pipe(classes=np.array([1, 2]))) == 2 and len(pipe(classes=[])) == 1
    video = torch.rand(3, 5, 32, 32)
    assert torch.equal(pipe.extend(video, 9, classes=[]), pipe.extend(video, 9))


def test_rows_that_change_places_are_noticed(pipe):
    pipe = copy.deepcopy(pipe)
    before = pipe(classes=["maze"], seed=3)
    with torch.no_grad():
        pipe.generator.head.weight[:] = pipe.generator.head.weight.flip(0)
    assert not torch.equal(pipe(classes=["maze"], seed=3), before)


def test_a_stream_goes_on_with_the_weights_that_it_began_with(pipe):
    pipe = copy.deepcopy(pipe)
    whole = pipe(classes=["maze"], seed=3)
    pieces = pipe.stream(classes=["maze"], seed=3)
    parts = [next(pieces)]
    with torch.no_grad():
        for weight in pipe.generator.parameters():
            weight.mul_(-1.3)
    assert torch.equal(torch.cat([*parts, *pieces], dim=2), whole)


def test_flat_tokens_have_the_generator_s_grid(tmp_path):
    VideoPipeline(make_tokenizer(), make_pipeline().generator).save_pretrained(tmp_path)
    loaded = VideoPipeline.from_pretrained(tmp_path, device="cpu")
    assert loaded.tokenizer.decode_from_code_indices(torch.zeros(1, 80).long()).shape == (1, 3, 17, 32, 32)


def test_nan_in_the_middle_of_a_window_is_told(pipe):
    pipe = copy.deepcopy(pipe)
    with torch.no_grad():
        pipe.generator.head.weight[3] = torch.nan
    with pytest.raises(ValueError, match="the generator gave NaN"):
        pipe.extend(torch.rand(3, 5, 32, 32), 13)


def test_each_part_keeps_its_own_scores_and_sampling(folder, tmp_path):
    score = ScoreNote("PSNR", 20.0, "mine")
    write_about(folder / "tokenizer", About(data="own", scores=[score]), "tokenizer")
    VideoPipeline.from_pretrained(folder, device="cpu").save_pretrained(tmp_path)
    assert read_about(tmp_path / "tokenizer").scores == [score] \
        and read_about(tmp_path / "generator").scores == ABOUT.scores
    assert read_about(tmp_path / "tokenizer").sampling == SamplingAdvice()
    assert read_about(tmp_path / "generator").sampling == ABOUT.sampling


def test_seeds_that_differ_in_their_upper_half_only(pipe):
    assert not torch.equal(pipe(classes=["maze"], seed=7), pipe(classes=["maze"], seed=7 + 2**32))


@pytest.mark.parametrize("block, kept", [([1, 1, 5], 5), ([1, 1, 10], 5), ([1, 1, 8], 2)])
def test_blocks_that_end_within_frames(block, kept):
    """Windows hold whole blocks, or the model makes no more than one."""
    generator = Generator(GeneratorConfig(2, 2, 32, 125, [5, 4, 4], block, "none", "plain", num_condition_ids=0,
                                          condition_len=0)).eval()
    pipe = VideoPipeline(make_tokenizer(), generator, About())
    assert window_to_keep(generator) == kept
    if kept < 5:
        assert torch.cat(list(pipe.stream(num_clips=1, num_frames=25)), dim=2).shape[2] == 25
    else:
        with pytest.raises(ValueError, match="makes at most 17 frames, got num_frames=25"):
            list(pipe.stream(num_clips=1, num_frames=25))


def test_fewer_frames_than_a_block_are_not_continued():
    generator = Generator(GeneratorConfig(2, 2, 32, 125, [4, 4, 4], [2, 2, 2], "none", "plain", num_condition_ids=0,
                                          condition_len=0)).eval()
    pipe = VideoPipeline(make_tokenizer(), generator, About())
    with pytest.raises(ValueError, match=r"blocks of \[2, 2, 2\] need at least 5 frames to continue, got 4"):
        pipe.extend(torch.rand(3, 4, 32, 32), 13)
    assert pipe.extend(torch.rand(3, 5, 32, 32), 13).shape == (3, 13, 32, 32)


def test_sampling_advice_is_the_generator_s_default():
    assert SamplingAdvice() == SamplingAdvice(False, 1.0, 16000, 0.9, None)


def test_recommended_guidance_is_for_clips_with_a_class(folder, pipe, tmp_path):
    """Continuing a video of no stated class goes without, in Python and by the command; asked for, it is an error."""
    advice = dataclasses.replace(ABOUT.sampling, cfg_scale=2.0)
    guided = VideoPipeline(pipe.tokenizer, pipe.generator, dataclasses.replace(ABOUT, sampling=advice))
    assert torch.equal(guided(["maze"]), pipe(["maze"], cfg_scale=2.0))
    assert not torch.equal(guided(["maze"]), pipe(["maze"]))
    video = pipe(["maze"])[0, :, :5]
    assert torch.equal(guided.extend(video, 17), pipe.extend(video, 17))
    with pytest.raises(ValueError, match="needs a condition to be guided towards"):
        guided.extend(video, 17, cfg_scale=2.0)
    guided.save_pretrained(tmp_path / "guided")
    for models in (folder, tmp_path / "guided"):
        out = str(tmp_path / models.name / "clips")
        generate.main([str(models), "--num-clips", "2", "--unconditional", "--out", out])
    one, other = (clip_set.load(tmp_path / models.name / "clips")["video"] for models in (folder, tmp_path / "guided"))
    assert np.array_equal(one, other)


def test_a_stream_begun_in_inference_mode_goes_on_outside(pipe, clips):
    pieces = pipe.stream(classes=["jumper", "maze"], num_clips=3, seed=3)
    with torch.inference_mode():
        first = next(pieces)
    assert torch.equal(torch.cat([first, *pieces], dim=2), clips)


def test_what_a_stream_hands_out_is_not_the_caller_s_video(pipe, clips):
    video = clips[:1, :, :5].clone().requires_grad_()
    for frames in pipe.stream(video=video, num_frames=9):
        assert not frames.requires_grad
        frames.mul_(255)
    assert torch.equal(video, clips[:1, :, :5])


def test_a_tokenizer_whose_clips_have_another_size_is_refused(pipe):
    about = dataclasses.replace(pipe.about, resolution=64)
    with pytest.raises(ValueError, match="have 32x32 pixels, but it was trained on 64x64: give the tokenizer"):
        VideoPipeline(pipe.tokenizer, pipe.generator, about)
    VideoPipeline(pipe.tokenizer, pipe.generator, dataclasses.replace(about, resolution=[32, 32]))


@pytest.mark.parametrize("how, message", [({"temperature": 1e-38}, "temperature=1e-38 is below 1e-06: greedy takes"),
                                          ({"cfg_scale": 1e38}, r"cfg_scale must be a number up to 1e\+06")])
def test_what_would_make_logits_infinite_is_refused(pipe, how, message):
    with pytest.raises(ValueError, match=message):
        pipe(num_clips=1, **how)
    assert torch.equal(pipe(num_clips=1, cfg_scale=1., temperature=1e-6), pipe(num_clips=1, cfg_scale=1., greedy=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torch_s_default_dtype_changes_nothing(dtype):
    want = make_pipeline(rotary=True)
    clips = want(num_clips=2, seed=3)
    torch.set_default_dtype(dtype)
    try:
        again = want.encode(clips)
        turned = Generator(want.generator.config).transformer.turns
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again, want.encode(clips)) and torch.equal(turned, want.generator.transformer.turns)
