"""What lmms-eval reads before it knows whether the model is wanted: its name, and where its class is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

__all__ = ["model_manifest"]


def model_manifest() -> ModelManifest:
    """The entry of this package in the group ``lmms_eval.models``."""
    from lmms_eval.models.registry_v2 import ModelManifest  # of an extra; whoever calls this has it

    return ModelManifest(model_id="blip3v", simple_class_path="blip3v.evaluation.harness.model.Blip3vModel")
