"""``generation.json``: how a model is prompted and how its answers end, unless a request says otherwise."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from blip3v import strict_json
from blip3v.errors import ArtifactVersionError, ConfigError
from blip3v.text.special import END

__all__ = ["RELEASED_SYSTEM_PROMPT", "GenerationConfig"]

SCHEMA_VERSION = 1

RELEASED_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """A model's generation defaults.

    Raises:
        ConfigError: a value that decoding cannot use.
    """

    system_prompt: str | None  # first turn of every conversation; None: no system turn
    max_new_tokens: int  # maximum number of tokens in an answer
    stop_token: str = END  # ends an answer
    do_sample: bool = False  # greedy, as released; a request may ask for sampling
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; at least 1 is needed")
        if self.stop_token != END:
            raise ConfigError(f"stop_token is {self.stop_token!r}; allowed: {END}, which ends every turn")
        if self.do_sample:
            raise ConfigError("do_sample is true; a model's default is greedy, but a request may ask for sampling")

    def save(self, path: Path) -> None:
        """Writes ``generation.json``."""
        path.write_text(strict_json.dumps(dataclasses.asdict(self)), "utf-8")

    @classmethod
    def load(cls, path: Path) -> GenerationConfig:
        """Reads ``generation.json``.

        Raises:
            ConfigError: not JSON, an unknown or missing key, or a value that decoding cannot use.
            ArtifactVersionError: a schema version that this version of blip3v does not read.
        """
        values = strict_json.read_json(path)
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ArtifactVersionError(f"{path} has schema_version {version!r}; this blip3v reads {SCHEMA_VERSION}")
        return strict_json.from_dict(cls, values, str(path))
