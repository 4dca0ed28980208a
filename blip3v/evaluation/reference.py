"""Answers from the PyTorch reference, with a model folder."""

# Shapes: T frames, M video tokens, D width.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from blip3v.data.film import Film
from blip3v.data.questions import Question
from blip3v.data.samples import film_pixels
from blip3v.model.folder import load_model_folder, read_text
from blip3v.model.generate import greedy
from blip3v.text import GenerationConfig, Message, Tokenizer, build_prompt
from blip3v.video.preprocess import PreprocessorConfig

__all__ = ["ReferenceAnswerer"]


class ReferenceAnswerer:
    """Answers greedily in fp32 with a model folder.

    Args:
        path: the model folder.
        device: "cpu" or "cuda".
    """

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        folder = load_model_folder(path)
        self._model = folder.model.to(device).eval()
        self._device = device
        self._tokenizer = Tokenizer.load(folder.tokenizer)
        self._template = read_text(folder.chat_template)
        self._generation = GenerationConfig.load(folder.generation)
        self._preprocessor = PreprocessorConfig.load(folder.preprocessor)

    def answer(self, film: Film, questions: Sequence[Question]) -> list[str]:
        """Returns one answer per question."""
        with torch.inference_mode():
            video_1MD = self._model.encode_video(self._pixels(film))
        prompts = [
            build_prompt(self._tokenizer, self._template, self._generation, [Message("user", question.text)])
            for question in questions
        ]
        by_length: dict[int, list[int]] = defaultdict(list)
        for at, prompt in enumerate(prompts):
            by_length[len(prompt.ids)].append(at)
        texts = [""] * len(questions)
        for group in by_length.values():
            answers = greedy(
                self._model,
                torch.tensor([prompts[at].ids for at in group], device=self._device),
                torch.tensor([prompts[at].image_position for at in group], device=self._device),
                video_1MD.expand(len(group), -1, -1),
                max_new_tokens=self._generation.max_new_tokens,
                stop_id=self._tokenizer.end_id,
            )
            for at, ids in zip(group, answers, strict=True):
                texts[at] = self._tokenizer.decode(ids)
        return texts

    def _pixels(self, film: Film) -> torch.Tensor:
        pixels_TCHW = film_pixels(film, self._model.config.num_frames, self._preprocessor)
        return torch.from_numpy(pixels_TCHW)[None].to(self._device)
