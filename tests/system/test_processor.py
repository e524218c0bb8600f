"""Which precision a processor is known to multiply faster, and what it is called."""

import pytest
import torch

from nbp.system import processor
from nbp.system.processor import multiplies_bfloat16, processor_name


@pytest.mark.parametrize(("amx", "instructions", "vendor", "expected"), [
    (True, True, "GenuineIntel", True), (False, True, "AuthenticAMD", True), (False, True, "GenuineIntel", False),
    (False, False, "AuthenticAMD", False), (False, True, None, False)])
def test_bfloat16_is_for_amx_and_for_amd(monkeypatch, amx, instructions, vendor, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(processor, "processor_facts", lambda: {"vendor_id": vendor} if vendor else {})
    assert multiplies_bfloat16.__wrapped__("cpu") is expected
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert multiplies_bfloat16.__wrapped__("cpu") is False


def test_a_processor_has_a_name(monkeypatch):
    assert processor_name()
    monkeypatch.setattr(processor, "processor_facts", lambda: {"model name": "AMD  EPYC 9R14"})
    assert processor_name() == "AMD  EPYC 9R14"
