"""``blip3v chat``: from a pipe, and on a pseudo-terminal with Ctrl-C and Ctrl-D."""

from __future__ import annotations

import io
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from blip3v import cli
from blip3v.commands.chat import command
from blip3v.errors import RequestError, UsageError, VideoError
from blip3v.runtime import GenerationOptions, VideoLM

CLIP = str(Path(__file__).parents[2] / "examples" / "turn.mp4")
QUESTIONS = ["Which way?", "And then?", "Why is that?"]
SHORT = GenerationOptions(max_new_tokens=8)


@pytest.fixture(scope="module")
def lm(bundle_path: Path) -> Iterator[VideoLM]:
    with VideoLM.open(bundle_path, threads=1) as opened:
        yield opened


def _chat(*arguments: str, stdin: str) -> Result:
    shared = ["--max-new-tokens", "8", "--threads", "1"]
    return CliRunner().invoke(command, [CLIP, *shared, *arguments], input=stdin, catch_exceptions=False)


def _transcript(turns: list[tuple[str, str]]) -> str:
    return "\n".join(f"{question}\n{answer}\n" for question, answer in turns)


def _conversation(lm: VideoLM, questions: list[str], **further: Any) -> list[tuple[str, str]]:
    with lm.chat(CLIP, **further) as chat:
        return [(question, chat.ask(question, options=SHORT).text) for question in questions]


def test_a_pipe_is_a_conversation(bundle_path: Path, lm: VideoLM) -> None:
    result = _chat("-m", str(bundle_path), stdin="\n".join([*QUESTIONS, "", " "]))
    expected = _conversation(lm, QUESTIONS)
    assert result.stdout == _transcript(expected)
    assert expected[1][1] != lm.ask(CLIP, QUESTIONS[1], options=SHORT).text  # it knows the first turn
    assert re.search(r"tokens: \d+ new in 3 answers; the video has 8\n", result.stderr)
    assert "\x1b" not in result.stdout + result.stderr


def test_reset_forgets_and_exit_ends(bundle_path: Path, lm: VideoLM) -> None:
    stdin = "\n".join(["/help", QUESTIONS[0], "/reset", *QUESTIONS[:2], "/exit", "Never?"])
    result = _chat("-m", str(bundle_path), stdin=stdin)
    assert result.stdout == _transcript([*_conversation(lm, QUESTIONS[:1]), *_conversation(lm, QUESTIONS[:2])])
    assert re.findall(r"^/\w+", result.stderr, re.MULTILINE) == ["/help", "/reset", "/exit"]


def test_a_system_text_stays_after_a_reset(bundle_path: Path, lm: VideoLM) -> None:
    system = "Answer in one word."
    stdin = "\n".join([*QUESTIONS[:2], "/reset", *QUESTIONS[:2]])
    result = _chat("-m", str(bundle_path), "--system", system, "-q", stdin=stdin)
    expected = _conversation(lm, QUESTIONS[:2], system=system)
    assert (result.stdout, result.stderr) == (_transcript(expected * 2), "")
    assert expected != _conversation(lm, QUESTIONS[:2])


def test_json_and_json_lines(bundle_path: Path, lm: VideoLM) -> None:
    found = json.loads(_chat("-m", str(bundle_path), "--json", stdin="\n".join(QUESTIONS)).stdout)
    lines = _chat("-m", str(bundle_path), "--jsonl", stdin="\n".join(QUESTIONS)).stdout.splitlines()
    answers = [event for event in map(json.loads, lines) if event["type"] == "answer"]
    for each in (found["answers"], answers):
        assert [(answer["question"], answer["text"]) for answer in each] == _conversation(lm, QUESTIONS)
        assert [answer["timings"]["encode_s"] > 0 for answer in each] == [True, False, False]
    assert json.loads(_chat("-m", str(bundle_path), "--json", stdin="/exit\n").stdout) == {"answers": []}


def test_a_question_as_an_argument_is_one_for_ask() -> None:
    """It was click's "Got unexpected extra argument"."""
    with pytest.raises(UsageError) as caught:
        CliRunner().invoke(command, [CLIP, "-q", "Which way?"], catch_exceptions=False)
    assert str(caught.value) == (
        "chat takes no question on the command line; type it at the prompt, pipe it in, or run: "
        f"blip3v ask {CLIP} -q 'Which way?'"
    )


@pytest.mark.parametrize("stdin", ["", " \n\n"])
def test_stdin_without_a_question_is_refused(bundle_path: Path, stdin: str) -> None:
    """It ended in silence with exit code 0, and `ask -` with 2."""
    with pytest.raises(UsageError, match=r"^stdin has no question; write one per line"):
        _chat("-m", str(bundle_path), stdin=stdin)


def test_json_keeps_the_answers_before_an_error(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bad line threw away all earlier answers."""
    lines = f"{QUESTIONS[0]}\n{QUESTIONS[1]}\n<|end|>\n{QUESTIONS[2]}\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert cli._run(["chat", CLIP, "-m", str(bundle_path), "--json", "--max-new-tokens", "8"]) == 8
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [answer["question"] for answer in found["answers"]] == QUESTIONS[:2]
    assert (found["error"]["type"], found["error"]["exit_code"]) == ("RequestError", 8)
    assert found["error"]["message"].startswith("line 3 of stdin: ")
    assert printed.err.endswith(f"error: {found['error']['message']}\n")


def test_help_names_the_command_that_lists_the_commands() -> None:
    text = " ".join(CliRunner().invoke(command, ["--help"]).stdout.split())
    assert "/help lists the commands" in text
    assert "Time limit in seconds, for encoding the video and for each answer." in text


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ([CLIP, "--system", "<|user|>"], RequestError, "special token"),
        ([CLIP, "--temperature", "-1"], RequestError, "temperature"),
        ([CLIP, "--start", "2", "--end", "1"], UsageError, "not after start"),
        ([CLIP, "--logprobs", "1"], UsageError, "--logprobs"),
        (["none.mp4"], VideoError, "cannot be opened"),
    ],
    ids=["system", "temperature", "range", "logprobs", "video"],
)
def test_what_costs_nothing_is_checked_before_the_bundle_is_opened(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: type[Exception], says: str
) -> None:
    def open_lm(*arguments: Any, **further: Any) -> None:
        raise AssertionError("the bundle was opened first")

    monkeypatch.setattr(VideoLM, "open", open_lm)
    with pytest.raises(error, match=says):
        CliRunner().invoke(command, [*arguments, "-m", str(bundle_path)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("<|end|>", "^line 3 of stdin: .*special token"),
        ("/rest", "^line 3 of stdin: unknown command /rest; allowed: /help, /reset, /exit"),
        ("why " * 400, "^line 3 of stdin: .*the context has 256; shorten the question, begin a new conversation, or"),
    ],
    ids=["special", "command", "long"],
)
def test_an_error_names_the_line_of_a_pipe(bundle_path: Path, line: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        _chat("-m", str(bundle_path), stdin=f"Why?\n\n{line}\n")


# The real program with its terminal, where each token takes 100 ms and adds a byte to the file in LOG.
_PROGRAM = """
import fcntl, os, termios, time
from blip3v.cli import main
from blip3v.runtime.generation import AnswerWriter
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
push = AnswerWriter.push
def slow(writer, logits):
    with open(os.environ["LOG"], "ab") as log:
        log.write(b".")
    time.sleep(0.1)
    return push(writer, logits)
AnswerWriter.push = slow
main()
"""


class _Terminal:
    """``blip3v`` on a pseudo-terminal of a kind that nobody knows."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._log = folder / "log"
        self._log.touch()
        self._master, slave = os.openpty()
        self._shown = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"TERM": "unknown", "LOG": str(self._log)},
            start_new_session=True,
        )
        os.close(slave)

    def send(self, text: str) -> None:
        os.write(self._master, text.encode())

    def num_tokens(self) -> int:
        """Tokens generated so far."""
        return self._log.stat().st_size

    def until(self, text: str, *, typing: str = "") -> str:
        """What was shown since the last call, up to ``text``.

        ``typing`` is typed until something comes: readline loses a Ctrl-C just after it has shown the prompt.
        """
        wanted, end_s = text.encode(), time.monotonic() + 60
        while wanted not in self._shown:
            assert time.monotonic() < end_s, self._shown
            if not select.select([self._master], [], [], 0.5)[0]:
                self.send(typing)
                continue
            self._shown += os.read(self._master, 4096)
        before, _, self._shown = self._shown.partition(wanted)
        return before.decode().replace("\r\n", "\n")

    def __enter__(self) -> _Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_conversation_on_a_terminal(bundle_path: Path, lm: VideoLM, tmp_path: Path) -> None:
    """Ctrl-C ends an answer within one token and takes its question back; at the prompt it changes nothing."""
    (first, answer), (second, raw) = _conversation(lm, QUESTIONS[:2])
    next_answer = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", raw)  # a model must not control the terminal
    assert next_answer != raw
    options = ["-m", str(bundle_path), "--threads", "1", "--max-new-tokens", "8"]
    with _Terminal(tmp_path, "chat", CLIP, *options) as terminal:
        assert "\x1b" not in terminal.until("/help lists the commands, Ctrl-D ends.\r\n> ")
        terminal.send(f"{first}\n")
        assert terminal.until("\r\n> ") == f"{first}\n{answer}"
        terminal.send(f"{second}\n")
        while terminal.num_tokens() < 11:
            time.sleep(0.01)
        terminal.send("\x03")
        terminal.until("cancelled; the conversation is as it was before this question\r\n> ")
        assert terminal.num_tokens() <= 13  # 12, or one more if this test was slow to type
        terminal.until("Ctrl-D or /exit ends the conversation.\r\n> ", typing="\x03")
        terminal.send(" \n")
        terminal.until("\r\n> ")
        terminal.send("/what\n")
        terminal.until("error: unknown command /what; allowed: /help, /reset, /exit\r\n> ")
        terminal.send("<|end|>\n")
        assert "error: the user message contains the special token <|end|>" in terminal.until("\r\n> ")
        terminal.send(f"{second}\n")
        assert terminal.until("\r\n> ") == f"{second}\n{next_answer}"
        terminal.send("\x04")
        assert "\x1b" not in terminal.until("in the process that decodes the video\r\n")
        assert terminal.process.wait(60) == 0
