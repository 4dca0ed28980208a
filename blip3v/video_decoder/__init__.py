"""The program that decodes video files: a process of its own, started only by ``blip3v.video``.

``python -m blip3v.video_decoder`` speaks the protocol of ``__main__.py``. It is separate from ``blip3v.video`` so that
it loads neither numpy nor the rest of the package, since every video pays for its start. Only ``limits`` and ``ranges``
are used on the caller's side too.
"""

__all__: list[str] = []  # a program, not a library
