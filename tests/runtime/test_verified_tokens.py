"""On every back end, several tokens of a row in one run give the logits after each, and those that are wrong go again.

The seed is one whose rows are not near a tie where the cache is in int8; see ``is_near_a_tie``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_graphs import Weights, close, reference_logits, toy_config, write_decoder
from toy_parts import BACKENDS, FAKE_CUDA, PAIRS, DecoderMaker, graph_file, open_backend

from blip3v.bundle.graph_io import decoder_io
from blip3v.runtime.cancellation import Deadline

_FORMS = pytest.mark.parametrize(
    "form",
    [{}, {"num_kv_heads": 4}, {"sliding_window": 8}, {"cache_in_int8": True}],
    ids=["grouped", "all-heads", "window-8", "int8"],
)
# See test_decoder_session.py.
pytestmark = pytest.mark.parametrize("backend", [*BACKENDS, *PAIRS, FAKE_CUDA], indirect=True, scope="session")


def _embeds(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 64)).astype(np.float32)


@_FORMS
def test_a_run_of_any_length_gives_the_logits_after_each_token(
    make_decoder: DecoderMaker, form: dict[str, int]
) -> None:
    config, weights, decoder = make_decoder(**form)
    assert decoder.max_verified > 8
    embeds = _embeds(3, 24)
    expected = reference_logits(config.text, weights, embeds)
    for count in (1, 2, 3, 7, 12):
        session = decoder.session(1, 24)
        session.prefill([embeds[:11]], Deadline())
        assert close(session.verify(embeds[11 : 11 + count]), expected[11 : 11 + count]), count
        assert close(session.step(embeds[11 + count : 12 + count])[0], expected[11 + count])
        assert list(session.lengths) == [12 + count]
        session.close()


@_FORMS
def test_wrong_tokens_that_are_taken_back_leave_no_trace(make_decoder: DecoderMaker, form: dict[str, int]) -> None:
    config, weights, decoder = make_decoder(**form)
    embeds, wrong = _embeds(3, 24), _embeds(5, 24)
    expected = reference_logits(config.text, weights, embeds)
    session = decoder.session(1, 24)
    session.prefill([embeds[:9]], Deadline())
    for kept in range(1, 5):  # of five tokens, from the ninth on
        found = session.verify(np.concatenate([embeds[9 : 9 + kept], wrong[: 5 - kept]]))
        assert close(found[:kept], expected[9 : 9 + kept])
        session.truncate(9 + kept)
        assert close(session.verify(embeds[9 + kept : 16]), expected[9 + kept : 16])
        session.truncate(9)
    assert close(session.step(embeds[9:10])[0], expected[9])
    session.close()


def test_a_graph_of_an_earlier_version_decodes_and_verifies_nothing(tmp_path: Path, backend: str) -> None:
    """Its ``logits_index`` has one position for each row."""
    config = toy_config()
    weights = Weights.random(config.text)
    path = tmp_path / "decoder.onnx"
    write_decoder(path, config, weights, one_position=True)
    graph = graph_file(path, decoder_io(config, one_position=True))
    decoder = open_backend(backend).open_decoder(graph, config.text, threads=1)
    assert decoder.max_verified == 1
    rows = [_embeds(3, 24), _embeds(4, 17)]
    expected = [reference_logits(config.text, weights, row) for row in rows]
    session = decoder.session(2, 24)
    assert close(session.prefill([row[:-1] for row in rows], Deadline()), [logits[-2] for logits in expected])
    assert close(session.step(np.stack([row[-1] for row in rows])), [logits[-1] for logits in expected])
    session.close()
