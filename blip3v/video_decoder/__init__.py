"""The program that decodes video files: a process of its own, started by ``blip3v.video`` and by nobody else.

``python -m blip3v.video_decoder`` speaks the protocol of ``__main__.py``. It stands apart from ``blip3v.video`` to
load neither numpy nor the rest of the package: its start is paid at every video. Only ``limits`` and ``ranges`` are
used on the caller's side too.
"""

__all__: list[str] = []  # a program, not a library
