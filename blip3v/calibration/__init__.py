"""Calibration and the recipe of quantisation, on the PyTorch reference: what a graph's integers are chosen by.

    films or videos -> collect.py -> statistics.py (a folder)
    -> plan.py: smoothing.py and rotation.py (exact), ranges.py and rounding.py (integers, quantized.py)

Not here: how integers are stored in a graph (``export/weight_formats.py``), and what they do to answers
(``export/accuracy.py``).
"""

from __future__ import annotations

__all__: list[str] = []
