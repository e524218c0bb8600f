"""--profile traces a few steps and changes nothing else."""

import json

from nbp import train

GENERATOR = "tests/fixtures/runs/generator.yaml"


def test_a_few_steps_are_traced(generator_run, tmp_path, capsys):
    plain = train.main([GENERATOR, *generator_run(tmp_path / "plain", "max_steps=6")])
    assert plain == train.main([GENERATOR, *generator_run(tmp_path / "traced", "max_steps=6"), "--profile"]) == 0
    events = json.loads((tmp_path / "traced" / "profile" / "trace.json").read_text())["traceEvents"]
    assert {"aten::linear", "aten::scaled_dot_product_attention"} <= {event.get("name") for event in events}
    assert "Self CPU" in capsys.readouterr().out and not (tmp_path / "plain" / "profile").exists()
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("plain", "traced")]
    assert weights[0] == weights[1]
