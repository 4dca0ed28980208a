"""Every reader on records in the published form: what becomes a sample, what is missing, and what is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from published import VIDEOS, lay_out

from blip3v.data.readers import data_set, data_sets
from blip3v.data.readers.captions import DENSE_QUESTION, SHORT_QUESTION
from blip3v.data.records import ClipSample, Found, Turn
from blip3v.errors import ConfigError, UsageError

NAMES = list(data_sets())
each_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    return {name: lay_out(name, folder / name) for name in NAMES}


def read(roots: dict[str, Path], name: str, split: str) -> Found:
    return data_set(name).read(roots[name], split)


def test_the_fixtures_hold_every_data_set() -> None:
    assert set(VIDEOS) == set(NAMES)


def test_the_names_are_those_of_the_command_line() -> None:
    assert NAMES == [
        "llava-hound",
        "miradata",
        "video-instruct",
        "msvd-qa",
        "msrvtt-qa",
        "activitynet-qa",
        "tgif-qa",
        "nextqa-open",
        "nextqa",
        "msvd-caption",
        "msrvtt-caption",
        "huggingface",
    ]


@each_name
def test_every_split_keeps_the_contract(name: str, roots: dict[str, Path]) -> None:
    num_samples = 0
    for split in data_set(name).splits:
        if (name, split) == ("huggingface", "validation"):
            continue  # a folder need not have it
        found = read(roots, name, split)
        num_samples += len(found.samples)
        assert len({sample.key for sample in found.samples}) == len(found.samples)
        for sample in found.samples:
            assert sample.video.exists()
            assert roots[name] in sample.video.parents
            assert all(turn.question and turn.answer for turn in sample.turns)
            assert not sample.options or sample.turns[-1].answer in sample.options
            assert not sample.references or sample.turns[-1].answer in sample.references
        assert all(count > 0 for count in found.missing.values())
    assert num_samples > 0


@pytest.mark.parametrize(
    ("name", "split", "num_samples", "missing"),
    [
        ("llava-hound", "train", 2, {"v_gone-Scene-001": 1}),
        ("miradata", "train", 11, {"000000000/000000000005_CCCCCCCCCCC-000001": 6}),
        ("miradata", "test", 6, {}),
        ("video-instruct", "train", 2, {"v_missing0001": 1}),
        ("msvd-qa", "train", 1, {"vid2": 1}),
        ("msvd-qa", "test", 2, {"vid1303": 1}),
        ("msrvtt-qa", "test", 2, {"video7011": 1}),
        ("activitynet-qa", "val", 2, {"v_gone0000001": 1}),
        ("tgif-qa", "train", 2, {"tumblr_gone0000000000000o1_400": 1}),
        ("tgif-qa", "test", 2, {}),
        ("tgif-qa", "test-count", 1, {}),
        ("nextqa-open", "test", 2, {"9999999999": 1}),
        ("nextqa", "val", 2, {"9999999999": 1}),
        ("msvd-caption", "train", 2, {"-bbbbbbbbb__1_10": 2}),
        ("msvd-caption", "test", 1, {"eeeeeeeeeee_4_13": 1}),
        ("msrvtt-caption", "train", 2, {"video1": 2}),
        ("msrvtt-caption", "test", 1, {"video7010": 1}),
        ("huggingface", "train", 2, {"gone.mp4": 1}),
    ],
)
def test_missing_videos_are_counted_with_their_records(
    name: str, split: str, num_samples: int, missing: dict[str, int], roots: dict[str, Path]
) -> None:
    found = read(roots, name, split)
    assert (len(found.samples), found.missing) == (num_samples, missing)


def test_a_question_with_one_answer(roots: dict[str, Path]) -> None:
    assert read(roots, "msrvtt-qa", "test").samples[0] == ClipSample(
        roots["msrvtt-qa"] / "video" / "video7010.mp4", (Turn("what turns left?", "circle"),), key="100"
    )
    sample = read(roots, "activitynet-qa", "test").samples[1]
    assert (sample.turns[0], sample.key, sample.kind) == (
        Turn("what is next to the circle", "square"),
        "v_1QIUV7WYKXg_4",
        "spatial",
    )


def test_five_options_and_the_right_one(roots: dict[str, Path]) -> None:
    first, second = read(roots, "nextqa", "test").samples
    assert (first.key, first.kind, first.turns[0].answer) == ("2574374895_6", "CH", "it turns left")
    assert first.options == ("it turns left", "it falls", "it waits", "it grows", "it blinks")
    assert second.turns[0].answer == "it waited, then left"


def test_open_ended_answers_have_the_second_reference_of_the_test_split(roots: dict[str, Path]) -> None:
    same, other = read(roots, "nextqa-open", "test").samples
    assert (same.references, other.references) == (("yes",), ("turn left", "it turned"))
    assert all(not sample.references for sample in read(roots, "nextqa-open", "val").samples)


def test_tgif_is_open_ended_as_in_the_paper_and_five_way_by_task(roots: dict[str, Path]) -> None:
    train = read(roots, "tgif-qa", "train").samples
    assert [(sample.kind, sample.turns[0].answer, sample.options) for sample in train] == [
        ("action", "turn left", ()),
        ("transition", "turn left", ()),
    ]
    assert read(roots, "tgif-qa", "test-action").samples[0].options == ("grow", "turn left", "vanish", "blink", "fall")
    shown, colour = read(roots, "tgif-qa", "test").samples
    assert (shown.turns[0].question, shown.kind, colour.kind) == (
        'what is turning on the "grey plane ?',
        "object",
        "color",
    )


def test_captions_train_one_by_one_and_are_compared_all_together(roots: dict[str, Path]) -> None:
    both = ("a red circle turns left", "something red is turning")
    for name, key in (("msvd-caption", "aaaaaaaaaaa_0_9"), ("msrvtt-caption", "video0")):
        train = read(roots, name, "train").samples
        assert [(sample.key, sample.turns) for sample in train] == [
            (f"{key}-{at}", (Turn(SHORT_QUESTION, caption),)) for at, caption in enumerate(both)
        ]
        assert [sample.references for sample in read(roots, name, "test").samples] == [both]


def test_every_caption_of_miradata_answers_its_own_question(roots: dict[str, Path]) -> None:
    samples = read(roots, "miradata", "train").samples
    assert [sample.kind for sample in samples[:6]] == [
        "short",
        "dense",
        "main object",
        "background",
        "style",
        "camera",
    ]
    assert samples[1].turns == (Turn(DENSE_QUESTION, "A red circle turns left over a grey plane."),)
    assert samples[1].key == "000000001000_AAAAAAAAAAA-000000-dense"


def test_the_later_release_of_miradata_gives_places(tmp_path: Path) -> None:
    columns = "short_caption,dense_caption,background_caption,main_object_caption,style_caption,camera_caption"
    (tmp_path / "miradata_v1_9k.csv").write_text(
        f"clip_id,source,file_path,{columns}\n7.1,videvo,./clips/7.1.mp4,s,d,b,m,st,c\n7.2,videvo,../7.2.mp4,s,d,b,m,t,c\n"
    )
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "7.1.mp4").touch()
    with pytest.raises(ConfigError, match=r"record 1 names the video '\.\./7\.2\.mp4'; a name inside"):
        data_set("miradata").read(tmp_path, "train")
    table = tmp_path / "miradata_v1_9k.csv"
    table.write_text(table.read_text("utf-8").replace("../", ""))
    found = data_set("miradata").read(tmp_path, "train")
    assert ([sample.video for sample in found.samples[:1]], found.missing) == (
        [tmp_path / "clips" / "7.1.mp4"],
        {"7.2.mp4": 6},
    )


def test_conversations_lose_the_mark_of_the_video(roots: dict[str, Path]) -> None:
    first, second = read(roots, "llava-hound", "train").samples
    assert first.turns[0].question == "What happens here?"
    assert second.turns[0].question == "Give a detailed caption of the clip."
    assert read(roots, "huggingface", "train").samples[1].turns == (
        Turn("What is it?", "a square"),
        Turn("What does it do?", "it waits"),
    )


@each_name
def test_an_empty_root_says_what_to_get_from_whom_and_where_it_must_lie(name: str, tmp_path: Path) -> None:
    about = data_set(name).about
    for root, problem in ((tmp_path, "contains no "), (tmp_path / "none", "is not a folder")):
        with pytest.raises(UsageError) as caught:
            data_set(name).read(root, data_set(name).splits[0])
        for part in (str(root), problem, about.title, about.authors, about.licence):
            assert part in str(caught.value)
        assert "{" not in str(caught.value)


@each_name
def test_a_split_that_is_not_there(name: str, roots: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{name} has no split 'dev'; allowed: {data_set(name).splits[0]}")):
        read(roots, name, "dev")


# What is replaced in a file, by what, and what the error then says.
BROKEN = {
    "llava-hound": ("video_instruction/train/pretrain/video_caption_pretrain.jsonl", '"gpt"', '"human"', "line 1:"),
    "miradata": ("miradata_v0.csv", "000000001001_", "x_", "record 1: index is 'x_BBBBBBBBBBB-000002'; a name such as"),
    "video-instruct": ("VideoInstruct100K.json", '"a"', '"answer"', "record 0 lacks the field 'a'; it has q, answer"),
    "msvd-qa": ("train_qa.json", '"circle"', '" "', "record 0: answer is ' '; text is expected"),
    "msrvtt-qa": ("train_qa.json", '"video_id": 1', '"video_id": "/../1"', "record 1 names the video 'video/../1'"),
    "activitynet-qa": ("dataset/train_a.json", '"type": 1', '"type": 9', "record 1: type is 9; a whole number"),
    "tgif-qa": ("dataset/Train_action_question.csv", "\t3\tACTION12", "\t5\tACTION12", "record 1: answer is '5'"),
    "nextqa-open": ("train.csv", "home,3,DL", "home,DL", "record 2 has 7 cells; 8 are expected, as in line 1"),
    "nextqa": ("train.csv", ",2,1,TN", ",two,1,TN", "record 1: answer is 'two'; a number is expected"),
    "msvd-caption": ("AllVideoDescriptions.txt", "9 a red circle turns left", "9", "line 4 is 'aaaaaaaaaaa_0_9'"),
    "msrvtt-caption": ("train_val_videodatainfo.json", '"videos"', '"clips"', "videos is not a list; a JSON list"),
    "huggingface": ("train/metadata.jsonl", '"caption"', '"label"', "line 3 has the columns file_name, label"),
}  # fmt: skip


@each_name
def test_a_broken_record_is_one_clear_error(name: str, roots: dict[str, Path], tmp_path: Path) -> None:
    file, text, wrong, message = BROKEN[name]
    root = shutil.copytree(roots[name], tmp_path / name, symlinks=True)
    content = (root / file).read_text("utf-8")
    assert text in content
    (root / file).write_text(content.replace(text, wrong, 1), "utf-8")
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        data_set(name).read(root, "train")
    assert str(root / file) in str(caught.value) or Path(file).name in str(caught.value)


@each_name
def test_a_file_that_is_none_is_one_clear_error(name: str, roots: dict[str, Path], tmp_path: Path) -> None:
    file = BROKEN[name][0]
    root = shutil.copytree(roots[name], tmp_path / name, symlinks=True)
    (root / file).write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="cannot be read as"):
        data_set(name).read(root, "train")


def test_an_answer_that_is_not_there(roots: dict[str, Path], tmp_path: Path) -> None:
    root = shutil.copytree(roots["activitynet-qa"], tmp_path / "a", symlinks=True)
    (root / "dataset" / "train_a.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"has question_id 'v_okC18bPTils_3', which train_a\.json does not answer"):
        data_set("activitynet-qa").read(root, "train")


def test_a_wrong_name_gets_the_nearest_or_all() -> None:
    with pytest.raises(UsageError, match="data set 'msrvt-qa' is unknown; did you mean 'msrvtt-qa'"):
        data_set("msrvt-qa")
    with pytest.raises(UsageError, match="data set 'xyz' is unknown; allowed: llava-hound, miradata"):
        data_set("xyz")
