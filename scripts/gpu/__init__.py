"""The stages of ``scripts/gpu_check.py``. Needs torch and transformers; neither a video decoder nor the network."""
