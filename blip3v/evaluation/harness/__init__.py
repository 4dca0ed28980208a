"""blip3v as a model of lmms-eval, the field's own harness. It finds ``manifest.py`` by an entry point of this package.

    lmms-eval --model blip3v --model_args model=MODEL_OR_BUNDLE --tasks nextqa_mc_test --batch_size 8

``model.py`` imports lmms-eval and PyTorch, and is imported by the harness alone.
"""

from __future__ import annotations

from blip3v.evaluation.harness.manifest import model_manifest

__all__ = ["model_manifest"]
