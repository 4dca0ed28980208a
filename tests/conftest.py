"""Puts this folder on the path: ``released_files.py`` is for tests of several parts."""
