"""Progress yields everything, reaches its end and says how long the rest takes."""

from nbp.system.progress import LogLines, progress


def test_progress_yields_everything_and_says_where_it_is(capsys):
    assert list(progress(range(3), 5, "count", "things", initial=2)) == [0, 1, 2]
    assert "count: 5/5 things" in capsys.readouterr().err


def test_a_log_gets_a_line_every_ten_seconds(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    lines = LogLines(100, "train", "steps", initial=20)
    for step in range(21, 61):
        clock[0] += 0.5
        lines.show(step, lambda step=step: f", loss {step}.0")
    assert capsys.readouterr().err.splitlines() == ["train: 40/100 steps, 2.00 steps/s, 30 s left, loss 40.0",
                                                    "train: 60/100 steps, 2.00 steps/s, 20 s left, loss 60.0"]
    lines.show(61, now=True)
    assert capsys.readouterr().err == "train: 61/100 steps, 2.05 steps/s, 19 s left\n"
