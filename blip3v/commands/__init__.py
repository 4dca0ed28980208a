"""The verbs of the command line, one file each, imported when called. Besides them, only ``cli.py`` imports click."""

__all__: list[str] = []  # programs, not a library
