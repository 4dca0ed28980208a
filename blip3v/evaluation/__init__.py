"""Accuracy: exact match per kind of question on the held-out films, for model folders and bundles alike."""

from __future__ import annotations

from blip3v.evaluation.exact_match import Report, evaluate

__all__ = ["Report", "evaluate"]
