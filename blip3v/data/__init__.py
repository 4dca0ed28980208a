"""The synthetic film set, its files, and the reader for a user's own clips. Nothing here needs PyTorch."""
