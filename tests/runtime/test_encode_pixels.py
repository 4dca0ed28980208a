"""``VideoLM.encode_pixels`` and arrays of other libraries on the back ends of a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_stand_in import ArrayOnGpu, FakeDevice

from blip3v.bundle import open_bundle
from blip3v.errors import CancelledError, RequestError, UsageError
from blip3v.runtime import CancelToken, GenerationOptions, VideoLM, VideoTokens
from blip3v.runtime.gpu_array import GpuArray
from blip3v.video import load_pixels, preprocess

torch = pytest.importorskip("torch")
GIVEN = np.linspace(-1, 1, 4 * 3 * 16 * 16, dtype=np.float32).reshape(4, 3, 16, 16)


def test_pixels_that_were_made_elsewhere_give_the_tokens_of_the_video(
    lm: VideoLM, bundle_path: Any, film: np.ndarray, video: VideoTokens
) -> None:
    bundle = open_bundle(bundle_path)
    pixels, clip = load_pixels(film, num_frames=bundle.config.num_frames, config=bundle.preprocessor)
    frames = [(frame.index, frame.time_s) for frame in clip.sampled]
    for given in (pixels, torch.from_numpy(pixels), torch.from_numpy(pixels).half().float()):
        found = lm.encode_pixels(given, frames=frames)
        assert np.allclose(found.tokens, video.tokens, atol=1e-2)
        assert (found.frames, found.encoder) == (video.frames, lm.encoder)
        assert found.preprocess_s == found.file_decode_s == 0 < found.encode_s
    assert np.array_equal(lm.encode_pixels(pixels).tokens, video.tokens)
    assert np.array_equal(preprocess(clip.frames, bundle.preprocessor), pixels)
    assert lm.ask(lm.encode_pixels(pixels), "Why?").token_ids == lm.ask(video, "Why?").token_ids


def test_torch_s_pixels_of_any_strides_and_in_fp16_are_taken_from_host_memory(lm: VideoLM) -> None:
    expected = lm.encode_pixels(GIVEN)
    assert expected.frames == ((0, None), (1, None), (2, None), (3, None))
    last = torch.from_numpy(GIVEN).contiguous(memory_format=torch.channels_last)
    assert np.array_equal(lm.encode_pixels(last).tokens, expected.tokens)
    half = torch.from_numpy(GIVEN).half()
    assert np.allclose(lm.encode_pixels(half).tokens, expected.tokens, atol=1e-2)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (GIVEN.tolist(), r"pixels has type list; float16 or float32 of shape \(4, 3, 16, 16\) is expected, as blip3v"),
        ("film.mp4", "pixels has type str; .* a video or raw frames go to encode"),
        (GIVEN[:3], r"pixels is float32 of shape \(3, 3, 16, 16\); "),
        (GIVEN[None], r"of shape \(1, 4, 3, 16, 16\)"),
        (np.zeros((4, 16, 16, 3), np.uint8), r"pixels is uint8 of shape \(4, 16, 16, 3\); .* raw frames go to encode"),
        (GIVEN.astype(np.float64), "pixels is float64"),
        (GIVEN * 127.5 + 127.5, r"pixels has values from 0 to 255; -1 to 1 is expected, as blip3v.video.preprocess"),
        (GIVEN * np.nan, "pixels has values from nan to nan"),
        (torch.zeros(4, 3, 16, 16, dtype=torch.bfloat16), r"pixels cannot be read through DLPack \(.*float32 of shape"),
        (torch.zeros(4, 3, 16, 16, requires_grad=True), r"pixels cannot be read .*use tensor.detach\(\)"),
        (torch.zeros(4, 3, 16, 16, device="meta"), "pixels cannot be read"),
    ],
    ids=["list", "path", "frames", "batch", "raw", "double", "0-to-255", "nan", "bfloat16", "gradient", "meta"],
)
def test_other_pixels_are_refused(lm: VideoLM, pixels: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        lm.encode_pixels(pixels)


@pytest.mark.parametrize("frames", [((0, 0.0),), 5, "abcd", [(0, 0.0)] * 3 + [("a", 0.0)]], ids=str)
def test_another_record_of_the_frames_is_refused(lm: VideoLM, frames: Any) -> None:
    with pytest.raises(RequestError, match=r"frames is .*; 4 pairs of \(number, time in seconds\) are expected"):
        lm.encode_pixels(GIVEN, frames=frames)


def test_arrays_on_a_gpu_are_refused_by_name(lm: VideoLM, video: VideoTokens, backend: str) -> None:
    gpu = FakeDevice()
    pixels, tokens = ArrayOnGpu(gpu, GIVEN), ArrayOnGpu(gpu, video.tokens)
    there = VideoTokens(tokens=tokens, frames=video.frames, encoder=lm.encoder)
    advice = r"host memory alone; pass a copy in host memory, or open a bundle with `backend='tensorrt'` or"
    with pytest.raises(RequestError, match=rf"the pixels are on a GPU, and {backend} takes them from {advice}"):
        lm.encode_pixels(pixels)
    for ask in (lm.ask, lm.stream):
        with pytest.raises(
            RequestError, match=rf"the video tokens are on a GPU, and {backend} takes them from {advice}"
        ):
            ask(there, "Why?")
    assert pixels.num_host_copies == tokens.num_host_copies == 0


def test_tokens_of_torch_in_host_memory_are_copied(lm: VideoLM, video: VideoTokens) -> None:
    own = torch.from_numpy(video.tokens.copy())
    made = VideoTokens(tokens=own, frames=video.frames, encoder=lm.encoder)
    own.zero_()
    assert np.array_equal(made.tokens, video.tokens)
    options = GenerationOptions(max_new_tokens=4)
    assert lm.ask(made, "Why?", options=options).token_ids == lm.ask(video, "Why?", options=options).token_ids


def test_encoding_pixels_ends_with_its_request_and_its_model(bundle_path: Any, lm: VideoLM) -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError):
        lm.encode_pixels(GIVEN, cancel=cancel)
    with pytest.raises(RequestError, match="timeout_s is 0"):
        lm.encode_pixels(GIVEN, timeout_s=0)
    closed = VideoLM.open(bundle_path, backend="onnxruntime", threads=1)
    closed.close()
    with pytest.raises(UsageError, match="the VideoLM is closed"):
        closed.encode_pixels(GIVEN)


def test_torch_s_own_capsules_are_read() -> None:
    """The arrays of the fake GPU hand out numpy's."""

    class OfTorch:
        def __init__(self, tensor: Any) -> None:
            self.tensor = tensor

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, *, stream: Any = None) -> Any:
            return self.tensor.__dlpack__()

    gpu = FakeDevice()
    address = gpu.allocate(3 * 8 * 128 * 2, "device")
    tensor = torch.from_numpy(gpu.view(address, 3 * 8 * 128 * 2, "device").view(np.float16).reshape(3, 8, 128))
    memory = GpuArray(OfTorch(tensor[1:])).memory()
    assert (memory.shape, memory.dtype, memory.address) == ((2, 8, 128), "float16", address + 2048)
    assert memory[1:].address == address + 4096
    for wrong in (tensor.mT, tensor[:, 1:2]):
        with pytest.raises(RequestError, match="has gaps or another order of axes"):
            GpuArray(OfTorch(wrong))
    with pytest.raises(RequestError, match="tokens is bfloat16 of shape"):
        VideoTokens(tokens=OfTorch(tensor[0].view(torch.bfloat16)), frames=(), encoder="abc")
    with pytest.raises(RequestError, match=r"cannot be read through DLPack: .*use tensor.detach"):
        GpuArray(OfTorch(tensor.float().requires_grad_()))
