"""What ONNX Runtime's CPU provider makes of stored weights, by their format."""

from __future__ import annotations

from blip3v.bundle import Precision
from blip3v.runtime import cpu_rules

FP32, FP16, MIXED = map(Precision.parse, ("fp32", "fp16", "video_encoder=fp16,decoder=fp32"))


def test_fp16_weights_are_widened_and_fp32_ones_are_not() -> None:
    assert cpu_rules.resident_bytes(100, FP16.decoder) == 200
    assert cpu_rules.resident_bytes(100, FP32.decoder) == 100
    assert (cpu_rules.widened_bytes(100, FP16.decoder), cpu_rules.widened_bytes(100, FP32.decoder)) == (100, 0)


def test_large_fp32_weights_stay_in_their_file_and_large_fp16_ones_do_not() -> None:
    assert not cpu_rules.use_mmap(2**30, FP32.decoder)
    assert cpu_rules.use_mmap(2**30 + 1, FP32.decoder)
    assert cpu_rules.resident_bytes(2**30 + 1, FP32.decoder) == 0
    assert not cpu_rules.use_mmap(2**31, FP16.decoder)
    assert cpu_rules.resident_bytes(2**31, FP16.decoder) == 2**32


def test_people_are_told_what_is_stored_and_computed() -> None:
    assert cpu_rules.stored_and_computed(FP16) == "stored fp16, computed fp32 on ONNX Runtime CPU"
    mixed = "stored video_encoder=fp16,decoder=fp32, computed fp32 on ONNX Runtime CPU"
    assert cpu_rules.stored_and_computed(MIXED) == mixed
