"""The runner's side of a worker: its process, and what to say when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from benchmarks.peers.peer_list import FOLDER, Peer

__all__ = ["PeerError", "Together", "Worker", "last_words", "log_file", "prepare"]

_LIMIT_S = 3600.0  # of one request, or of one preparation
_WORKER = FOLDER / "worker.py"


class PeerError(Exception):
    """A stack that cannot be prepared, opened or run; the message is the reason as the result shows it."""


class Worker:
    """A process that holds one part of a peer and measures it on request; a context manager.

    Args:
        python: of its environment.
        peer: the stack.
        part: ``decoder`` or ``tower``.
        checkpoint: the folder of ``checkpoint.py``.
        work: FOLDER, where prepared weights and logs are.
        threads: that the stack may use.

    Raises:
        PeerError: it cannot be opened.
    """

    def __init__(self, python: Path, peer: Peer, part: str, checkpoint: Path, work: Path, threads: int) -> None:
        folder = _folder(peer, work)
        words = [str(peer.file), part, peer.form, peer.engine, str(checkpoint), str(folder), str(threads)]
        self._log = log_file(work, f"{folder.name}-{peer.engine}-{part}")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(python), str(_WORKER), "serve", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(peer, threads),
            )
        self.opened_s = float(self._read()["opened_s"])

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def generate(self, prompt: int, steps: int, seed: int) -> dict[str, Any]:
        """The fields of ``protocol.Generated`` for a prompt of ``prompt`` tokens, which ``seed`` chooses.

        Raises:
            PeerError: the stack failed.
        """
        return self._ask({"op": "generate", "prompt": prompt, "steps": steps, "seed": seed})

    def encode(self, frames: int) -> dict[str, Any]:
        """``encode_s`` of ``frames`` frames. Raises as ``generate``."""
        return self._ask({"op": "encode", "frames": frames})

    def peak_rss_bytes(self) -> int | None:
        """The largest resident memory of the process so far, mapped files included. Raises as ``generate``."""
        value: int | None = self._ask({"op": "memory"})["peak_rss_bytes"]
        return value

    def close(self) -> None:
        """Ends the process; may be called more than once."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # it is gone already
                self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        line = _line_within(stdout, _LIMIT_S)
        if line is None:
            self._process.kill()
            self.close()
            raise PeerError(f"no answer within {_LIMIT_S:.0f} s")
        if not line:
            raise self._ended()
        return dict(json.loads(line))

    def _ended(self) -> PeerError:
        self.close()
        return PeerError(last_words(self._log, self._process.returncode))


class Together:
    """The tower and the decoder of one stack, each in a process of its own; used as ``Worker`` is.

    Raises:
        PeerError: one of them cannot be opened.
    """

    def __init__(self, open_tower: Callable[[], Worker], open_decoder: Callable[[], Worker]) -> None:
        with contextlib.ExitStack() as stack:
            self._tower = stack.enter_context(open_tower())
            self._decoder = stack.enter_context(open_decoder())
            self._stack = stack.pop_all()
        self.opened_s = self._tower.opened_s + self._decoder.opened_s

    def close(self) -> None:
        """See ``Worker``."""
        self._stack.close()

    def generate(self, prompt: int, steps: int, seed: int) -> dict[str, Any]:
        """See ``Worker``."""
        return self._decoder.generate(prompt, steps, seed)

    def encode(self, frames: int) -> dict[str, Any]:
        """See ``Worker``."""
        return self._tower.encode(frames)

    def peak_rss_bytes(self) -> int | None:
        """Of both processes."""
        peaks = self._tower.peak_rss_bytes(), self._decoder.peak_rss_bytes()
        return None if None in peaks else sum(peak for peak in peaks if peak is not None)


def prepare(python: Path, peer: Peer, checkpoint: Path, work: Path, threads: int) -> float:
    """Converts or quantises the checkpoint for a peer, once.

    Returns:
        Seconds that it took; 0 if it is there.

    Raises:
        PeerError: it cannot be done.
    """
    folder = _folder(peer, work)
    done = folder / "prepared"
    if done.is_file():
        return 0.0
    folder.mkdir(parents=True, exist_ok=True)
    log, environment = log_file(work, f"{folder.name}-prepare"), _environment(peer, threads)
    started_s = time.perf_counter()
    command = [str(python), str(_WORKER), "prepare", str(peer.file), peer.form, str(checkpoint), str(folder)]
    with log.open("wb") as output:
        try:
            ran = subprocess.run(command, stdout=output, stderr=output, env=environment, timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise PeerError(f"preparing took more than {_LIMIT_S:.0f} s") from None
    if ran.returncode:
        raise PeerError(f"preparing failed: {last_words(log, ran.returncode)}")
    done.touch()
    return time.perf_counter() - started_s


def _folder(peer: Peer, work: Path) -> Path:
    """Where ``prepare`` writes what all peers of the module and form use."""
    return work / "prepared" / f"{peer.file.stem}-{peer.form}"


def log_file(work: Path, name: str) -> Path:
    """The file for what a process prints, in a folder that exists."""
    folder = work / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.txt"


def last_words(log: Path, code: int | None) -> str:
    """The last line that a failed process printed, with FOLDER for the folder around ``logs``, or how it ended."""
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith(("[notice]", "WARNING"))]  # pip's talk
    if code is not None and code < 0:
        return f"ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    if not lines:
        return f"ended with code {code}"
    # The message of an exception may have more lines, of which the first says most.
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line, re.IGNORECASE)]
    return (errors or lines)[-1].replace(str(log.parents[1]), "FOLDER")


def _line_within(stream: IO[bytes], limit_s: float) -> bytes | None:
    """The next line, b"" at the end, or None after ``limit_s``. There is never more than one answer to read."""
    ready, _, _ = select.select([stream], [], [], limit_s)
    return stream.readline() if ready else None


def _environment(peer: Peer, threads: int) -> dict[str, str]:
    """This process's environment without what points at its own packages; ours is the code beside this file."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    if peer.requirements is None:
        kept["PYTHONPATH"] = str(FOLDER.parents[1])
    return kept | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONNOUSERSITE": "1"}
