"""Answers kept on disk by the content of what was asked, so that a run that is repeated or resumed pays once.

One file an answer, written atomically: runs may share a folder, and what one of them has is there for the other. The
key covers the endpoint's URL, the model and the whole request; never the key of the endpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from blip3v.endpoint.chat import ChatRequest, Completion
from blip3v.endpoint.settings import Endpoint
from blip3v.errors import ConfigError
from blip3v.publishing import write_file
from blip3v.strict_json import dumps, from_dict, read_json

__all__ = ["AnswerCache"]


class AnswerCache:
    """A folder of answers. It is made when the first one is put in.

    Args:
        folder: where; may be shared by several runs, models and purposes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, endpoint: Endpoint, request: ChatRequest) -> Completion | None:
        """The answer with ``is_cached`` set; None: it was never asked.

        Raises:
            ConfigError: the file of the answer was damaged; the message names it.
        """
        asked = _asked(endpoint, request)
        path = self._path(asked)
        if not path.is_file():
            return None
        try:
            return dataclasses.replace(from_dict(Completion, read_json(path).get("answer"), "answer"), is_cached=True)
        except ConfigError as error:
            raise ConfigError(f"the cached answer {path} is damaged ({error}); delete it") from error

    def put(self, endpoint: Endpoint, request: ChatRequest, completion: Completion) -> None:
        """Keeps an answer.

        Raises:
            OSError: it cannot be written.
        """
        asked = _asked(endpoint, request)
        path = self._path(asked)
        path.parent.mkdir(parents=True, exist_ok=True)
        answer = {name: value for name, value in vars(completion).items() if name != "is_cached"}
        write_file(path, dumps({"asked": asked, "answer": answer}))

    def _path(self, asked: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return self._folder / digest[:2] / f"{digest}.json"


def _asked(endpoint: Endpoint, request: ChatRequest) -> dict[str, Any]:
    return {"url": endpoint.url, "attempt": request.attempt, **request.body(endpoint.model)}
