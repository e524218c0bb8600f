"""Which precision a processor is found to multiply faster."""

import pytest
import torch

from nbp.system import processor
from nbp.system.processor import multiplies_bfloat16


@pytest.mark.parametrize(("amx", "instructions", "faster", "expected"), [
    (True, True, False, True), (False, True, True, True), (False, True, False, False), (False, False, True, False)])
def test_bfloat16_is_for_amx_and_for_what_measures_faster(monkeypatch, amx, instructions, faster, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(processor, "_bfloat16_measures_faster", lambda: faster)
    assert multiplies_bfloat16.__wrapped__("cpu") is expected
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert multiplies_bfloat16.__wrapped__("cpu") is False


@pytest.mark.parametrize(("seconds", "expected"), [((1.0, 2.0), False), ((1.0, 0.9), False), ((1.0, 0.5), True)])
def test_bfloat16_must_save_a_fifth_of_a_product(monkeypatch, seconds, expected):
    monkeypatch.setattr(processor, "in_turns",
                        lambda functions, repeats: dict(zip(functions, seconds, strict=True)))
    assert processor._bfloat16_measures_faster() is expected
