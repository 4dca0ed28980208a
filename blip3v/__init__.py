"""blip3v: takes BLIP-3-Video (xGen-MM-Vid) from a PyTorch checkpoint to an edge machine without PyTorch."""

__version__ = "0.1.0"

__all__ = ["__version__"]
