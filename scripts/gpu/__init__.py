"""The stages of ``scripts/gpu_check.py``. They need torch and transformers, but no video decoder and no network."""
