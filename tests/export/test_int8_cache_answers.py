"""What an int8 KV cache does to the trained ``tiny``: the answers to held-out questions, and the logits behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from blip3v.bundle.graph_io import decoder_io
from blip3v.bundle.precision import Precision
from blip3v.data.film import Film, make_film
from blip3v.data.questions import Question, questions, test_questions
from blip3v.data.samples import film_frames
from blip3v.export.cache_scales import prompt_cache_scales
from blip3v.export.decoder_graph import CacheScales
from blip3v.export.source import ExportSource, resolve_source
from blip3v.export.to_onnx import decoder_to_onnx, save_graph
from blip3v.model.language import embedding_table
from blip3v.model.weights import empty_model, fill
from blip3v.runtime.backends import Decoder, GraphFile, get_backend
from blip3v.runtime.cancellation import Deadline
from blip3v.text.prompt import build_prompt, splice
from blip3v.text.template import Message
from blip3v.text.tokenizer import Tokenizer
from blip3v.video.preprocess import preprocess
from blip3v.video.sampling import sample_indices

held_out = test_questions
test_questions.__test__ = False  # type: ignore[attr-defined]
NUM_STEPS = 10  # the longest answer of the film set is shorter


@dataclass(frozen=True)
class Tiny:
    source: ExportSource
    tokenizer: Tokenizer
    table_VD: np.ndarray

    def prompts(self, asked: Sequence[tuple[Film, Question]]) -> Iterator[np.ndarray]:
        """The embeddings (L, D) of each question with its film, whose video tokens are PyTorch's."""
        source, model = self.source, empty_model(self.source.config)
        fill(model, source.weights)
        tokens: dict[int, np.ndarray] = {}
        for film, question in asked:
            if film.seed not in tokens:
                indices = sample_indices(film.num_frames, source.config.num_frames, rule=source.preprocessor.sampling)
                pixels = torch.from_numpy(preprocess(film_frames(film, indices), source.preprocessor))[None]
                with torch.inference_mode():
                    tokens[film.seed] = model.encode_video(pixels)[0].numpy()
            message = Message("user", question.text)
            prompt = build_prompt(self.tokenizer, source.chat_template, source.generation, [message])
            yield splice(self.table_VD[list(prompt.ids)], prompt.image_position, tokens[film.seed])

    def decoder(self, path: Path, precision: str, scales: CacheScales | None) -> Decoder:
        config, spec = self.source.config, Precision.parse(precision).decoder
        save_graph(decoder_to_onnx(config, self.source.weights, spec, cache_scales=scales), path)
        size = path.with_suffix(".data").stat().st_size
        graph = GraphFile(path=path, io=decoder_io(config), precision=spec, weights_bytes=size)
        return get_backend("onnxruntime").open_decoder(graph, config.text, threads=1)

    def answer(self, decoder: Decoder, prompt_LD: np.ndarray, ids: Sequence[int] = ()) -> tuple[list[int], np.ndarray]:
        """What the decoder would say next at each of its steps, after ``ids`` or else after its own tokens; logits."""
        with closing(decoder.session(1, len(prompt_LD) + NUM_STEPS)) as session:
            logits = [session.prefill([prompt_LD], Deadline())[0]]
            for step in range(NUM_STEPS):
                token = ids[step] if ids else int(logits[-1].argmax())
                logits.append(session.step(self.table_VD[[token]])[0])
        said = [int(row_V.argmax()) for row_V in logits]
        return said, np.stack(logits)


@pytest.mark.parametrize(
    "num_questions", [16, pytest.param(100, marks=pytest.mark.slow)], ids=["few", "as-many-as-the-log-says"]
)
def test_tiny_answers_as_with_an_fp32_cache(tmp_path: Path, num_questions: int) -> None:
    """The scales are of one prompt about a film that no question is about: what an export without calibration does."""
    source = resolve_source()
    text = source.config.text
    tiny = Tiny(source, Tokenizer.parse(source.tokenizer_json), embedding_table(source.weights, text).numpy())
    film = make_film(3, "train")
    (shown_LD,) = tiny.prompts([(film, questions(film)[0])])
    scales = prompt_cache_scales(text, source.weights, shown_LD)
    exact = tiny.decoder(tmp_path / "fp32" / "decoder.onnx", "fp32", None)
    rounded = tiny.decoder(tmp_path / "int8" / "decoder.onnx", "fp32+kv-int8", scales)
    other_answers, errors = 0, []
    for prompt_LD in tiny.prompts(held_out(num_questions)):
        ids, expected = tiny.answer(exact, prompt_LD)
        after_the_same, found = tiny.answer(rounded, prompt_LD, ids)
        end = ids.index(tiny.tokenizer.end_id) + 1 if tiny.tokenizer.end_id in ids else len(ids)
        other_answers += after_the_same[:end] != ids[:end]
        errors.append(np.abs(found[:end] - expected[:end]).max() / np.abs(expected[:end]).max())
    assert other_answers <= 0.02 * num_questions
    assert 1e-5 < np.median(errors) < 1e-2
    assert max(errors) < 5e-2
