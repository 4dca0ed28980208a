"""``blip3v ask``."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from film_server import serving
from PIL import Image

from blip3v import cli
from blip3v.commands.answers import JsonLinesPrinter
from blip3v.commands.ask import command
from blip3v.commands.opening import default_bundle
from blip3v.errors import ArtifactMissingError, RequestError, RequestTimeoutError, UsageError, VideoError
from blip3v.runtime import (
    AnswerStream,
    Delta,
    GenerationOptions,
    VideoLM,
    VideoTokens,
    estimate,
    video_encoding,
    video_lm,
)
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.memory import peak_rss_bytes

CLIP = str(Path(__file__).parents[2] / "examples" / "turn.mp4")
QUESTION = "Which way does the red circle turn?"


@pytest.fixture(scope="module")
def lm(bundle_path: Path) -> Iterator[VideoLM]:
    with VideoLM.open(bundle_path, threads=1) as opened:
        yield opened


def _ask(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(command, list(arguments), input=stdin, catch_exceptions=False)


def test_only_the_answer_is_on_stdout(bundle_path: Path, lm: VideoLM) -> None:
    result = _ask(CLIP, QUESTION, "-m", str(bundle_path), "--threads", "1")
    expected = lm.ask(CLIP, QUESTION)
    assert result.stdout == expected.text + "\n"
    for index, time_s in expected.frames:
        assert f"{index} ({time_s:.2f} s)" in result.stderr
    assert "8 of them video" in result.stderr
    assert "ms per token" in result.stderr


def test_the_cost_of_opening_a_large_model_is_printed_first(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "opening" not in _ask(CLIP, QUESTION, "-m", str(bundle_path)).stderr
    monkeypatch.setattr(estimate, "_LARGE_BYTES", 2**20)
    lines = _ask(CLIP, QUESTION, "-m", str(bundle_path), "--max-context", "128").stderr.splitlines()
    assert re.fullmatch(rf"opening {bundle_path}: about \d\S* MiB of memory of .* that are free, \d\S* m?s", lines[0])
    assert re.fullmatch(r"memory: .* at the peak, and .* in the process that decodes the video", lines[-1])


def test_streaming_prints_the_same(bundle_path: Path) -> None:
    plain = _ask(CLIP, QUESTION, "-m", str(bundle_path))
    assert _ask(CLIP, QUESTION, "-m", str(bundle_path), "--stream").stdout == plain.stdout


def test_json_is_one_object_with_everything(bundle_path: Path, lm: VideoLM) -> None:
    result = _ask(CLIP, QUESTION, "-m", str(bundle_path), "--json", "--logprobs", "2", "--max-new-tokens", "4")
    found = json.loads(result.stdout)
    expected = lm.ask(CLIP, QUESTION, options=GenerationOptions(max_new_tokens=4, logprobs=2))
    assert found["text"] == expected.text
    assert found["token_ids"] == list(expected.token_ids)
    assert found["frames"] == [{"index": index, "time_s": time_s} for index, time_s in expected.frames]
    assert found["usage"]["num_video_tokens"] == 8
    assert (found["model"], found["question"]) == (str(bundle_path), QUESTION)
    assert {"file_decode_s", "encode_s", "prefill_s", "per_token_s"} <= set(found["timings"])
    assert len(found["logprobs"]) == found["usage"]["num_new_tokens"]


def test_options_reach_the_model(bundle_path: Path, lm: VideoLM) -> None:
    flags = ["--temperature", "1.5", "--top-k", "40", "--top-p", "0.95", "--seed", "3", "--max-new-tokens", "6"]
    result = _ask(CLIP, QUESTION, "-m", str(bundle_path), *flags, "--repetition-penalty", "1.1", "--start", "1")
    options = GenerationOptions(temperature=1.5, top_k=40, top_p=0.95, seed=3, max_new_tokens=6, repetition_penalty=1.1)
    assert result.stdout == lm.ask(CLIP, QUESTION, options=options, start=1.0).text + "\n"


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--stream", "--json"], UsageError),
        (["--stream", "--jsonl"], UsageError),
        (["--json", "--jsonl"], UsageError),
        (["--logprobs", "1"], UsageError),
        (["--top-p", "0.5"], RequestError),
        (["--threads", "0"], UsageError),
        (["-m", "nowhere"], ArtifactMissingError),
    ],
    ids=["stream-json", "stream-jsonl", "json-jsonl", "logprobs", "top-p", "threads", "no-bundle"],
)
def test_refusals(bundle_path: Path, flags: list[str], error: type[Exception]) -> None:
    model = [] if "-m" in flags else ["-m", str(bundle_path)]
    with pytest.raises(error):
        _ask(CLIP, QUESTION, *model, *flags)


def test_without_a_model_the_only_bundle_in_the_folder_is_used(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blip3v-empty").mkdir()
    with pytest.raises(UsageError, match=r"blip3v export --encoder tokenlearner`, or name one with -m$"):
        _ask(CLIP, QUESTION)
    shutil.copytree(bundle_path, tmp_path / "blip3v-demo" / "blip3v-one")
    with pytest.raises(UsageError, match=r"or name one: -m blip3v-demo/blip3v-one$"):
        _ask(CLIP, QUESTION)
    shutil.copytree(bundle_path, tmp_path / "blip3v-one")
    assert default_bundle(tmp_path) == Path("blip3v-one")
    assert _ask(CLIP, QUESTION).stdout == _ask(CLIP, QUESTION, "-m", str(bundle_path)).stdout
    shutil.copytree(bundle_path, tmp_path / "blip3v-two")
    with pytest.raises(UsageError, match="blip3v-one, blip3v-two"):
        _ask(CLIP, QUESTION)


SEVERAL = [QUESTION, "Why?\nReally?", "How many?"]


def test_several_questions_are_answered_like_each_alone(
    bundle_path: Path, lm: VideoLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, encoded = video_encoding.encode_video, []

    def counted(*arguments: Any) -> VideoTokens:
        encoded.append(arguments)
        return encode(*arguments)

    expected = [lm.ask(CLIP, question).text for question in SEVERAL]
    monkeypatch.setattr(video_lm, "encode_video", counted)
    result = _ask(CLIP, *SEVERAL, "-m", str(bundle_path))
    assert result.stdout == "\n".join(f"{q}\n{a}\n" for q, a in zip(SEVERAL, expected, strict=True))
    assert len(encoded) == 1
    assert re.search(r"tokens: \d+ new in 3 answers; the video has 8\n", result.stderr)
    assert re.search(r"time: file [1-9].*, video encoder \S+ m?s, prefill", result.stderr)
    assert _ask(CLIP, *SEVERAL, "-m", str(bundle_path), "--stream").stdout == result.stdout


def test_json_of_several_questions_is_one_object(bundle_path: Path, lm: VideoLM) -> None:
    found = json.loads(_ask(CLIP, *SEVERAL, "-m", str(bundle_path), "--json").stdout)
    alone = json.loads(_ask(CLIP, QUESTION, "-m", str(bundle_path), "--json").stdout)
    assert set(found) == {"answers"}
    assert [set(answer) for answer in found["answers"]] == [set(alone)] * 3
    assert [answer["question"] for answer in found["answers"]] == SEVERAL
    assert [answer["text"] for answer in found["answers"]] == [lm.ask(CLIP, question).text for question in SEVERAL]
    assert [answer["timings"]["file_decode_s"] > 0 for answer in found["answers"]] == [True, False, False]


def test_json_keeps_the_answers_before_an_error(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A time limit at the last question threw away the answers to all others."""
    stream = VideoLM.stream

    def slow_at_the_last(lm: VideoLM, video: Any, question: str, **further: Any) -> AnswerStream:
        if question == SEVERAL[-1]:
            raise RequestTimeoutError("the request took longer than 3 s")
        return stream(lm, video, question, **further)

    monkeypatch.setattr(VideoLM, "stream", slow_at_the_last)
    assert cli._run(["ask", CLIP, *SEVERAL, "-m", str(bundle_path), "--json"]) == 8
    found = json.loads(capsys.readouterr().out)
    assert [answer["question"] for answer in found["answers"]] == SEVERAL[:-1]
    assert found["error"]["message"] == "question 3: the request took longer than 3 s"


@pytest.mark.parametrize("questions", [SEVERAL[:1], SEVERAL], ids=["one", "several"])
def test_json_lines_are_the_pieces_and_the_answers(bundle_path: Path, questions: list[str]) -> None:
    lines = _ask(CLIP, *questions, "-m", str(bundle_path), "--jsonl", "--logprobs", "0").stdout.splitlines()
    events = [json.loads(line) for line in lines]
    whole = json.loads(_ask(CLIP, *questions, "-m", str(bundle_path), "--json", "--logprobs", "0").stdout)
    for answer in whole.get("answers", [whole]):
        end = next(index for index, event in enumerate(events) if event["type"] == "answer")
        pieces, found, events = events[:end], events[end], events[end + 1 :]
        assert all(set(piece) == {"type", "text", "token_id"} for piece in pieces)
        assert "".join(piece["text"] for piece in pieces) == found["text"] == answer["text"]
        assert [piece["token_id"] for piece in pieces if piece["token_id"] is not None] == answer["token_ids"]
        assert set(found) == {"type", *answer}
    assert events == []


def test_questions_come_from_stdin_one_a_line(bundle_path: Path, lm: VideoLM) -> None:
    stdin = "\ufeffWhich way?\r\n\n   \nDreht er\u2019s links?\nWhy?"
    found = json.loads(_ask(CLIP, "-", "-m", str(bundle_path), "--json", stdin=stdin.encode()).stdout)
    questions = ["Which way?", "Dreht er\u2019s links?", "Why?"]
    assert [(answer["question"], answer["text"]) for answer in found["answers"]] == [
        (question, lm.ask(CLIP, question).text) for question in questions
    ]


def test_one_question_on_stdin_has_the_form_of_several(bundle_path: Path, lm: VideoLM) -> None:
    """With one line --json printed the bare answer: what read the output had to know how many lines there were."""
    text = lm.ask(CLIP, "Why?").text
    assert _ask(CLIP, "-", "-m", str(bundle_path), stdin="Why?\n").stdout == f"Why?\n{text}\n"
    found = json.loads(_ask(CLIP, "-", "-m", str(bundle_path), "--json", stdin="Why?\n").stdout)
    assert [(answer["question"], answer["text"]) for answer in found.pop("answers")] == [("Why?", text)]
    assert found == {}


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (
            "--seed 3",
            8,
            "temperature is 0, which always takes the most likely token; "
            "set --temperature above 0, or leave out --seed",
        ),
        ("--top-p 0.5 --top-k 2", 8, "set --temperature above 0, or leave out --top-p and --top-k"),
        (
            "--timeout 0.001",
            8,
            "the request took longer than 0.001 s; "
            "allow more time with --timeout, or fewer tokens with --max-new-tokens",
        ),
        (
            "--allow-private-url",
            2,
            "downloads from private addresses are allowed, and downloads are not; "
            "--allow-private-url has no effect alone: pass --allow-url too",
        ),
        (
            "--max-context 27",
            8,
            "the prompt has 27 tokens (8 of them video), which leaves no room for an answer: the context has 27; "
            "shorten the question, or raise --max-context if it was lowered",
        ),
        (
            "--max-context 40 --max-new-tokens 20",
            8,
            "shorten the question, lower --max-new-tokens, or raise --max-context if it was lowered",
        ),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_refusals_speak_of_options(
    bundle_path: Path, capsys: pytest.CaptureFixture[str], options: str, code: int, says: str
) -> None:
    """They named the library's parameters, those that were not given too, and a prompt without room asked for one."""
    assert cli._run(["ask", CLIP, "Why?", "-m", str(bundle_path), *options.split()]) == code
    assert capsys.readouterr().err.endswith(f"{says}\n")


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening the bundle is an error of the test: it takes a minute at full size."""

    def open_lm(*arguments: Any, **further: Any) -> None:
        raise AssertionError("the bundle was opened first")

    monkeypatch.setattr(VideoLM, "open", open_lm)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ([CLIP, ""], RequestError, "^the question is empty"),
        ([CLIP, "Why?", " "], RequestError, "^question 2: the question is empty"),
        ([CLIP, "Why?", "Is it <|end|>?"], RequestError, r"^question 2: .*special token <\|end\|>"),
        ([CLIP, "why " * 400], RequestError, "the context has 256"),
        ([CLIP, "Why?", "--max-new-tokens", "250"], RequestError, "the context has 256"),
        (["none.mp4", "Why?"], VideoError, "none.mp4 cannot be opened"),
        ([".", "Why?"], VideoError, "contains no images"),
        ([CLIP, "Why?", "--temperature", "-1"], RequestError, "temperature"),
        ([CLIP, "Why?", "--top-k", "5"], RequestError, "leave out `top_k`$"),
        ([CLIP, "Why?", "--timeout", "0"], RequestError, "timeout_s"),
        ([CLIP, "Why?", "--start", "-1"], UsageError, "start is -1"),
        ([CLIP, "Why?", "--start", "2", "--end", "1"], UsageError, "not after start"),
        ([CLIP, "Why?", "--system", "<|user|>"], RequestError, "special token"),
        ([CLIP, "Why?", "--logprobs", "1"], UsageError, "--logprobs"),
        ([CLIP, "Why?", "-m", "none"], ArtifactMissingError, "none"),
        ([CLIP, "What", "happens?"], UsageError, r'quotes around a question: "What happens\?"'),
        ([CLIP, "-", "Why?"], UsageError, "give it alone"),
        (["What happens?", CLIP], UsageError, re.escape(f"run: blip3v ask {CLIP} 'What happens?'")),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("unopened")
def test_what_costs_nothing_is_checked_before_the_bundle_is_opened(
    bundle_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    error: type[Exception],
    says: str,
) -> None:
    """A missing video or an empty question was refused after a minute of opening."""
    monkeypatch.chdir(tmp_path)
    model = [] if "-m" in arguments else ["-m", str(bundle_path)]
    with pytest.raises(error, match=says):
        _ask(*arguments, *model)


@pytest.mark.parametrize(
    ("stdin", "error", "says"),
    [
        (b"\n \n", UsageError, "stdin has no question"),
        (b"Why?\n\n\xff\n", RequestError, "line 3 of stdin is not UTF-8"),
        (b"Why?\n" + b"x" * 65537, RequestError, "line 2 of stdin is longer than 65536 bytes"),
        (b"Why?\n" * 1001, RequestError, "more than 1000 questions"),
        (b"Why?\n\n<|end|>\n", RequestError, "^line 3 of stdin: .*special token"),
    ],
    ids=["none", "not-utf8", "long", "many", "special"],
)
@pytest.mark.usefixtures("unopened")
def test_an_error_names_the_line_of_stdin(bundle_path: Path, stdin: bytes, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        _ask(CLIP, "-", "-m", str(bundle_path), stdin=stdin)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
@pytest.mark.usefixtures("unopened")
def test_a_video_that_may_not_be_read(bundle_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret.mp4"
    path.write_bytes(b"")
    path.chmod(0)
    with pytest.raises(VideoError, match="cannot be opened"):
        _ask(str(path), "Why?", "-m", str(bundle_path))


def test_the_line_for_exchanged_arguments_runs(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was "What happens? cannot be opened"."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(CLIP, "my film.mp4")
    arguments = ["--max-new-tokens", "3", "What's up?", "my film.mp4", "Why?", "-m", str(bundle_path)]
    with pytest.raises(UsageError) as caught:
        _ask(*arguments)
    program, verb, *line = shlex.split(str(caught.value).partition("; run: ")[2])
    assert (program, verb) == ("blip3v", "ask")
    assert line == ["--max-new-tokens", "3", "my film.mp4", "What's up?", "Why?", "-m", str(bundle_path)]
    assert _ask(*line).stdout.startswith("What's up?\n")


def test_a_system_text_reaches_the_model(bundle_path: Path, lm: VideoLM) -> None:
    result = _ask(CLIP, QUESTION, "-m", str(bundle_path), "--system", "Answer in one word.")
    assert result.stdout == lm.ask(CLIP, QUESTION, system="Answer in one word.").text + "\n"
    assert result.stdout != lm.ask(CLIP, QUESTION).text + "\n"


def test_quiet_leaves_the_answer_alone(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_LARGE_BYTES", 2**20)
    loud, quiet = (_ask(CLIP, QUESTION, "-m", str(bundle_path), *flags) for flags in ([], ["-q"]))
    assert (quiet.stdout, quiet.stderr) == (loud.stdout, "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process its peak")
def test_each_process_has_its_own_peak(bundle_path: Path) -> None:
    """``peak_rss_bytes`` was the sum of both, so that who added the two counted the decoder twice."""
    found = json.loads(_ask(CLIP, QUESTION, "-m", str(bundle_path), "--json").stdout)
    assert found["video_decoder_peak_rss_bytes"] > 20 * 2**20
    assert found["peak_rss_bytes"] == pytest.approx(peak_rss_bytes(), rel=0.05)


def test_json_lines_leave_out_pieces_that_carry_nothing(bundle_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An answer that a stop token ended had a last "delta" without text and without a token."""
    printer = JsonLinesPrinter(bundle_path)
    for piece in (Delta("", 7), Delta("so", 8), Delta("me", None), Delta("", None)):
        printer.piece(piece)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["text"], line["token_id"]) for line in lines] == [("", 7), ("so", 8), ("me", None)]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_interrupts_the_engine(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C waited for the end of a call into the engine: of the whole video encoder, tens of seconds at full size."""
    started_s, interrupted_s = [], []

    def encode_video(*arguments: Any) -> VideoTokens:
        deadline: Deadline = arguments[-1]
        with deadline.interrupting(lambda: interrupted_s.append(time.monotonic())):
            started_s.append(time.monotonic())
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)  # a second that no signal handler interrupts
            raise AssertionError("a real engine ends with an error here")

    monkeypatch.setattr(video_lm, "encode_video", encode_video)
    result = CliRunner().invoke(command, [CLIP, QUESTION, "-m", str(bundle_path)])
    assert (result.exit_code, result.stdout, result.stderr.strip()) == (1, "", "Aborted!")  # 130 by blip3v.cli
    assert interrupted_s[0] - started_s[0] < (time.monotonic() - started_s[0]) / 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("form", ["--json", "--jsonl"])
def test_an_error_is_json_too(bundle_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    """With --jsonl it is the last line and has a type like the others."""
    assert cli._run(["ask", CLIP, "Why?", "Is it <|end|>?", "-m", str(bundle_path), form]) == 8
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found.pop("type", None) == ("error" if form == "--jsonl" else None)
    error = found.pop("error")
    assert (error["type"], error["exit_code"], found) == ("RequestError", 8, {})
    assert printed.err == f"error: {error['message']}\n"
    assert error["message"].startswith("question 2: ")


def test_help_has_examples_and_defaults() -> None:
    text = _ask("--help").stdout
    assert text.count("blip3v ask ") == 5
    assert "[default: 0.0]" in text
    assert "[default: the only blip3v-* bundle in the current folder]" in " ".join(text.split())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of four images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (20, 20), (60 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


def test_frames_without_times_and_how_many_differ(bundle_path: Path, pictures: Path) -> None:
    """A folder's frames were told to be a second apart; that the model saw one of them only was not told at all."""
    result = _ask(str(pictures), QUESTION, "-m", str(bundle_path))
    assert "frames: 2, 2, 2, 2\n" in result.stderr
    assert "different frames: 1 of 4, because the clip is short; a longer one shows the model more" in result.stderr
    found = json.loads(_ask(str(pictures), QUESTION, "-m", str(bundle_path), "--json").stdout)
    assert found["frames"] == [{"index": 2, "time_s": None}] * 4
    assert found["num_different_frames"] == 1
    assert "different frames" not in _ask(CLIP, QUESTION, "-m", str(bundle_path)).stderr


def test_one_picture_is_no_short_clip(bundle_path: Path, pictures: Path) -> None:
    """It was told to be a clip that should be longer."""
    said = _ask(str(pictures / "1.png"), QUESTION, "-m", str(bundle_path)).stderr
    assert "frames: one picture, shown 4 times\n" in said
    assert "different frames" not in said


def test_a_start_after_the_end(bundle_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was that no frame lies between 50 s and the end."""
    assert cli._run(["ask", CLIP, QUESTION, "-m", str(bundle_path), "--start", "50"]) == 2
    assert capsys.readouterr().err == "error: start is 50 s, and the video is 4.800 s long; choose an earlier --start\n"


def test_a_frame_rate_gives_a_folder_times(bundle_path: Path, pictures: Path) -> None:
    result = _ask(str(pictures), QUESTION, "-m", str(bundle_path), "--fps", "2", "--start", "0.5")
    assert "frames: 1 (0.50 s), 1 (0.50 s), 2 (1.00 s), 3 (1.50 s)\n" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start", "1"], "start is 1 s, but pictures have no times; give their frame rate, for example --fps 25,"),
        (["--end", "1"], "for example --fps 25, or leave --end out"),
    ],
    ids=["start", "end"],
)
def test_a_part_of_a_folder_needs_a_frame_rate(
    bundle_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli._run(["ask", str(pictures), QUESTION, "-m", str(bundle_path), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("url", ["https://example.org/film.mp4", "https:/example.org/film.mp4"])
def test_a_url_needs_permission(bundle_path: Path, capsys: pytest.CaptureFixture[str], url: str) -> None:
    """The URL was shown with one slash, as a file that is not there."""
    assert cli._run(["ask", url, QUESTION, "-m", str(bundle_path)]) == 7
    said = "https://example.org/film.mp4 is a URL, which the video limits do not allow to fetch; pass --allow-url, or "
    assert said in capsys.readouterr().err


def test_a_url_that_is_allowed_is_downloaded(bundle_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On this machine only with a second permission. The progress is talk, and the log is as quiet as before."""
    with serving(Path(CLIP).read_bytes()) as server:
        url = server.url("film.mp4")
        assert cli._run(["ask", url, QUESTION, "-m", str(bundle_path), "--allow-url"]) == 7
        assert "if it is to be reached, pass --allow-private-url" in capsys.readouterr().err
        assert cli._run(["ask", url, QUESTION, "-m", str(bundle_path), "--allow-url", "--allow-private-url"]) == 0
    printed = capsys.readouterr()
    assert f"downloading {url}, " in printed.err
    assert "\ndownloaded " in printed.err
    assert cli._run(["ask", CLIP, QUESTION, "-m", str(bundle_path)]) == 0
    assert capsys.readouterr().out == printed.out
    assert logging.getLogger("blip3v.video.download").handlers == []
