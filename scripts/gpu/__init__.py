"""The stages of ``scripts/gpu_check.py``. They need torch, transformers and accelerate, but neither PyAV nor network."""
