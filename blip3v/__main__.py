"""``python -m blip3v`` runs the command line."""

from __future__ import annotations

from blip3v.cli import main

if __name__ == "__main__":
    main()
