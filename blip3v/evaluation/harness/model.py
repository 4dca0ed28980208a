"""The class that lmms-eval makes for the model "blip3v": a bundle or a model folder that answers greedily.

Written against lmms-eval 0.7: a request's arguments are the question, the settings of decoding, a function from a
record to its videos or pictures, and the record's place. A clip that cannot be read ends the run: the harness has no
way to count it, and an empty answer would be scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from blip3v.errors import UsageError
from blip3v.evaluation.benchmark.answerers import BundleClips, ClipAnswerer, EncodedClip, ReferenceClips
from blip3v.folders import check_checkpoint, kind_of

__all__ = ["Blip3vModel"]

_GREEDY = {"do_sample": (False, None), "num_beams": (1, None)}


@dataclass(frozen=True)
class _Question:
    """A request of the harness."""

    at: int  # its place
    text: str
    settings: dict[str, Any]
    visuals: tuple[Any, ...]  # paths or pictures

    @property
    def max_new_tokens(self) -> int | None:
        """None: the model's own."""
        value = self.settings.get("max_new_tokens")
        return None if value is None else int(value)

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        until = self.settings.get("until") or ()
        return tuple(text for text in ((until,) if isinstance(until, str) else until) if text)

    @property
    def decoding(self) -> tuple[int | None, tuple[str, ...]]:
        """What has to be the same for questions that are asked together."""
        return self.max_new_tokens, self.stop


class Blip3vModel(lmms):  # type: ignore[misc]  # the harness is not typed
    """A bundle or a model folder.

    Args:
        model: its path.
        backend: inference engine of a bundle, as ``VideoLM.open`` accepts it.
        device: "cpu" or "cuda", for a model folder; the harness gives it. None: "cpu".
        batch_size: questions that are asked together.
        max_batch_size: of the harness; has no effect, since no batch size is searched for.

    Raises:
        UsageError: a value that is not allowed.
        ArtifactError: the path is neither a bundle nor a model folder.
    """

    is_simple = True

    def __init__(
        self,
        model: str = "",
        backend: str = "auto",
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        path = Path(model)
        if not model:
            raise UsageError("no model is named; give its path as the model argument `model=PATH`")
        self._batch_size = _whole(batch_size or 1)
        self._answerer = _opened(path, backend, device)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers every request, in their order."""
        texts = [""] * len(requests)
        known: dict[tuple[Any, ...], EncodedClip] = {}
        with tqdm(total=len(requests), desc="blip3v") as bar:
            for batch in _batches(self._questions(requests), self._batch_size):
                clips = {_name(one): one.visuals for one in batch}
                known = {
                    name: known[name] if name in known else self._encode(visuals) for name, visuals in clips.items()
                }
                max_new_tokens, stop = batch[0].decoding
                answers = self._answerer.answer(
                    [known[_name(one)] for one in batch],
                    [one.text for one in batch],
                    max_new_tokens=max_new_tokens,
                    stop=stop,
                )
                for one, answer in zip(batch, answers, strict=True):
                    texts[one.at] = answer
                    self.cache_hook.add_partial("generate_until", (one.text, one.settings), answer)
                bar.update(len(batch))
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not there: a bundle gives no likelihood of a text that it has not written."""
        raise NotImplementedError("blip3v answers tasks of the kind generate_until; take the task's form of that kind")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not there: one question about one clip."""
        raise NotImplementedError("blip3v answers tasks of the kind generate_until; this one has several rounds")

    def _questions(self, requests: Sequence[Instance]) -> Iterator[_Question]:
        for at, request in enumerate(requests):
            text, settings, to_visual, doc, task, split = request.args
            _check_greedy(settings)
            visuals = tuple(to_visual(self.task_dict[task][split][doc]) or ())
            yield _Question(at, text, dict(settings), visuals)

    def _encode(self, visuals: Sequence[Any]) -> EncodedClip:
        """A clip of one file, or of pictures in their order."""
        if len(visuals) == 1 and isinstance(visuals[0], (str, Path)):
            return self._answerer.encode(Path(visuals[0]))
        if visuals and all(isinstance(one, Image.Image) for one in visuals):
            return self._answerer.encode([one.convert("RGB") for one in visuals])
        kinds = ", ".join(type(one).__name__ for one in visuals) or "nothing"
        raise UsageError(f"a request shows {kinds}; blip3v answers about one video file, or pictures")


def _opened(path: Path, backend: str, device: str | None) -> ClipAnswerer:
    if kind_of(path) == "bundle":
        return BundleClips(path, backend=backend)
    check_checkpoint(path, kinds=("model folder", "bundle"))
    if backend != "auto":
        raise UsageError("a model folder runs in PyTorch; backend is only for bundles")
    return ReferenceClips(path, device=device or "cpu")


def _batches(questions: Iterator[_Question], size: int) -> Iterator[list[_Question]]:
    """Questions that follow each other and are decoded alike, at most ``size`` of them."""
    batch: list[_Question] = []
    for one in questions:
        if batch and (len(batch) == size or one.decoding != batch[0].decoding):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _name(one: _Question) -> tuple[Any, ...]:
    """What is the same for questions about the same clip: the path; pictures belong to their question alone."""
    return tuple(str(visual) if isinstance(visual, (str, Path)) else one.at for visual in one.visuals)


def _check_greedy(settings: Mapping[str, Any]) -> None:
    """Refuses what would be decoded otherwise than the task says.

    Raises:
        UsageError: sampling or beams.
    """
    wrong = [f"{name}={settings[name]}" for name, allowed in _GREEDY.items() if settings.get(name) not in allowed]
    if wrong and not (settings.get("temperature") == 0 and set(wrong) == {"do_sample=True"}):
        raise UsageError(
            f"the task decodes with {', '.join(wrong)}; blip3v answers greedily: "
            "set do_sample=False and num_beams=1 among the task's gen_kwargs"
        )


def _whole(value: int | str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise UsageError(f"batch_size is {value!r}; a whole number of at least 1 is expected")
    return number
