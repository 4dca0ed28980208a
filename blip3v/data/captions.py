"""Captions of a whole film, and of the frame at one moment. Objects are named from left to right."""

from __future__ import annotations

from blip3v.data.film import MOMENTS, Film, FilmObject
from blip3v.data.motion import ASPECT

__all__ = ["film_caption", "frame_caption"]

_PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the centre", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
_BOUNCES = {1: "once", 2: "twice", 3: "three times"}


def film_caption(film: Film) -> str:
    """What happens in ``film``, in one sentence."""
    first, second = sorted(film.objects, key=lambda item: item.path.points[0])
    if film.family == "order":
        first, second = sorted(film.objects, key=lambda item: item.path.times[0])
        return f"{_named(first)} {_action(first)} first, then {_named(second)} {_action(second)}."
    if film.family == "speed":
        faster = max(film.objects, key=_travel)
        parts = [f"{_named(i)} {_action(i)} {'fast' if i is faster else 'slowly'}" for i in (first, second)]
        return f"{parts[0]} while {parts[1]}."
    return f"{_named(first)} {_action(first)} while {_named(second)} {_action(second)}."


def frame_caption(film: Film, time: float) -> str:
    """What is in view at ``time``, a fraction of the film: colour, shape, size and place of each object in view."""
    seen = [(item, *item.path.positions([time])[0]) for item in film.objects if item.visible(time)]
    if not seen:
        return "nothing is in view."
    parts = [f"{_named(item)} {_place(x, y)}" for item, x, y in sorted(seen, key=lambda entry: entry[1])]
    return " and ".join(parts) + "."


def _named(item: FilmObject) -> str:
    return f"a {item.size} {item.name}"


def _place(x: float, y: float) -> str:
    return _PLACES[min(2, int(3 * y))][min(2, int(3 * x / ASPECT))]


def _travel(item: FilmObject) -> float:
    (from_x, from_y), (to_x, to_y) = item.path.points[0], item.path.points[-1]
    return (to_x - from_x) ** 2 + (to_y - from_y) ** 2


def _action(item: FilmObject) -> str:
    legs = item.path.legs
    for verb, time in (("appears", item.appears), ("disappears", item.disappears)):
        if time is not None:
            return f"{verb} {next(name for name, (low, high) in MOMENTS.items() if low <= time <= high)}"
    if item.path.kind == "still":
        return "stays still"
    if item.path.kind == "bounce":
        return f"bounces {_BOUNCES[len(legs) - 1]}, moving {legs[0]} then {legs[1]}"
    # A reversal looks the same as one bounce, so both are described in the same words.
    if item.path.kind == "turn" and legs[0] != legs[1] and set(legs) in ({"left", "right"}, {"up", "down"}):
        return f"bounces once, moving {legs[0]} then {legs[1]}"
    return f"moves {' then '.join(legs)}"
