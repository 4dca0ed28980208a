"""Puts this folder on the path: tests of several parts use ``released_files.py``."""
