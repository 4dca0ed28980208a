"""The stages of ``scripts/gpu_check.py``: they need torch, transformers and accelerate, but no PyAV and no network."""
