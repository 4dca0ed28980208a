"""The model card."""

from __future__ import annotations

import dataclasses

from fake_bundle import FP16_TEXT, fake_manifest

from blip3v.bundle import render_card


def test_the_card_describes_the_bundle_and_how_to_run_it() -> None:
    card = render_card(fake_manifest(), FP16_TEXT)
    assert card.startswith("# tiny with tokenlearner, 32 video tokens, fp16\n")
    for text in ("from blip3v.runtime import VideoLM", "blip3v ask VIDEO", "CC-BY-NC-4.0", "Apache-2.0", "| 0.0015 |"):
        assert text in card
    assert f"| precision | {FP16_TEXT} |" in card


def test_the_card_of_random_weights_warns() -> None:
    source = dataclasses.replace(fake_manifest().source, random_init=True)
    card = render_card(dataclasses.replace(fake_manifest(), source=source, parity=None), FP16_TEXT)
    assert "answers are meaningless" in card
    assert "Not checked" in card


def test_python_in_the_card_is_valid() -> None:
    code = render_card(fake_manifest(), FP16_TEXT).split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
