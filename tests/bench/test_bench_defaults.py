"""The bundles that are measured by default."""

from __future__ import annotations

from pathlib import Path

from bench_bundles import SmallBundles
from bench_samples import SMALL_ROWS

from blip3v.bench import default_bundles
from blip3v.bundle import open_bundle


def test_bundles_are_kept_and_damaged_ones_exported_again(made: SmallBundles) -> None:
    cache, models, bundles = made.cache, made.models, made.paths
    before = {path: path.stat().st_ino for path in bundles}
    lines: list[str] = []
    assert default_bundles(cache, models=models, rows=SMALL_ROWS, progress=lines.append) == bundles
    assert {path: path.stat().st_ino for path in bundles} == before
    assert lines == [f"using {path}" for path in bundles]
    (bundles[1] / "config.json").write_text("{}")
    assert default_bundles(cache, models=models, rows=SMALL_ROWS[1:], progress=lines.append) == bundles[1:]
    assert "is damaged and exported again" in lines[2]
    open_bundle(bundles[1])


def test_the_new_encoder_is_marked_untrained_in_its_manifest(bundles: list[Path]) -> None:
    sources = [open_bundle(path).manifest.source for path in bundles]
    assert [source.trained for source in sources] == [True, False]
    assert not any(source.random_init for source in sources)
    assert "-16tok-" in bundles[1].name
