"""Frames against an independent renderer: polygons and circles, sampled at 8 x 8 points in every pixel."""

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt
import pytest

from blip3v.data.film import COLOURS, SHAPES, Background, Film, FilmObject, make_film
from blip3v.data.motion import ASPECT, Path
from blip3v.data.render import render

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def corners(shape: str) -> Floats:
    """Outline (N, 2) in units of the radius, y down."""
    if shape == "square":
        return 0.84 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    if shape == "diamond":
        return 1.15 * np.array([(0, -1), (1, 0), (0, 1), (-1, 0)])
    if shape == "triangle":
        return 1.22 * np.array([(np.cos(a), np.sin(a)) for a in np.radians([-90, 30, 150])])
    if shape == "star":
        inner = 1.22 * np.cos(np.radians(72)) / np.cos(np.radians(36))
        return np.array(
            [
                (r * np.cos(a), r * np.sin(a))
                for k in range(10)
                for r, a in [((1.22, inner)[k % 2], np.radians(-90 + 36 * k))]
            ]
        )
    a, b = 1.04, 0.36
    return np.array(
        [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]
    )


def inside(shape: str, x: Floats, y: Floats) -> Bools:
    if shape == "circle":
        return x * x + y * y <= 1
    odd = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    outline = corners(shape)
    for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        if y0 != y1:
            odd ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return odd


def reference(film: Film, time: float, height: int, width: int, fine: int = 8) -> Floats:
    x = (np.arange(width * fine) + 0.5) * ASPECT / (width * fine)
    y = (np.arange(height * fine) + 0.5)[:, None] / (height * fine)
    tone = np.array(film.background.tone)
    across = np.linspace(-1, 1, width) * film.background.slope[0]
    down = np.linspace(-1, 1, height)[:, None] * film.background.slope[1]
    picture = (across + down)[..., None] + tone
    for item in film.objects:
        if item.visible(time):
            (cx, cy), r = item.path.positions([time])[0], item.radius
            covered = inside(item.shape, (x - cx) / r, (y - cy) / r)
            share = covered.reshape(height, fine, width, fine).mean(axis=(1, 3))[..., None]
            picture = picture * (1 - share) + share * np.array(COLOURS[item.colour])
    return picture


def film_of(shape: str, radius: float = 0.12, x: float = 0.6, y: float = 0.45) -> Film:
    item = FilmObject("white", shape, "small", radius, Path("still", (), (0.0,), ((x, y),)))
    return Film(0, "train", "motion", False, 3.0, 24, Background((40.0, 40.0, 40.0), (0.0, 0.0)), (item,))


@pytest.mark.parametrize("size", [(64, 64), (96, 128), (75, 100)], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_shape_matches_supersampling(shape: str, size: tuple[int, int]) -> None:
    film = film_of(shape, radius=0.19)
    drawn = render(film, np.array([0.0]), *size)[0].astype(float)
    apart = np.abs(drawn - reference(film, 0.0, *size))
    assert apart.mean() < 0.6
    # At tips thinner than a pixel, a distance is not an area.
    assert np.quantile(apart, 0.99) < 45


def test_whole_films_match_supersampling() -> None:
    for seed in range(12):
        film = make_film(seed, "train")
        for time in (0.0, 0.31, 1.0):
            drawn = render(film, np.array([time]), 64, 64)[0].astype(float)
            assert np.abs(drawn - reference(film, time, 64, 64)).mean() < 0.8


def test_square_render_is_the_film_squashed() -> None:
    film = make_film(3, "train")
    wide = render(film, np.array([0.4]), 192, 256)[0].reshape(64, 3, 64, 4, 3).mean(axis=(1, 3))
    square = render(film, np.array([0.4]), 64, 64)[0]
    assert np.abs(wide - square).mean() < 1.0


def test_frames_do_not_depend_on_their_neighbours() -> None:
    film = make_film(11, "test")
    times = np.linspace(0, 1, 9)
    together = render(film, times, 48, 64)
    assert together.shape == (9, 48, 64, 3)
    assert together.dtype == np.uint8
    for time, frame in zip(times, together, strict=True):
        assert (render(film, np.array([time]), 48, 64)[0] == frame).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (8, 8), (31, 17)])
def test_any_size_can_be_drawn(height: int, width: int) -> None:
    assert render(make_film(5, "train"), np.array([0.0, 1.0]), height, width).shape == (2, height, width, 3)


def test_no_times_give_no_frames() -> None:
    assert render(make_film(5, "train"), np.array([]), 8, 8).shape == (0, 8, 8, 3)


def test_objects_are_drawn_only_while_in_view() -> None:
    film = next(f for f in (make_film(seed, "train") for seed in range(99)) if f.family == "appear")
    late = next(item for item in film.objects if item.appears is not None)
    assert late.appears is not None
    without = dataclasses.replace(film, objects=tuple(item for item in film.objects if item is not late))
    times = np.array([late.appears - 1e-6, late.appears])
    before, after = render(film, times, 64, 64)
    assert (before == render(without, times[:1], 64, 64)[0]).all()
    assert (after != render(without, times[1:], 64, 64)[0]).any(axis=-1).sum() > 40


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(SHAPES, 2)), ids=str)
def test_small_shapes_differ_in_many_pixels_of_a_small_frame(one: str, other: str) -> None:
    """At 64 x 64 and the smallest radius, even if the other shape is shifted or scaled to look most similar."""
    picture = render(film_of(one, 0.11), np.array([0.0]), 64, 64)[0, ..., 0].astype(float)
    closest = min(
        np.abs(picture - render(film_of(other, radius, 0.6 + dx, 0.45 + dy), np.array([0.0]), 64, 64)[0, ..., 0]).sum()
        for radius in (0.1, 0.11, 0.12)
        for dx in (-0.02, 0, 0.02)
        for dy in (-0.015, 0, 0.015)
    )
    assert closest / (245 - 40) > 10  # ten whole pixels of about 130
