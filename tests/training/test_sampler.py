"""The order of training clips: complete, split over ranks, and resumable at any step."""

from nbp.training.sampler import Phase, StepBatchSampler

PHASES = [Phase(4, 3, 1), Phase(3, 2, 17)]


def batches(**arguments):
    return list(StepBatchSampler(10, PHASES, **arguments))


def test_each_epoch_visits_every_item_once():
    keys = [key for batch in StepBatchSampler(10, [Phase(10, 4, 1)]) for key in batch]
    for epoch in range(4):
        assert sorted(key.index for key in keys[10 * epoch:10 * epoch + 10]) == list(range(10))
    assert [key.index for key in keys[:10]] != [key.index for key in keys[10:20]]


def test_a_later_start_continues_the_same_order():
    whole = batches(accumulate=2)
    assert len(whole) == len(StepBatchSampler(10, PHASES, accumulate=2)) == 14
    for step in range(7):
        assert batches(accumulate=2, start_step=step) == whole[2 * step:]


def test_ranks_share_what_one_process_sees():
    together = [key for batch in StepBatchSampler(10, [Phase(5, 4, 1)]) for key in batch]
    ranks = [list(StepBatchSampler(10, [Phase(5, 2, 1)], rank=rank, world=2)) for rank in range(2)]
    assert [key for pair in zip(*ranks) for batch in pair for key in batch] == together


def test_phases_set_clip_length_and_batch_size():
    shapes = [(len(batch), {key.num_frames for key in batch}) for batch in batches()]
    assert shapes == [(3, {1})] * 4 + [(2, {17})] * 3


def test_seeds_differ_between_visits_and_runs():
    keys = [key for batch in StepBatchSampler(10, [Phase(10, 4, 1)]) for key in batch]
    assert len({key.seed for key in keys}) == len(keys)
    assert batches(seed=1) != batches(seed=2)
