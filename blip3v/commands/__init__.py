"""The verbs of the command line, one file each, imported when called. Nothing below this package imports click."""

__all__: list[str] = []  # programs, not a library
