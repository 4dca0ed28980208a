"""blip3v beside other inference stacks: the same random weights, each in its own environment, measured in turns.

``run.py`` measures, ``table.py`` writes the page. Each ``peer_*.py``, and ``ours.py``, is one stack: it runs in an
environment with only its own packages, and imports nothing of blip3v (``ours.py`` does) and nothing heavy at the top.
"""
