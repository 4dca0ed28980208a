"""Answers from the PyTorch reference, with a model folder."""

# Shapes: T frames, M video tokens, D width, C H W of a picture, R rows.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3v.data.film import Film
from blip3v.data.questions import Question
from blip3v.data.samples import film_pixels
from blip3v.model.folder import load_model_folder, read_text
from blip3v.model.generate import greedy
from blip3v.text import GenerationConfig, Message, Prompt, Tokenizer, build_prompt
from blip3v.video.preprocess import PreprocessorConfig

__all__ = ["ReferenceAnswerer", "ReferenceModel"]


class ReferenceModel:
    """A model folder in fp32 with its prompts. Videos are tensors (1, M, D) on the device.

    Args:
        path: the model folder.
        device: "cpu" or "cuda".
    """

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        folder = load_model_folder(path)
        self._model = folder.model.to(device).eval()
        self._device = device
        self.tokenizer = Tokenizer.load(folder.tokenizer)
        self.preprocessor = PreprocessorConfig.load(folder.preprocessor)
        self.num_frames = folder.config.num_frames
        self._template = read_text(folder.chat_template)
        self._generation = GenerationConfig.load(folder.generation)

    @torch.inference_mode()
    def encode(self, pixels_TCHW: NDArray[np.float32]) -> Tensor:
        """The video tokens of a clip."""
        return self._model.encode_video(torch.from_numpy(pixels_TCHW)[None].to(self._device))

    def answer(
        self, videos: Sequence[Tensor], questions: Sequence[str], *, max_new_tokens: int | None = None
    ) -> list[str]:
        """Answers each question about its video, greedily.

        Args:
            videos: one for each question.
            questions: plain text.
            max_new_tokens: of an answer; None, or more than the model's own limit: that limit.
        """
        limit = min(max_new_tokens or self._generation.max_new_tokens, self._generation.max_new_tokens)
        texts = [""] * len(questions)
        for rows, ids_RL, position_R, video_RMD in self._rows(videos, questions):
            answers = greedy(
                self._model,
                ids_RL,
                position_R,
                video_RMD,
                max_new_tokens=limit,
                stop_id=self.tokenizer.end_id,
            )
            for at, ids in zip(rows, answers, strict=True):
                texts[at] = self.tokenizer.decode(ids)
        return texts

    @torch.inference_mode()
    def first_tokens(
        self, videos: Sequence[Tensor], questions: Sequence[str], num_tokens: int
    ) -> list[list[tuple[int, float]]]:
        """The likeliest first tokens of each answer: (id, log-probability), best first."""
        tokens: list[list[tuple[int, float]]] = [[] for _ in questions]
        for rows, ids_RL, position_R, video_RMD in self._rows(videos, questions):
            logprobs_RV = self._model(ids_RL, position_R, video_RMD)[:, -1].float().log_softmax(dim=-1)
            best = logprobs_RV.topk(min(num_tokens, logprobs_RV.shape[-1]), dim=-1)
            for at, ids, values in zip(rows, best.indices.tolist(), best.values.tolist(), strict=True):
                tokens[at] = list(zip(ids, values, strict=True))
        return tokens

    def _rows(
        self, videos: Sequence[Tensor], questions: Sequence[str]
    ) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
        """Questions of one length at a time, so that no row needs padding: their places, ids, positions and videos."""
        prompts = [self._prompt(question) for question in questions]
        by_length: dict[int, list[int]] = defaultdict(list)
        for at, prompt in enumerate(prompts):
            by_length[len(prompt.ids)].append(at)
        for rows in by_length.values():
            yield (
                rows,
                torch.tensor([prompts[at].ids for at in rows], device=self._device),
                torch.tensor([prompts[at].image_position for at in rows], device=self._device),
                torch.cat([videos[at] for at in rows]),
            )

    def _prompt(self, question: str) -> Prompt:
        return build_prompt(self.tokenizer, self._template, self._generation, [Message("user", question)])


class ReferenceAnswerer:
    """Answers questions about films greedily in fp32 with a model folder.

    Args:
        path: the model folder.
        device: "cpu" or "cuda".
    """

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        self._model = ReferenceModel(path, device=device)

    def answer(self, film: Film, questions: Sequence[Question]) -> list[str]:
        """Returns one answer per question."""
        video_1MD = self._model.encode(film_pixels(film, self._model.num_frames, self._model.preprocessor))
        return self._model.answer([video_1MD] * len(questions), [question.text for question in questions])
