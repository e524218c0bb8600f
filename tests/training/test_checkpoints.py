"""Which checkpoint a run goes on from, which are kept, and what makes one unusable."""

import dataclasses
import json
import shutil

import pytest
import torch

from nbp import convert, train
from nbp.config import load_run, to_dict
from nbp.generator.conditions import train_text_tokenizer
from nbp.generator.model import Generator
from nbp.hub.about import ScoreNote, read_about, write_about
from nbp.tokenizer.model import Tokenizer
from nbp.training import checkpoints, fit, generator
from nbp.training.fit import find_checkpoint
from nbp.training.guard import Guard
from nbp.training.metrics_log import read_metrics
from nbp.training.resume import Resume, config_changes
from nbp.training.saving import Checkpoints
from nbp.workflows import converting

GENERATOR, TOKENIZER = "tests/fixtures/runs/generator.yaml", "tests/fixtures/runs/tokenizer.yaml"


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 2, 4 and 6, as small files."""
    for step in (2, 4, 6):
        torch.save({"step": step, "weights": torch.randn(100)}, checkpoints.checkpoint_path(tmp_path, step))
    checkpoints.link(tmp_path, "last.ckpt", checkpoints.checkpoint_path(tmp_path, 6))
    return tmp_path


def steps(folder):
    return [checkpoints.step_of(path) for path in checkpoints.list_checkpoints(folder)]


def test_the_newest_complete_one_is_found(folder):
    assert checkpoints.newest_complete(folder) == checkpoints.checkpoint_path(folder, 6)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_one_is_skipped_with_a_message(folder, capsys, damage):
    path = checkpoints.checkpoint_path(folder, 6)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes({"truncated": data[:len(data) // 2], "flipped": data, "empty": b""}[damage])
    assert checkpoints.newest_complete(folder) == checkpoints.checkpoint_path(folder, 4)
    assert f"skipping checkpoint {path}" in capsys.readouterr().err


def test_when_all_are_damaged_nothing_starts_over_by_itself(folder):
    for path in checkpoints.list_checkpoints(folder):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of 3 checkpoints is complete; trainer.resume=never starts anew"):
        checkpoints.newest_complete(folder)


def test_the_last_and_the_best_are_kept(folder):
    checkpoints.link(folder, "best.ckpt", checkpoints.checkpoint_path(folder, 2))
    checkpoints.prune(folder, 1)
    assert steps(folder) == [6, 2]


def test_what_follows_the_last_one_belongs_to_an_abandoned_continuation(folder):
    checkpoints.link(folder, "last.ckpt", checkpoints.checkpoint_path(folder, 4))
    assert steps(folder) == [4, 2]


def test_a_folder_is_complete_with_all_its_files(tmp_path):
    temporary, final = tmp_path / ".partial", checkpoints.checkpoint_path(tmp_path, 2)
    (temporary / "checkpoint").mkdir(parents=True)
    torch.save(torch.randn(100), temporary / "checkpoint" / "rank0.pt")
    shutil.copytree(temporary, tmp_path / "step0000004.ckpt")
    assert "complete.json is missing" in checkpoints.find_damage(tmp_path / "step0000004.ckpt")
    checkpoints.publish(temporary, final, {"world_size": 1})
    assert checkpoints.find_damage(final) is None and not temporary.exists()
    assert checkpoints.newest_complete(tmp_path) == final
    (final / "checkpoint" / "rank0.pt").write_bytes(b"short")
    assert "rank0.pt is missing or not" in checkpoints.find_damage(final)


def test_leftovers_of_a_killed_write_go(folder):
    (folder / ".step0000008.abc.ckpt").write_bytes(b"half")
    (folder / ".step0000008.partial").mkdir()
    checkpoints.clean(folder)
    assert not list(folder.glob(".*")) and steps(folder) == [6, 4, 2]


def test_a_run_keeps_its_last_and_best_checkpoints(finished):
    found = finished / "checkpoints"
    psnr = read_metrics(finished)["val/psnr"]
    best = max(psnr, key=psnr.get) + 1
    assert sorted(path.name for path in found.iterdir()) == sorted(
        {"last.ckpt", "best.ckpt", f"step{best:07d}.ckpt", "step0000004.ckpt", "step0000006.ckpt"})
    assert (found / "last.ckpt").resolve().name == "step0000006.ckpt"
    assert (found / "best.ckpt").resolve().name == f"step{best:07d}.ckpt"


def test_a_corrupt_newest_checkpoint_costs_only_its_steps(finished, tokenizer_run, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    newest = tmp_path / "run" / "checkpoints" / "step0000006.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    train.main([TOKENIZER, *tokenizer_run(tmp_path / "run")])
    assert f"skipping checkpoint {newest}" in capsys.readouterr().err
    assert len(list((tmp_path / "run" / "logs").iterdir())) == 2
    assert read_metrics(tmp_path / "run")["train/loss"] == read_metrics(finished)["train/loss"]
    one, other = (Tokenizer.from_pretrained(out / "model").state_dict() for out in (finished, tmp_path / "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_becomes_a_native_model(finished, tmp_path):
    convert.main(["checkpoint-to-native", str(finished / "checkpoints" / "last.ckpt"), str(tmp_path / "model")])
    one, other = (Tokenizer.from_pretrained(path).state_dict() for path in (finished / "model", tmp_path / "model"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    (tmp_path / "half.ckpt").write_bytes(b"no")
    with pytest.raises(ValueError, match="half.ckpt: it is truncated or not a checkpoint"):
        converting.checkpoint_to_native(tmp_path / "half.ckpt", tmp_path / "other")


def test_resume_never_sets_the_old_checkpoints_aside(finished, tokenizer_run, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    train.main([TOKENIZER, *tokenizer_run(tmp_path / "run", "trainer.resume=never", "trainer.seed=3")])
    assert "checkpoints.old1" in capsys.readouterr().err
    assert steps(tmp_path / "run" / "checkpoints.old1") == steps(finished / "checkpoints")
    found = read_metrics(tmp_path / "run")["train/loss"]
    assert found != read_metrics(finished)["train/loss"] and len(found) == 6


@pytest.mark.parametrize("override, message", [
    ("optim.lr=0.5", r"optim.lr was .*, is now 0.5. Undo the change, or choose another trainer.out, or "
                     "trainer.accept_changes=true"),
    ("trainer.seed=7", "trainer.seed was 0, is now 7"),
    ("trainer.accumulate=3", r"global batch was \[2, 2\], is now \[6, 6\]"),
    ("model.widths=[8,8,16,24]", "model.widths cannot change within a run"),
    ("loss.adversarial=0", "loss.adversarial cannot change within a run"),
])
def test_a_changed_configuration_is_refused(finished, tokenizer_run, tmp_path, override, message):
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    for accept in {"trainer.accept_changes=false", f"trainer.accept_changes={'cannot' in message}"}:
        with pytest.raises(ValueError, match=message):
            train.main([TOKENIZER, *tokenizer_run(tmp_path / "run", override, accept)])
    assert load_run(tmp_path / "run" / "config.yaml").trainer.seed == 0, "the refused run has not left its config"


def test_accepted_changes_take_effect_and_are_printed(generator_run, tmp_path, capsys):
    train.main([GENERATOR, *generator_run(tmp_path, "trainer.val_samples=0")])
    more = ("trainer.val_samples=0", "trainer.accept_changes=true", "optim.lr=0.01", "max_steps=9",
            "optim.schedule=constant")
    train.main([GENERATOR, *generator_run(tmp_path, *more)])
    assert "resume: optim.lr was 0.002, is now 0.01" in capsys.readouterr().err
    rate = read_metrics(tmp_path)["lr-AdamW/pg1"]
    assert [rate[step] for step in (6, 7, 8)] == pytest.approx([0.01] * 3)


def test_a_longer_run_takes_its_new_rate_from_the_first_step_on(generator_run, tmp_path):
    more = ["trainer.val_samples=0", "optim.warmup_steps=0", "optim.schedule=linear"]
    train.main([GENERATOR, *generator_run(tmp_path, *more)])
    train.main([GENERATOR, *generator_run(tmp_path, *more, "max_steps=12", "trainer.accept_changes=true")])
    rate = read_metrics(tmp_path)["lr-AdamW/pg1"]
    assert rate[6] > rate[7] > rate[10] > 0 == rate[5] == rate[11], "not the last one of before"


def test_of_a_model_s_fields_dropout_may_be_accepted_and_memory_is_free(generator_run, tmp_path):
    def resume(*overrides):
        return Resume(load_run(GENERATOR, generator_run(tmp_path, *overrides)))

    saved = to_dict(resume().run)
    resume("model.activation_checkpointing=true").check_config(saved, "c")
    resume("model.dropout=0.3", "trainer.accept_changes=true").check_config(saved, "c")
    with pytest.raises(ValueError, match="or trainer.accept_changes=true to go on with the new values"):
        resume("model.dropout=0.3").check_config(saved, "c")


def test_an_exported_folder_keeps_what_its_user_wrote(finished, tokenizer_run, tmp_path):
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    about = read_about(tmp_path / "run" / "model")
    about.sampling.top_p, about.scores = 0.5, [ScoreNote("rfvd", 12.0, "tats-2048")]
    write_about(tmp_path / "run" / "model", about, "tokenizer")
    train.main([TOKENIZER, *tokenizer_run(tmp_path / "run")])
    assert read_about(tmp_path / "run" / "model") == about, "the run had ended: the weights are the same"
    (tmp_path / "run" / "model" / "model.safetensors").write_bytes(b"of before")
    train.main([TOKENIZER, *tokenizer_run(tmp_path / "run")])
    assert read_about(tmp_path / "run" / "model") == dataclasses.replace(about, scores=[])


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_smaller_micro_batches_train_on_the_same_clips(generator_run, tmp_path, before, after):
    def overrides(out, batch_size):
        more = ("trainer.val_samples=0", "trainer.global_batch=2", "trainer.keep_last=9", "model.condition_dropout=0")
        return [GENERATOR, *generator_run(tmp_path / out, *more, f"batch_size={batch_size}")]

    train.main(overrides("whole", before))
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed", symlinks=True)
    for step in (4, 6):
        checkpoints.remove(checkpoints.checkpoint_path(tmp_path / "resumed" / "checkpoints", step))
    train.main(overrides("resumed", after))
    one, other = (Generator.from_pretrained(tmp_path / out / "model").state_dict() for out in ("whole", "resumed"))
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-3, atol=1e-4, msg=name)
    assert list(read_metrics(tmp_path / "resumed")["val/loss"]) == list(read_metrics(tmp_path / "whole")["val/loss"])


def test_an_accepted_momentum_takes_effect(generator_run, tmp_path):
    for more in (["max_steps=2"], ["max_steps=4", "optim.muon_momentum=0.5", "trainer.accept_changes=true"]):
        train.main([GENERATOR, *generator_run(tmp_path, "trainer.val_samples=0", "optim.optimizer=muon",
                                              "optim.muon_lr=0.01", *more)])
    stored = torch.load(checkpoints.checkpoint_path(tmp_path / "checkpoints", 4), weights_only=True)
    momenta = {group.get("momentum") for group in stored["optimizer_states"][0]["param_groups"]}
    assert 0.5 in momenta and 0.95 not in momenta


def test_where_a_run_works_may_change(load_tokenizer_run):
    old = to_dict(load_tokenizer_run())
    for overrides in (["trainer.num_workers=4", "data.root=elsewhere"], ["trainer.val_batches=3"]):
        changed = config_changes(old, to_dict(load_tokenizer_run(*overrides)))
        assert list(changed) == sorted(override.split("=")[0] for override in overrides)
    split = ["trainer.devices=2", "curriculum=[{steps: 2, num_frames: 1, batch_size: 1}, "
                                  "{steps: 4, num_frames: 5, batch_size: 1}]"]
    assert list(config_changes(old, to_dict(load_tokenizer_run(*split)))) == ["trainer.devices"]
    images = ["images.share=0.5", "images.batch_size=2"]
    old = to_dict(load_tokenizer_run(*images))
    changed = config_changes(old, to_dict(load_tokenizer_run(*images, *split)))
    assert list(changed) == ["trainer.devices", "global batch of images"]
    split = [*split, "images.batch_size=1"]
    assert "global batch of images" not in config_changes(old, to_dict(load_tokenizer_run(*images, *split)))


@pytest.mark.slow
def test_other_number_of_devices_same_clips(launch, generator_run, tmp_path):
    still = ("model.dropout=0", "model.condition_dropout=0", "trainer.val_samples=0")
    one, two = tmp_path / "one", tmp_path / "two"
    train.main([GENERATOR, *generator_run(one, *still, "batch_size=4")])
    shutil.copytree(one, two, symlinks=True)
    shutil.rmtree(two / "logs")
    newest = two / "checkpoints" / "step0000006.ckpt"
    newest.unlink()  # steps 4 and 5 are done again, by two processes
    checkpoints.link(two / "checkpoints", "last.ckpt", two / "checkpoints" / "step0000004.ckpt")
    launch(2, GENERATOR, *generator_run(two, *still, "batch_size=2", "trainer.strategy=ddp"))
    state, found = (Generator.from_pretrained(out / "model").state_dict() for out in (one, two))
    for name in state:
        torch.testing.assert_close(found[name], state[name], rtol=0, atol=1e-5)


def test_a_file_is_not_resumed_by_deepspeed_nor_by_another_number_of_its_processes(generator_run, tmp_path):
    from nbp.training.resume import Resume

    run = load_run(GENERATOR, generator_run(tmp_path, "trainer.strategy=deepspeed_1", "trainer.ema_decay=0"))
    torch.save({}, checkpoints.checkpoint_path(tmp_path, 2))
    with pytest.raises(ValueError, match="was written by one device or DDP, trainer.strategy is now deepspeed_1"):
        Resume(run).choose(tmp_path)
    for number, facts, message in ((4, {"world_size": 2}, "written by 2 processes, now there are 1"),
                                   (6, {"strategy": "deepspeed_2"}, "ZeRO stages do not read one another")):
        (tmp_path / ".partial").mkdir()
        checkpoints.publish(tmp_path / ".partial", checkpoints.checkpoint_path(tmp_path, number),
                            {"world_size": 1, "strategy": "deepspeed_1", "run": to_dict(run)} | facts)
        with pytest.raises(ValueError, match=message):
            Resume(run).choose(tmp_path)


def test_a_missing_checkpoint_is_named(load_tokenizer_run):
    with pytest.raises(ValueError, match="nowhere.ckpt.*does not exist"):
        find_checkpoint(load_tokenizer_run("trainer.resume=nowhere.ckpt").trainer)


def test_another_branch_is_moved_aside(tmp_path):
    def make(folder):
        folder.mkdir()
        for step in (2, 4, 6):
            (folder / f"step{step:07d}.ckpt").write_text(str(step))
        checkpoints.link(folder, checkpoints.LAST, folder / "step0000006.ckpt")
        checkpoints.link(folder, checkpoints.BEST, folder / "step0000002.ckpt")
        return folder

    folder = make(tmp_path / "same")
    checkpoints.abandon_newer(folder, folder / "step0000004.ckpt")
    assert [path.name for path in checkpoints.list_checkpoints(folder)] == ["step0000004.ckpt", "step0000002.ckpt"]
    assert (folder / "abandoned" / "step0000006.ckpt").read_text() == "6", "nothing is lost"
    assert (folder / "last.ckpt").read_text() == "4" and (folder / "best.ckpt").read_text() == "2"
    other = make(tmp_path / "other")
    checkpoints.abandon_newer(other, folder / "step0000004.ckpt")
    assert not checkpoints.list_checkpoints(other) and len(list((other / "abandoned").iterdir())) == 3
    assert not (other / "last.ckpt").is_symlink() and not (other / "best.ckpt").is_symlink()


@pytest.mark.parametrize("step, kept", [(2, True), (4, True), (6, False), (None, True)])
def test_the_best_of_a_branch_is_linked_where_it_is(folder, step, kept):
    checkpoints.link(folder, checkpoints.BEST, checkpoints.checkpoint_path(folder, 2))
    checkpoints.abandon_newer(folder, checkpoints.checkpoint_path(folder, 4))
    assert checkpoints.link_best(folder, step) is kept is (folder / "best.ckpt").exists()
    assert not kept or checkpoints.step_of((folder / "best.ckpt").resolve()) == (step or 2)
    (folder / "best.ckpt").unlink(missing_ok=True)
    assert not checkpoints.link_best(folder, None)


def test_a_run_that_goes_back_behind_its_best_keeps_the_best_of_its_branch(finished, tokenizer_run, tmp_path):
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    folder = tmp_path / "run" / "checkpoints"
    first = steps(folder)[-1]
    back = [f"trainer.resume={checkpoints.checkpoint_path(folder, first)}", "trainer.accept_changes=true",
            "trainer.keep_last=1", "optim.lr=0.3", "optim.warmup_steps=0", "trainer.guard_patience=0"]
    train.main([TOKENIZER, *tokenizer_run(tmp_path / "run", *back)])
    last = torch.load(folder / "last.ckpt", weights_only=True)
    found = last["callbacks"]["Checkpoints"]
    values = {step + 1: value for step, value in read_metrics(tmp_path / "run")["val/psnr"].items()}
    best = max(values, key=values.get)
    assert checkpoints.step_of((folder / "best.ckpt").resolve()) == best == found["best_step"]
    assert found["best"] == pytest.approx(values[best], abs=1e-4)
    assert set(steps(folder)) == {best, max(values)}


@pytest.mark.parametrize("change, kept", [("data.val_list=train.txt", False), ("trainer.val_samples=1", True)])
def test_the_best_of_other_validation_clips_is_forgotten(load_tokenizer_run, change, kept):
    savers = []
    for overrides in ([], [change]):
        run = load_tokenizer_run(*overrides)
        module, data, extra = fit.BUILD["tokenizer"](run)
        trainer = fit.build_trainer(run, module.max_steps, extra)
        data.trainer = trainer
        trainer.datamodule = data
        savers.append(trainer.checkpoint_callback)
        savers[-1].setup(trainer, module, "fit")
    savers[0].best = 22.3
    savers[1].load_state_dict(savers[0].state_dict())
    assert savers[1].best == (22.3 if kept else None)


def test_a_changed_training_list_is_refused_on_resume(tokenizer_run, clips_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(clips_root, root)
    arguments = [TOKENIZER, *tokenizer_run(tmp_path / "run"), f"data.root={root}",
                 "curriculum=[{steps: 2, num_frames: 1, batch_size: 2}]"]
    train.main(arguments)
    rows = (root / "train.txt").read_text().splitlines()
    (root / "train.txt").write_text("\n".join(rows[:-1]) + "\n")
    counts = f"was trained on {len(rows)} clips, the training list now has {len(rows) - 1}"
    with pytest.raises(ValueError, match=counts):
        train.main(arguments)
    assert train.main([*arguments, "trainer.accept_changes=true"]) == 0


def test_each_rank_reads_its_share_of_a_folder(tmp_path, monkeypatch):
    temporary, final = tmp_path / ".partial", checkpoints.checkpoint_path(tmp_path, 2)
    temporary.mkdir()
    for number in range(5):
        torch.save(torch.randn(1000), temporary / f"rank{number}.pt")
    checkpoints.publish(temporary, final, {"world_size": 3})
    read, check = [], checkpoints._file_damage
    monkeypatch.setattr(checkpoints, "_file_damage", lambda path: (read.append(path.name), check(path))[1])
    assert [checkpoints.find_damage(final, rank, 3) for rank in range(3)] == [None] * 3
    assert sorted(read) == [f"rank{number}.pt" for number in range(5)]
    data = bytearray((final / "rank4.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (final / "rank4.pt").write_bytes(data)
    found = [checkpoints.find_damage(final, rank, 3) for rank in range(3)]
    assert sum(damage is not None for damage in found) == 1 and "rank4.pt" in next(filter(None, found))


def test_a_tokenizer_trained_again_in_its_place_is_noticed(finished, generator_run, data_config, tmp_path):
    shutil.copytree(finished / "model", tmp_path / "tokenizer")
    fields = dict(line.split(": ") for line in data_config.read_text().splitlines())
    overrides = generator_run(tmp_path / "run", "tokens=null", f"tokenizer={tmp_path / 'tokenizer'}",
                              *(f"data.{name}={value}" for name, value in fields.items()))
    state = generator.build(load_run(GENERATOR, overrides))[1].state_dict()
    generator.build(load_run(GENERATOR, overrides))[1].load_state_dict(state)
    tokenizer = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    tokenizer.decoder.conv_in.conv.bias.data += 1
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    data = generator.build(load_run(GENERATOR, overrides))[1]
    with pytest.raises(ValueError, match="tokens of another tokenizer: the weights at tokenizer= have changed since"):
        data.load_state_dict(state)
    earlier = {name: value for name, value in state.items() if name != "tokenizer_sha256"}
    data.load_state_dict(earlier)
    generator.build(load_run(GENERATOR, [*overrides, "trainer.accept_changes=true"]))[1].load_state_dict(state)


def test_tokens_of_clips_that_are_cut_otherwise_are_noticed(generator_run, tokens, tmp_path):
    shutil.copytree(tokens, tmp_path / "tokens")
    overrides = generator_run(tmp_path / "run", f"tokens={tmp_path / 'tokens'}")
    state = generator.build(load_run(GENERATOR, overrides))[1].state_dict()
    for split, message in (("train", "fps is 3.0 in train and None in val"), ("val", None)):
        path = tmp_path / "tokens" / split / "meta.json"
        meta = json.loads(path.read_text())
        path.write_text(json.dumps(meta | {"data": meta["data"] | {"fps": 3.0, "root": "moved"}}))
        if message:
            with pytest.raises(ValueError, match=message):
                generator.build(load_run(GENERATOR, overrides))
    data = generator.build(load_run(GENERATOR, overrides))[1]
    with pytest.raises(ValueError, match="clips that were cut otherwise: fps was None, is now 3.0. Restore"):
        data.load_state_dict(state)
    data.load_state_dict({name: value for name, value in state.items() if name != "clips_cut"})       # of earlier code


def test_another_text_tokenizer_is_noticed(generator_run, tokens, tmp_path):
    found = []
    for words in ("abc", "xyz"):
        train_text_tokenizer([f"{word} {words}" for word in words], tmp_path / words, 300)
        overrides = generator_run(tmp_path / "run", "model.condition=text", "model.num_condition_ids=300",
                                  "model.condition_len=8", "model.pad_token=0", f"text_tokenizer={tmp_path / words}")
        found.append(generator.build(load_run(GENERATOR, overrides))[1])
    found[0].load_state_dict(found[0].state_dict())
    with pytest.raises(ValueError, match="other ids of the class names: the text tokenizer at text_tokenizer="):
        found[1].load_state_dict(found[0].state_dict())


def test_another_machine_does_not_change_the_precision(generator_run, tmp_path, monkeypatch):
    overrides = generator_run(tmp_path, "trainer.precision=auto", "trainer.val_samples=0", "max_steps=2")
    monkeypatch.setattr(fit, "resolve_precision", lambda word: "32-true" if word == "auto" else word)
    train.main([GENERATOR, *overrides])
    assert load_run(tmp_path / "config.yaml").trainer.precision == "32-true", "what it was, not the word"
    monkeypatch.setattr(fit, "resolve_precision", lambda word: "bf16-mixed" if word == "auto" else word)
    with pytest.raises(ValueError, match="trainer.precision was '32-true', is now 'bf16-mixed'"):
        train.main([GENERATOR, *overrides])
    assert train.main([GENERATOR, *overrides, "trainer.precision=32-true"]) == 0
    old, new = (to_dict(load_run(GENERATOR, [*overrides, f"trainer.precision={word}"])) for word in ("auto", "32-true"))
    assert not config_changes(old, new), "earlier checkpoints do not say what it was"


@pytest.mark.parametrize("word", ["never", "elsewhere"])
def test_a_job_that_was_queued_again_goes_on_from_what_it_saved(tmp_path, monkeypatch, word):
    named = tmp_path / "elsewhere" / "step0000009.ckpt"
    named.parent.mkdir()
    named.touch()
    config = load_run(GENERATOR, [f"trainer.out={tmp_path / 'run'}", "trainer.resume="
                                  + ("never" if word == "never" else str(named))]).trainer
    given = None if word == "never" else str(named)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert find_checkpoint(config) == given, "it has saved nothing yet"
    own = checkpoints.checkpoint_path(tmp_path / "run" / "checkpoints", 4)
    own.parent.mkdir(parents=True)
    own.touch()
    assert find_checkpoint(config) == str(own.parent)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert find_checkpoint(config) == given


@pytest.mark.parametrize("clips, kept", [({}, None), ({"val_fvd_clips": 8}, None), ({"val_fvd_clips": 256}, 22.3)])
def test_the_best_of_another_judge_is_forgotten_also_of_checkpoints_that_do_not_name_theirs(clips, kept):
    saver = Checkpoints(Guard(1), Resume(load_run(GENERATOR)))
    saver.judge = ["val/gfvd", "min", 256]
    saver.on_load_checkpoint(None, None, {"hyper_parameters": {"run": {"trainer": clips}}})
    saver.load_state_dict({"best": 22.3})
    assert saver.best == kept
