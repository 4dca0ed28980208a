"""Puts this folder on the import path: tests of several parts use ``released_files.py``."""
