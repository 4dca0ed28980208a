"""Public names: every package lists its own, and the ones that services build on are frozen here."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import blip3v

PACKAGES = [
    "blip3v",
    *(
        info.name
        for info in pkgutil.walk_packages(blip3v.__path__, "blip3v.")
        if info.ispkg and not any(part.startswith("_") for part in info.name.split("."))
    ),
]

# Removing a name breaks somebody's service; a new one is a promise. Either needs a line in CHANGELOG.md.
FROZEN = {
    "blip3v.bundle": [
        "Bundle",
        "BundleWriter",
        "GraphEntry",
        "GraphIO",
        "GraphPrecision",
        "KVGeometry",
        "Limits",
        "Manifest",
        "Precision",
        "Source",
        "TensorSpec",
        "VerifyReport",
        "WeightCount",
        "decoder_io",
        "open_bundle",
        "render_card",
        "verify_bundle",
        "video_encoder_io",
        "write_embeddings",
    ],
    "blip3v.runtime": [
        "Answer",
        "AnswerStream",
        "BackendReport",
        "CancelToken",
        "Chat",
        "Delta",
        "DeviceNeed",
        "Execution",
        "FinishReason",
        "Frame",
        "GenerationOptions",
        "OpenEstimate",
        "Timings",
        "TokenLogprob",
        "Usage",
        "VideoLM",
        "VideoLimits",
        "VideoTokens",
    ],
    "blip3v.text": [
        "RELEASED_SYSTEM_PROMPT",
        "RELEASED_TEMPLATE",
        "GenerationConfig",
        "Message",
        "Prompt",
        "StreamDecoder",
        "Tokenizer",
        "build_prompt",
        "continue_prompt",
        "render_chat",
        "splice",
        "train_tokenizer",
    ],
    "blip3v.video": [
        "IMAGE_SUFFIXES",
        "SAMPLING_RULES",
        "Clip",
        "PreprocessorConfig",
        "ResizeMode",
        "SampledFrame",
        "SamplingRule",
        "SpareDecoder",
        "VideoInput",
        "VideoLimits",
        "load_clip",
        "load_pixels",
        "preprocess",
        "sample_indices",
    ],
}


def by_kind(name: str) -> tuple[int, str]:
    """The order that ruff enforces: constants, classes, the rest, each alphabetically."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_lists_its_public_names(package: str):
    module = importlib.import_module(package)
    names = module.__all__
    assert names == sorted(set(names), key=by_kind)
    for name in names:
        assert hasattr(module, name), f"{package} lists {name} but does not define it"


@pytest.mark.parametrize("package", FROZEN)
def test_names_that_services_build_on_are_frozen(package: str):
    assert importlib.import_module(package).__all__ == FROZEN[package]


@pytest.mark.parametrize("package", FROZEN)
def test_public_names_are_documented(package: str):
    module = importlib.import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{package}.{name} has no docstring"
