"""What back ends make of stored weights, by their format; and which one ``auto`` takes."""

from __future__ import annotations

import pytest

from blip3v.bundle import Precision
from blip3v.errors import ProviderError, UsageError
from blip3v.runtime.backends import backend_names, choose_backend, get_backend, parse_backends, stored_and_computed
from blip3v.runtime.backends.onnxruntime import resident_bytes, use_mmap

FP32, FP16, MIXED = map(Precision.parse, ("fp32", "fp16", "video_encoder=fp16,decoder=fp32"))


def test_fp16_weights_are_widened_and_fp32_ones_are_not() -> None:
    assert resident_bytes(100, FP16.decoder) == 200
    assert resident_bytes(100, FP32.decoder) == 100


def test_large_fp32_weights_stay_in_their_file_and_large_fp16_ones_do_not() -> None:
    assert not use_mmap(2**30, FP32.decoder)
    assert use_mmap(2**30 + 1, FP32.decoder)
    assert resident_bytes(2**30 + 1, FP32.decoder) == 0
    assert not use_mmap(2**31, FP16.decoder)
    assert resident_bytes(2**31, FP16.decoder) == 2**32


def test_people_are_told_what_is_stored_and_computed() -> None:
    assert stored_and_computed(FP16) == "stored fp16, computed fp32 on ONNX Runtime CPU or fp32 on OpenVINO CPU"
    mixed = "stored video_encoder=fp16,decoder=fp32, computed fp32 on ONNX Runtime CPU or fp32 on OpenVINO CPU"
    assert stored_and_computed(MIXED) == mixed


def test_people_are_told_what_computes_graphs_for_tensorrt() -> None:
    text = stored_and_computed(FP16, "tensorrt")
    assert text.startswith("stored fp16, computed fp16 on TensorRT")
    assert text.endswith("or fp32 on ONNX Runtime CPU")


def test_auto_takes_the_highest_rank_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend("auto", "video_encoder").name == "openvino"
    assert choose_backend("auto", "decoder").name == "onnxruntime"

    monkeypatch.setattr(get_backend("openvino"), "is_installed", lambda: False)
    assert choose_backend("auto", "video_encoder").name == "onnxruntime"


def test_auto_does_not_pass_over_an_engine_that_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ProviderError("installed twice")

    monkeypatch.setattr(get_backend("onnxruntime"), "check_installed", broken)
    with pytest.raises(ProviderError, match="installed twice"):
        choose_backend("auto", "decoder")
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setattr(get_backend(name), "is_installed", lambda: False)
    with pytest.raises(ProviderError, match="installed twice"):  # what the first would say
        choose_backend("auto", "decoder")


def test_a_back_end_that_was_asked_for_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ProviderError("not here")

    monkeypatch.setattr(get_backend("openvino"), "check_installed", missing)
    with pytest.raises(ProviderError, match="not here"):
        choose_backend("openvino", "video_encoder")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", {"video_encoder": "auto", "decoder": "auto"}),
        ("openvino", {"video_encoder": "openvino", "decoder": "openvino"}),
        ("decoder=openvino", {"video_encoder": "auto", "decoder": "openvino"}),
        ("video_encoder=openvino, decoder=onnxruntime", {"video_encoder": "openvino", "decoder": "onnxruntime"}),
        ("video_encoder=openvino:gpu.1", {"video_encoder": "openvino:gpu.1", "decoder": "auto"}),
        ("onnxruntime-cuda", {"video_encoder": "onnxruntime-cuda", "decoder": "onnxruntime-cuda"}),
    ],
)
def test_back_ends_are_named_for_both_graphs_or_each(text: str, expected: dict[str, str]) -> None:
    assert parse_backends(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vulkan", "'vulkan' is unknown; allowed: auto, onnxruntime"),
        ("", "'' is unknown"),
        ("vision=openvino", "'vision' is not a graph"),
        ("decoder=openvino,decoder=auto", "'decoder' is named twice"),
        ("decoder=", "'' is unknown"),
        ("auto:cpu", "'auto:cpu' is unknown"),
        ("onnxruntime_cuda", "'onnxruntime_cuda' is unknown; allowed: auto, onnxruntime, onnxruntime-cuda"),
    ],
)
def test_unknown_back_ends_and_graphs_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_backends(text)


def test_every_back_end_is_named_after_its_module_and_keeps_the_protocol() -> None:
    for name in backend_names():
        backend = get_backend(name)
        assert backend.name == name
        assert get_backend(f"{name}:{backend.devices[0]}") is backend
        assert backend.targets
        assert all(backend.refusal(spec) is None or name in str(backend.refusal(spec)) for spec in FP16.graphs.values())


def test_a_back_end_that_does_not_run_a_bundles_target_is_refused_with_those_that_do() -> None:
    for name in ("openvino", "onnxruntime-cuda"):
        expected = f"{name} does not run graphs exported for tensorrt; export with the target onnxruntime, or choose"
        with pytest.raises(ProviderError, match=f"{expected} the back end .*onnxruntime"):
            choose_backend(name, "decoder", target="tensorrt")
    with pytest.raises(ProviderError, match="openvino:npu does not run graphs exported for tensorrt"):
        choose_backend("auto", "decoder", "npu", target="tensorrt")
    assert choose_backend("auto", "decoder", "cpu", target="tensorrt").name == "onnxruntime"


@pytest.mark.parametrize("device", ["cuda:1", "CUDA:1", "cuda.1"])
def test_a_second_nvidia_gpu_is_refused_with_what_makes_it_the_first(device: str) -> None:
    """No back end takes another GPU than the first, so none may take a number and compute on the first."""
    expected = r"^device '{}' names an NVIDIA GPU by its number; every back end runs on the first that CUDA shows; "
    advice = r"set CUDA_VISIBLE_DEVICES=1 in the environment before the program starts, and choose `device='cuda'`$"
    for name in ("auto", *backend_names()):
        with pytest.raises(UsageError, match=expected.format(device) + advice):
            choose_backend(name, "decoder", device)
        if name != "auto":
            with pytest.raises(UsageError, match=expected.format(device) + advice):
                get_backend(f"{name}:{device}")
    with pytest.raises(UsageError, match=expected.format("cuda:0") + r"choose `device='cuda'`$"):
        choose_backend("auto", "decoder", "cuda:0")
