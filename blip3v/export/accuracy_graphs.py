"""The two graphs of a bundle in one back end's sessions: video tokens, and greedy drafts of many answers at once."""

# Shapes: B rows, L tokens, M video tokens, n new tokens, D width, V logits.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blip3v.bundle.embeddings import open_embeddings
from blip3v.bundle.graph_io import decoder_io, takes_one_position, video_encoder_io
from blip3v.bundle.layout import EMBEDDINGS, MANIFEST, graph_file
from blip3v.bundle.manifest import Manifest
from blip3v.bundle.precision import Precision
from blip3v.bundle.reader import open_bundle
from blip3v.bundle.targets import DEFAULT_TARGET, Target
from blip3v.config import ModelConfig
from blip3v.errors import ParityError
from blip3v.export.accuracy_reference import AnswerRules, ClipPrompt
from blip3v.runtime import memory
from blip3v.runtime.backends import (
    GRAPHS,
    PREFILL_CHUNK,
    Backend,
    Decoder,
    DecoderSession,
    GraphFile,
    GraphName,
)
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.opening import graph_files
from blip3v.text.prompt import splice

__all__ = ["Draft", "Graphs", "bundle_graphs"]

FloatArray = NDArray[np.float32]

_CACHE_BYTES = 2**30  # of the rows that are decoded together
_MAX_ROWS = 64  # more gain nothing


@dataclass(frozen=True)
class Draft:
    """Tokens that the graph chose one after another, and the logits that chose each of them."""

    token_ids: list[int]
    logits_nV: FloatArray


def bundle_graphs(
    folder: Path, config: ModelConfig, precision: Precision, target: Target
) -> dict[GraphName, GraphFile]:
    """Returns both graphs of a bundle, or of one that is being written, as back ends open them.

    What was built from the graphs of a bundle belongs to them, such as weights for prompts.
    """
    written = (folder / MANIFEST).is_file()
    built = graph_files(open_bundle(folder)) if written else {}
    one_position = written and takes_one_position(Manifest.load(folder / MANIFEST).graphs["decoder"].inputs)
    ios = {
        "video_encoder": video_encoder_io(config, target),
        "decoder": decoder_io(config, target, one_position=one_position),
    }
    return {
        name: GraphFile(
            path=folder / graph_file(name),
            io=ios[name],
            precision=precision.graphs[name],
            weights_bytes=sum(file.stat().st_size for file in (folder / "onnx").glob(f"{name}.*")),
            digest=built[name].digest if written else "",
            engines=built[name].engines if written else None,
        )
        for name in GRAPHS
    }


class Graphs:
    """The graphs as one back end runs them; the decoder is opened when it is needed. To be closed.

    Args:
        folder: the bundle, or one that is being written.
        config: the model's.
        precision: of the graphs.
        backends: for each graph.
        rules: when answers end.
        target: the form of the graphs.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        precision: Precision,
        backends: Mapping[GraphName, Backend],
        rules: AnswerRules,
        target: Target = DEFAULT_TARGET,
    ) -> None:
        self._files = bundle_graphs(folder, config, precision, target)
        self._table_VD = open_embeddings(folder / EMBEDDINGS)
        self._text = config.text
        self._backends = backends
        self._rules = rules
        self._opened: Decoder | None = None

    def video_tokens(self, batches: Iterator[FloatArray]) -> list[NDArray[np.floating]]:
        """Returns the video tokens (M, D) of each clip; ``batches`` are clips (B, F, 3, S, S) in [-1, 1]."""
        encoder = self._backends["video_encoder"].open_video_encoder(self._files["video_encoder"])
        tokens: list[NDArray[np.floating]] = []
        with closing(encoder):
            for clips in batches:
                tokens_BMD = encoder.run(clips, Deadline())["video_tokens"]
                _check_finite("video_encoder", tokens_BMD)
                tokens += [tokens_MD.copy() for tokens_MD in tokens_BMD]
        return tokens

    def draft(
        self,
        prompts: Sequence[ClipPrompt],
        video: Sequence[NDArray[np.floating]],
        known: Sequence[Sequence[int]],
    ) -> list[Draft]:
        """Continues each answer greedily to its end.

        Args:
            prompts: the questions.
            video: the video tokens (M, D) of each clip.
            known: for each prompt, the tokens that its answer begins with.

        Raises:
            ParityError: the graph's logits are not finite.
        """
        longest = max(asked.prompt.length(len(video[asked.clip])) for asked in prompts) + self._rules.max_new_tokens
        together = self._together(prompts, known, longest)
        drafts: dict[int, Draft] = {}
        for rows in together:
            embeds = [self._embeds(prompts[i], video[prompts[i].clip], known[i]) for i in rows]
            begun = [known[i] for i in rows]
            if longest > PREFILL_CHUNK:
                found = self._draft_one_by_one(embeds, begun, longest)
            else:
                found = self._draft_rows(embeds, begun)
            drafts.update(zip(rows, found, strict=True))
        return [drafts[i] for i in range(len(prompts))]

    def make_room(self, num_bytes: int) -> None:
        """Closes the decoder if less than ``num_bytes`` of memory is free; the next draft opens it again."""
        free = memory.available_bytes()
        if free is not None and free < num_bytes:
            self.close()

    def close(self) -> None:
        """Frees the decoder."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
            memory.return_freed()

    def _decoder(self) -> Decoder:
        if self._opened is None:
            self._opened = self._backends["decoder"].open_decoder(self._files["decoder"], self._text)
        return self._opened

    def _together(
        self, prompts: Sequence[ClipPrompt], known: Sequence[Sequence[int]], num_tokens: int
    ) -> list[list[int]]:
        """Groups prompts that are drafted together.

        Long ones, which engines take in one by one, share a cache with the others about their clip; of short ones as
        many as fit, of about the same length.
        """
        if num_tokens > PREFILL_CHUNK:
            by_clip: dict[int, list[int]] = {}
            for i, asked in enumerate(prompts):
                by_clip.setdefault(asked.clip, []).append(i)
            return list(by_clip.values())
        row_bytes = num_tokens * self._backends["decoder"].kv_bytes_per_token(self._text, self._files["decoder"])
        num_rows = max(1, min(_MAX_ROWS, _CACHE_BYTES // row_bytes))
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].prompt.ids) + len(known[i]))
        return [order[first : first + num_rows] for first in range(0, len(order), num_rows)]

    def _embeds(self, asked: ClipPrompt, video_MD: NDArray[np.floating], known: Sequence[int]) -> NDArray[np.floating]:
        prompt_LD = splice(self._table_VD[asked.prompt.ids], asked.prompt.image_position, video_MD)
        return np.concatenate((prompt_LD, self._table_VD[list(known)]))

    def _draft_one_by_one(
        self, embeds: Sequence[NDArray[np.floating]], known: Sequence[Sequence[int]], num_tokens: int
    ) -> list[Draft]:
        """Computes what the prompts begin with in common, the video above all, only once."""
        decoder = self._decoder()
        shared = _num_shared(embeds)
        with closing(decoder.session(1, num_tokens)) as session:
            if shared:
                session.prefill([embeds[0][:shared].astype(decoder.dtype, copy=False)], Deadline())
            drafts = []
            for part, begun in zip(embeds, known, strict=True):
                session.truncate(shared)
                drafts += self._finish(session, [part[shared:]], [begun])
        return drafts

    def _draft_rows(self, embeds: Sequence[NDArray[np.floating]], known: Sequence[Sequence[int]]) -> list[Draft]:
        with closing(self._decoder().session(len(embeds), max(map(len, embeds)))) as session:
            return self._finish(session, embeds, known)

    def _finish(
        self, session: DecoderSession, embeds: Sequence[NDArray[np.floating]], known: Sequence[Sequence[int]]
    ) -> list[Draft]:
        """Appends a prompt to each row of ``session`` and decodes greedily; afterwards one row may be left."""
        dtype = self._decoder().dtype
        ids: list[list[int]] = [[] for _ in embeds]
        logits: list[list[FloatArray]] = [[] for _ in embeds]
        running = list(range(len(embeds)))  # which prompt each row of the session belongs to
        logits_BV = session.prefill([part.astype(dtype, copy=False) for part in embeds], Deadline())
        while True:
            _check_finite("decoder", logits_BV)
            for row, index in enumerate(running):
                ids[index].append(int(logits_BV[row].argmax()))
                logits[index].append(logits_BV[row].copy())
            ended = [row for row, i in enumerate(running) if self._rules.is_complete([*known[i], *ids[i]])]
            if len(ended) == len(running):
                return [Draft(tokens, np.stack(found)) for tokens, found in zip(ids, logits, strict=True)]
            for row in reversed(ended):
                session.drop_row(row)
                running[row] = running[-1]
                running.pop()
            last_BD = self._table_VD[[ids[index][-1] for index in running]]
            logits_BV = session.step(last_BD.astype(dtype, copy=False))


def _num_shared(embeds: Sequence[NDArray[np.floating]]) -> int:
    """Positions that all prompts begin with; each has at least one more."""
    shortest = min(map(len, embeds)) - 1
    same = np.ones(shortest, bool)
    for part in embeds[1:]:
        same &= (part[:shortest] == embeds[0][:shortest]).all(-1)
    return shortest if same.all() else int(same.argmin())


def _check_finite(graph: str, values: NDArray[np.floating]) -> None:
    if not np.isfinite(values).all():
        raise ParityError(
            f"the {graph} graph returns values that are not finite, so its accuracy cannot be measured; its integers "
            "or their scales are broken: export the model in fp16 to see whether the graph itself is right"
        )
