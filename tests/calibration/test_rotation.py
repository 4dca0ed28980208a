from __future__ import annotations

import numpy as np
import pytest
import torch

from blip3v.calibration.rotation import Rotation


@pytest.mark.parametrize("size", [16, 32, 48, 80, 96, 112, 128, 384, 3072])
def test_a_rotation_is_orthogonal(size: int) -> None:
    """112 = 28 * 4 has no Hadamard matrix that is known here."""
    matrix = Rotation(size, "R").matrix().double().numpy()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-5)


@pytest.mark.parametrize("size", [16, 48, 80, 96, 3072])
def test_a_hadamard_matrix_has_entries_of_one_size(size: int) -> None:
    matrix = Rotation(size, "R").matrix().abs()
    torch.testing.assert_close(matrix, torch.full_like(matrix, size**-0.5))


@pytest.mark.parametrize("size", [96, 112])
def test_a_rotation_multiplies_from_the_right(size: int) -> None:
    rotation, x = Rotation(size, "R"), torch.randn(3, 5, size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotation(x), x @ rotation.matrix(), rtol=1e-5, atol=1e-5)


def test_rotations_differ_by_name_and_are_the_same_each_time() -> None:
    first, again, other = (Rotation(64, name).matrix() for name in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_outlier_is_spread_over_all_channels() -> None:
    x = torch.zeros(128)
    x[17] = 1000.0
    torch.testing.assert_close(Rotation(128, "R")(x).abs(), torch.full((128,), 1000 / 128**0.5))
