import pytest

from blip3v.data.film import Film, make_film


@pytest.fixture(scope="session")
def train_films() -> list[Film]:
    return [make_film(seed, "train") for seed in range(3000)]
