"""The authors' JSON list: its samples, and that every error names the record and the field."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3v.data.authors import _seconds, read_samples
from blip3v.data.records import ClipSample, Turn
from blip3v.errors import ConfigError


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(texts)]


def record(**fields: Any) -> dict[str, Any]:
    return {"path": "cat.mp4", "conversations": talk("<image>\nWhat is it?", "a cat")} | fields


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cat.mp4").write_bytes(b"")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0001.JPG").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    return tmp_path


def read(folder: Path, *records: object) -> list[ClipSample]:
    path = folder / "list.json"
    path.write_text(json.dumps(records))
    return read_samples(path)


def test_a_record_becomes_a_sample(folder: Path) -> None:
    given = record(id=17, conversations=talk("<image>\nWhat is it? ", " a cat", "What does it do?", "it jumps"))
    assert read(folder, given) == [
        ClipSample(folder / "cat.mp4", (Turn("What is it?", "a cat"), Turn("What does it do?", "it jumps")))
    ]
    assert read_samples(str(folder / "list.json")) == read_samples(folder / "list.json")


def test_order_and_count_are_kept(folder: Path) -> None:
    records = [record(conversations=talk(f"<image>\n{number}?", str(number))) for number in range(20)]
    assert [sample.turns[0].answer for sample in read(folder, *records)] == [str(number) for number in range(20)]
    assert read(folder) == []


def test_frames_and_absolute_paths(folder: Path) -> None:
    one, other = read(folder, record(path="frames"), record(path=str(folder / "cat.mp4")))
    assert (one.video, other.video) == (folder / "frames", folder / "cat.mp4")


@pytest.mark.parametrize("value", ["<image>\nWhat?", "<image>What?", "What?\n<image>", " \n<image> What? "])
def test_image_mark_may_lead_or_trail(value: str, folder: Path) -> None:
    assert read(folder, record(conversations=talk(value, "that")))[0].turns[0].question == "What?"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"clip_timestamps": ["00:00:02.000", "01:00:05.500"]}, (2.0, 3605.5)),
        ({"clip_timestamps": ["00:00:00", "00:10:00"]}, (0.0, 600.0)),
        ({"start_time": 1, "end_time": 2.5}, (1.0, 2.5)),
        ({"start_time": "00:00:01.250"}, (1.25, None)),
        ({"end_time": 4.0}, (None, 4.0)),
        ({"start_time": None, "end_time": None, "clip_timestamps": None}, (None, None)),
    ],
    ids=str,
)
def test_time_ranges(fields: dict[str, Any], expected: tuple[float | None, float | None], folder: Path) -> None:
    sample = read(folder, record(**fields))[0]
    assert (sample.start_s, sample.end_s) == expected


WRONG: dict[str, tuple[object, str]] = {
    "not an object": ("cat.mp4", "record 1 is a string; an object with path and conversations is expected"),
    "no path": ({"conversations": []}, "record 1 lacks the field 'path'"),
    "no conversations": ({"path": "cat.mp4"}, "record 1 lacks the field 'conversations'"),
    "unknown field": (record(video="cat.mp4"), "record 1 has the field 'video', which is not supported; allowed: path"),
    "mask": (record(annotation=[]), "record 1 has the field 'annotation', which is not supported"),
    "path is a number": (record(path=3), "record 1: path is 3"),
    "path is empty": (record(path=""), "record 1: path is ''"),
    "path holds a zero": (record(path="cat\0.mp4"), "record 1: path is 'cat"),
    "no such file": (record(path="dog.mp4"), "record 1: path is 'dog.mp4', but "),
    "folder without frames": (record(path="empty"), "record 1: path is the folder "),
    "no turns": (record(conversations=[]), "record 1: conversations is a list of 0; one or more pairs of"),
    "turns are null": (record(conversations=None), "record 1: conversations is null; one or more pairs of"),
    "no answer": (
        record(conversations=talk("<image>\nWhat?")),
        "record 1: conversations is a list of 1; one or more pairs of",
    ),
    "message is a string": (record(conversations=["a", "b"]), "record 1: conversations[0] is a string; an object"),
    "message without value": (
        record(conversations=[{"from": "human"}, {"from": "gpt"}]),
        "record 1: conversations[0] lacks the field 'value'",
    ),
    "message with more": (
        record(conversations=[{"from": "human", "value": "<image>", "weight": 1}, {"from": "gpt", "value": ""}]),
        "record 1: conversations[0] has the field 'weight'",
    ),
    "wrong speaker": (
        record(conversations=[{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]),
        "record 1: conversations[0]: from is 'gpt'; 'human' is expected",
    ),
    "value is a number": (
        record(conversations=[{"from": "human", "value": "<image> a"}, {"from": "gpt", "value": 5}]),
        "record 1: conversations[1]: value is a number; a string is expected",
    ),
    "no image": (record(conversations=talk("What?", "that")), "conversations[0]: value contains <image> 0 times"),
    "two images": (
        record(conversations=talk("<image><image>\nWhat?", "that")),
        "record 1: conversations[0]: value contains <image> 2 times",
    ),
    "image inside": (record(conversations=talk("In <image> what?", "that")), "contains <image> inside the text"),
    "image later": (
        record(conversations=talk("<image>\nWhat?", "that", "<image> And?", "this")),
        "record 1: conversations[2]: value contains <image>; only the first",
    ),
    "empty question": (record(conversations=talk("<image>\n ", "that")), "conversations[0]: value contains no text"),
    "empty answer": (record(conversations=talk("<image>\nWhat?", "")), "conversations[1]: value contains no text"),
    "three stamps": (record(clip_timestamps=["00:00:00"] * 3), "record 1: clip_timestamps is ['00:00:00', "),
    "stamps in seconds": (record(clip_timestamps=[0, 1]), "record 1: clip_timestamps is [0, 1]; [start, end] as"),
    "bad stamp": (
        record(clip_timestamps=["00:00:00", "00:61:00"]),
        "record 1: clip_timestamps[1] is '00:61:00'; seconds from 0 or \"HH:MM:SS.sss\" is expected",
    ),
    "stamps reversed": (record(clip_timestamps=["00:00:05", "00:00:02"]), "clip_timestamps[1] is '00:00:02', which"),
    "both ranges": (
        record(clip_timestamps=["00:00:00", "00:00:02"], end_time=3),
        "record 1 has both clip_timestamps and start_time or end_time",
    ),
    "negative start": (record(start_time=-1), "record 1: start_time is -1; seconds from 0 or"),
    "true start": (record(start_time=True), "record 1: start_time is True; seconds from 0 or"),
    "end at 0": (record(end_time=0), "record 1: end_time is 0, which is not after 0 s"),
    "range of frames": (record(path="frames", start_time=1), "record 1 gives a time range for a folder of frames"),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=list(WRONG))
def test_an_error_names_the_record_and_the_field(wrong: object, message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read(folder, record(), wrong)
    assert str(folder / "list.json") in str(caught.value)
    assert "record 1" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[{]", "cannot be read as JSON"),
        ("{}", "is an object; a list of records"),
        ('[{"path": "a", "path": "b"}]', "'path' appears twice"),
        ('[{"path": "cat.mp4", "start_time": NaN}]', "list.json"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
    ids=["empty", "broken", "object", "twice", "nan", "deep"],
)
def test_files_that_are_not_a_list(text: str, message: str, folder: Path) -> None:
    path = folder / "list.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_samples(path)


def test_missing_and_binary_files(folder: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        read_samples(folder / "none.json")
    (folder / "list.json").write_bytes(b"\xff\xfe[]")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        read_samples(folder / "list.json")


@given(st.integers(0, 999), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_clock_times_are_exact_to_the_millisecond(hours: int, minutes: int, seconds: int, milli: int) -> None:
    text = f"{hours:02}:{minutes:02}:{seconds:02}.{milli:03}"
    assert round(_seconds(text, "here") * 1000) == ((hours * 60 + minutes) * 60 + seconds) * 1000 + milli


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["path", "conversations", "from", "value", "start_time"]), inner)
        ),
    )
)
def test_any_json_gives_samples_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value))
    message = "any.json"
    try:
        read_samples(path)
    except ConfigError as error:
        message = str(error)
    assert "any.json" in message
