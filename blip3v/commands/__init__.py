"""The verbs of the command line, one file each, imported when called. Nothing below this package imports click."""
