"""The order of training clips: complete, split over ranks, and resumable at any step."""

import pytest
import torch

from nbp.config.runs import CurriculumPhase, ImageConfig
from nbp.training.data import StepBatchSampler, collate_bytes, float_video

PHASES = [CurriculumPhase(4, 1, 3), CurriculumPhase(3, 17, 2)]


def batches(**arguments):
    return list(StepBatchSampler(10, PHASES, **arguments))


def test_each_epoch_visits_every_item_once():
    keys = [key for batch in StepBatchSampler(10, [CurriculumPhase(10, 1, 4)]) for key in batch]
    for epoch in range(4):
        assert sorted(key.item for key in keys[10 * epoch:10 * epoch + 10]) == list(range(10))
    assert [key.item for key in keys[:10]] != [key.item for key in keys[10:20]]


def test_a_later_start_continues_the_same_order():
    whole = batches(accumulate=2)
    assert len(whole) == len(StepBatchSampler(10, PHASES, accumulate=2)) == 14
    for step in range(7):
        assert batches(accumulate=2, start_step=step) == whole[2 * step:]


def test_ranks_share_what_one_process_sees():
    together = [key for batch in StepBatchSampler(10, [CurriculumPhase(5, 1, 4)]) for key in batch]
    ranks = [list(StepBatchSampler(10, [CurriculumPhase(5, 1, 2)], rank=rank, world=2)) for rank in range(2)]
    assert [key for pair in zip(*ranks) for batch in pair for key in batch] == together


def test_phases_set_clip_length_and_batch_size():
    shapes = [(len(batch), {key.num_frames for key in batch}) for batch in batches()]
    assert shapes == [(3, {1})] * 4 + [(2, {17})] * 3


def test_seeds_differ_between_visits_and_runs():
    keys = [key for batch in StepBatchSampler(10, [CurriculumPhase(10, 1, 4)]) for key in batch]
    assert len({key.seed for key in keys}) == len(keys)
    assert batches(seed=1) != batches(seed=2)


IMAGES = {"images": ImageConfig(share=0.3, batch_size=5), "num_pictures": 7}


def test_images_take_their_share_and_leave_the_clips_in_order():
    phases = [CurriculumPhase(100, 9, 3)]
    plain = [key for batch in StepBatchSampler(10, phases) for key in batch]
    mixed = list(StepBatchSampler(10, phases, **IMAGES))
    pictures = [batch for batch in mixed if batch[0].num_frames == 1]
    clips = [key for batch in mixed if batch[0].num_frames == 9 for key in batch]
    assert len(mixed) == 100 and len(pictures) == 30 and all(len(batch) == 5 for batch in pictures)
    assert clips == plain[:len(clips)]
    keys = [key for batch in pictures for key in batch]
    for epoch in range(len(keys) // 7):
        assert sorted(key.item for key in keys[7 * epoch:7 * epoch + 7]) == list(range(10, 17))
    assert not {key.seed for key in keys} & {key.seed for key in clips}


def test_images_resume_and_split_over_ranks():
    whole = batches(accumulate=2, **IMAGES)
    for step in range(7):
        assert batches(accumulate=2, start_step=step, **IMAGES) == whole[2 * step:]
    phases = [CurriculumPhase(40, 9, 2)]
    ranks = [list(StepBatchSampler(10, phases, rank=rank, world=3, **IMAGES)) for rank in range(3)]
    for together in zip(*ranks):
        assert len({(len(batch), batch[0].num_frames) for batch in together}) == 1
    pictures = [key for together in zip(*ranks) for batch in together for key in batch if key.num_frames == 1]
    assert sorted(key.item for key in pictures[:7]) == list(range(10, 17))


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3, 0.5, 0.9])
def test_images_are_evenly_spread(share):
    phases, images = [CurriculumPhase(3000, 9, 1)], ImageConfig(share, batch_size=1)
    taken = [batch[0].num_frames == 1 for batch in StepBatchSampler(10, phases, images=images)]
    for start in range(0, 2900, 97):
        assert abs(sum(taken[start:start + 100]) - 100 * share) <= 1


def test_video_travels_as_bytes_and_arrives_bit_for_bit():
    every_byte = torch.arange(256, dtype=torch.uint8).view(1, 4, 8, 8)
    video = every_byte.float().div(255)            # as `frames_to_video` makes it
    samples = [{"video": video, "label": torch.tensor(2), "text": "a", "path": "b", "item": 0}] * 2
    batch = collate_bytes(samples)
    assert batch["video"].dtype == torch.uint8 and torch.equal(batch["video"][1], every_byte)
    assert torch.equal(collate_bytes([{**samples[0], "video": every_byte}] * 2)["video"], batch["video"])
    arrived = float_video(batch)
    assert arrived["video"].dtype == torch.float32 and torch.equal(arrived["video"], torch.stack([video, video]))
    assert arrived["text"] == ["a", "a"] and arrived["label"].tolist() == [2, 2]
    assert float_video(arrived) is arrived
    tokens = [{"indices": torch.zeros(1, 2, 2, dtype=torch.long)}]
    assert collate_bytes(tokens)["indices"].dtype == torch.int64
