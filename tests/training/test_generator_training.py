"""Generator training through Lightning itself, from cached tokens and straight from video."""

import pytest
import pytorch_lightning as pl
import torch
from training_runs import equal_losses

from nbp import train
from nbp.config import load_run
from nbp.generator.model import Generator
from nbp.planning.plan import checkpoint_bytes
from nbp.training import fit
from nbp.training import generator as generator_builder
from nbp.training.metrics_log import read_metrics

GENERATOR = "tests/fixtures/runs/generator.yaml"


def losses(out):
    return read_metrics(out)["train/loss"]


def assert_checkpoint_has_the_planned_size(out, strategy, low_precision=False):
    last, model = out / "checkpoints" / "last.ckpt", Generator.from_pretrained(out / "model")
    files = last.rglob("*.pt") if last.is_dir() else [last]
    count = sum(p.numel() for p in model.parameters())
    planned = checkpoint_bytes(strategy, count, 0, low_precision, 8 * count)
    assert sum(path.stat().st_size for path in files) == pytest.approx(planned, rel=0.1)


@pytest.mark.parametrize("engines", [
    ["deepspeed_3"], pytest.param(["deepspeed_1", "deepspeed_2"], marks=pytest.mark.slow(seconds=100))], ids=" ".join)
def test_two_processes_agree(losses_by_engine, generator_run, tmp_path, engines):
    found = losses_by_engine(GENERATOR, lambda out: generator_run(out, "trainer.ema_decay=0"), "ddp", *engines)
    equal_losses(found, 6)
    for strategy in found:
        assert_checkpoint_has_the_planned_size(tmp_path / strategy, strategy)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["deepspeed_2_offload", "deepspeed_3_offload"])
def test_offloading_to_the_cpu_gives_the_same_losses(launch, generator_run, tmp_path, strategy):
    more = ("trainer.ema_decay=0", "trainer.val_samples=0")
    launch(2, GENERATOR, *generator_run(tmp_path / "ddp", *more), "trainer.strategy=ddp")
    launch(2, GENERATOR, *generator_run(tmp_path / "offload", *more), f"trainer.strategy={strategy}")
    found = list(losses(tmp_path / "offload").values())
    assert found == pytest.approx(list(losses(tmp_path / "ddp").values()), rel=1e-4)


class GradientNorm(pl.Callback):
    """DeepSpeed's norm of the last step's gradients, before clipping."""

    def on_train_end(self, trainer, module):
        self.value = float(trainer.model.get_global_grad_norm())


def test_deepspeed_clips_the_same_gradients_in_one_micro_batch_and_in_four(generator_run, tmp_path):
    norms = []
    for count in (1, 4):
        run = load_run(GENERATOR, generator_run(
            tmp_path / str(count), "trainer.strategy=deepspeed_1", f"trainer.accumulate={count}",
            f"batch_size={4 // count}", "max_steps=2", "trainer.ema_decay=0", "trainer.val_samples=0",
            "model.dropout=0", "model.condition_dropout=0", "optim.gradient_clip=0.5"))
        norm = GradientNorm()
        fit.fit(run, None, [norm])
        norms.append(norm.value)
    assert norms[1] == pytest.approx(norms[0], rel=1e-3) and norms[0] > 0.5


UNCONDITIONAL = ("model.condition=none", "model.num_condition_ids=0", "model.condition_len=0")


@pytest.mark.slow
@pytest.mark.parametrize("strategy, model", [("ddp", ()), ("deepspeed_1", UNCONDITIONAL), ("deepspeed_1", ()),
                                             ("deepspeed_2", UNCONDITIONAL), ("deepspeed_3", UNCONDITIONAL)])
def test_every_engine_trains_in_bfloat16(launch, generator_run, tmp_path, strategy, model):
    launch(2, GENERATOR, *generator_run(tmp_path, "trainer.ema_decay=0", "trainer.precision=bf16-mixed", "max_steps=12",
                                        "optim.gradient_clip=1", *model), f"trainer.strategy={strategy}")
    found = list(losses(tmp_path).values())
    assert len(found) == 12 and found[-1] < found[0]
    assert_checkpoint_has_the_planned_size(tmp_path, strategy, low_precision=True)
    state = Generator.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert all(tensor.numel() for name, tensor in state.items() if name != "uncond_embedding")


@pytest.mark.parametrize("model", [(), UNCONDITIONAL], ids=["labels", "unconditional"])
def test_one_device_trains_in_bfloat16_with_clipped_gradients(generator_run, tmp_path, model):
    train.main([GENERATOR, *generator_run(tmp_path, "trainer.precision=bf16-mixed", "optim.gradient_clip=1", *model)])
    found = list(losses(tmp_path).values())
    assert len(found) == 6 and found[-1] < found[0]


def test_gradients_are_clipped_by_their_global_norm(generator_run, tmp_path):
    module, _, _ = generator_builder.build(load_run(GENERATOR, generator_run(tmp_path)))
    optimizer = torch.optim.AdamW(module.parameter_groups())
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:
        p.grad = torch.ones_like(p)
    module.configure_gradient_clipping(optimizer, None)
    assert all((p.grad == 1).all() for p in parameters)
    module.configure_gradient_clipping(optimizer, 0.5)
    assert torch.nn.utils.get_total_norm([p.grad for p in parameters]) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("overrides, message", [
    (["trainer.strategy=deepspeed_3"], "no rank holds the weights whole that the average follows"),
    (["trainer.strategy=deepspeed_1", "trainer.precision=bf16-mixed"], "keeps the module in bfloat16"),
])
def test_a_moving_average_where_it_cannot_work_is_refused(generator_run, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        train.main([GENERATOR, *generator_run(tmp_path, "trainer.ema_decay=0.9", *overrides)])


def test_a_resumed_run_equals_an_uninterrupted_one_with_dropout(generator_run, tmp_path):
    class Stop(Exception):
        pass

    class StopAt(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                raise Stop

    train.main([GENERATOR, *generator_run(tmp_path / "whole", "trainer.accumulate=2")])
    overrides = generator_run(tmp_path / "resumed", "trainer.accumulate=2")
    run = load_run(GENERATOR, overrides)
    pl.seed_everything(run.trainer.seed, workers=True)
    module, data, extra = generator_builder.build(run)
    with pytest.raises(Stop):
        fit.build_trainer(run, module.max_steps, [*extra, StopAt()]).fit(module, data)
    train.main([GENERATOR, *overrides])
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    one, other = (Generator.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "resumed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_accumulated_batches_equal_one_large_batch(generator_run, tmp_path):
    # Adam divides the rounding of a gradient of almost nothing by itself: what is left is a share of the rate.
    still = ("model.dropout=0", "model.condition_dropout=0", "trainer.ema_decay=0", "trainer.val_samples=0",
             "optim.lr=1e-3")
    for name, more in (("large", ("batch_size=8",)), ("small", ("batch_size=2", "trainer.accumulate=4"))):
        train.main([GENERATOR, *generator_run(tmp_path / name, *still, *more)])
    large, small = losses(tmp_path / "large"), losses(tmp_path / "small")
    assert len(large) == len(small) == 6, "max_steps counts optimizer steps"
    one, other = (Generator.from_pretrained(tmp_path / name / "model").state_dict() for name in ("large", "small"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)


def test_training_straight_from_video_sees_the_cached_tokens(generator_run, data_config, tmp_path):
    fields = dict(line.split(": ") for line in data_config.read_text().splitlines())
    online = [f"data.{name}={value}" for name, value in fields.items()]
    run = load_run(GENERATOR, generator_run(tmp_path, "tokens=null", *online))
    module, data, _ = generator_builder.build(run)
    cached, *_ = generator_builder.build(load_run(GENERATOR, generator_run(tmp_path)))
    sample = data.val[0]
    found = module.indices({"video": sample["video"][None]})
    run = load_run(GENERATOR, generator_run(tmp_path))
    assert torch.equal(found[0], generator_builder.build(run)[1].val[0]["indices"])
    assert cached.frozen is None
    assert not [name for name in module.state_dict() if "encoder" in name], "the frozen tokenizer stays out"
    fit.build_trainer(run, 2, []).fit(module, data)


def test_the_generator_overfits_one_batch(generator_run, tmp_path):
    run = load_run(GENERATOR, generator_run(tmp_path, "model.dropout=0", "model.condition_dropout=0"))
    module, data, _ = generator_builder.build(run)
    indices = torch.stack([data.train[i]["indices"] for i in (0, 7)])
    condition = torch.tensor([[0], [1]])
    optimizer = torch.optim.Adam(module.model.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = module.model.loss(indices, condition)
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert (module.model.generate(condition, greedy=True) == indices).float().mean() > 0.95


@pytest.mark.parametrize("override, message", [
    ("model.num_codes=64", "model.num_codes is 64, but the training data has 125"),
    ("model.num_condition_ids=3", "model.num_condition_ids is 3, but the training data has 2"),
])
def test_a_model_that_does_not_fit_its_tokens_is_refused(generator_run, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        generator_builder.build(load_run(GENERATOR, generator_run(tmp_path, override)))


def test_tokens_of_another_tokenizer_are_refused(finished, generator_run, tmp_path):
    from nbp.tokenizer.model import Tokenizer

    other = Tokenizer.from_pretrained(finished / "model")
    other.decoder.conv_in.conv.bias.data += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="tokens of another tokenizer"):
        generator_builder.build(load_run(GENERATOR, generator_run(tmp_path, f"tokenizer={tmp_path / 'other'}")))


def test_exactly_one_source_of_clips(generator_run, tmp_path):
    with pytest.raises(ValueError, match="exactly one of tokens"):
        load_run(GENERATOR, generator_run(tmp_path, "tokens=null"))


def test_a_model_without_numbers_guesses_nothing_right(generator_run, tmp_path, monkeypatch):
    module, data, _ = generator_builder.build(load_run(GENERATOR, generator_run(tmp_path)))
    logged = {}
    monkeypatch.setattr(module, "log_dict", lambda metrics, **_: logged.update(metrics))
    for p in module.averaged.parameters():
        p.data.fill_(float("nan"))
    module.validation_step(data.train[0] | {name: value[None] for name, value in data.train[0].items()
                                            if torch.is_tensor(value)}, 0)
    assert logged["val/top1"] == logged["val/top5"] == 0


def test_levels_are_those_of_the_tokenizer(generator_run, tmp_path):
    """Whose product alone says little: parts would be shared by codes that have nothing in common."""
    with pytest.raises(ValueError, match=r"model.code_levels is \[25, 5\], but the training data has \[5, 5, 5\]"):
        generator_builder.build(load_run(GENERATOR, generator_run(tmp_path, "model.code_levels=[25,5]")))
    generator_builder.build(load_run(GENERATOR, generator_run(tmp_path, "model.code_levels=[5,5,5]")))
