"""blip3v as a model of lmms-eval, the field's own harness. It finds ``manifest.py`` by an entry point of this package.

``docs/evaluation.md`` has the command. ``model.py`` imports lmms-eval and PyTorch, and only the harness imports it.
"""

from __future__ import annotations

from blip3v.evaluation.harness.manifest import model_manifest

__all__ = ["model_manifest"]
