"""Training on a user's own clips: workers, broken files, conversations, resuming. Real files, a few steps."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from batch_tensors import tensors_of
from clip_files import BROKEN, NUM_CLIPS, recipe, write_list

from blip3v.data.authors import open_clips
from blip3v.data.samples import FilmSource, Pair, Source
from blip3v.errors import ConfigError, RequestError
from blip3v.model import IGNORE_INDEX
from blip3v.text import RELEASED_TEMPLATE, GenerationConfig, Message, Tokenizer, render_chat, train_tokenizer
from blip3v.training.broken import BrokenClip, BrokenClips
from blip3v.training.chat_rows import ChatFormat
from blip3v.training.clip_batches import Batches
from blip3v.training.clip_pixels import ClipPixels
from blip3v.training.loading import loaded_ahead
from blip3v.training.loop import Share, StageSummary, _Shares
from blip3v.training.options import TrainOptions
from blip3v.training.order import candidates
from blip3v.training.recipe import PlannedStage
from blip3v.training.run import train
from blip3v.video.preprocess import PreprocessorConfig

WITHOUT_LIMIT = {"max_broken_clips": 1000}


class Watching:
    """Notes what a run tells; can end it after a logged step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.clips, self.summaries = list[BrokenClip](), list[StageSummary]()

    def start(self, origin: dict[str, str]) -> None: ...
    def stage(self, index: int, planned: PlannedStage) -> None: ...
    def features(self, done: int, total: int) -> None: ...

    def broken(self, clip: BrokenClip) -> None:
        self.clips.append(clip)

    def end(self, summary: StageSummary) -> None:
        self.summaries.append(summary)

    def step(self, step: int, num_steps: int, loss: float) -> None:
        if step == self.stop_at:
            raise KeyboardInterrupt


def logged(output: Path) -> list[dict[str, Any]]:
    """The lines of the log without the times."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text("utf-8").splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith("_s")} for line in lines]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_list(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    texts = ["What colour is it? It is red. And then?", *(f"{number} comes then." for number in range(NUM_CLIPS))]
    return ChatFormat(
        Tokenizer(train_tokenizer(texts, vocab_size_base=300)),
        RELEASED_TEMPLATE,
        GenerationConfig(system_prompt=None, max_new_tokens=8),
    )


def batches_of(source: Source, chat: ChatFormat) -> Batches:
    return Batches(ClipPixels(source, PreprocessorConfig(image_size=16)), chat, batch_size=4, seed=3)


def test_workers_make_the_batches_that_one_process_makes(clips: Path, chat: ChatFormat) -> None:
    """On films and on files, two of which are broken; bit for bit."""
    shares = [Share(step, rank=0, world=2) for step in range(3)]
    sources = (open_clips(str(clips), num_frames=2, seed=1), FilmSource("instructions", 6, 2, 2, 1))
    for source in sources:
        with loaded_ahead(_Shares(batches_of(source, chat)), shares, workers=0) as made:
            expected = list(made)
        with loaded_ahead(_Shares(batches_of(source, chat)), shares, workers=2) as made:
            found = list(made)
        for one, other in zip(expected, found, strict=True):
            tensors = tensors_of(one)
            assert len(tensors) == 6
            assert all(torch.equal(x, y) for x, y in zip(tensors, tensors_of(other), strict=True))
            assert one.notes == other.notes
    noted = {clip.clip for batch in found for clip in batch.notes.broken}
    assert noted == set()


def test_a_broken_clip_is_replaced_by_the_next_of_its_order(clips: Path, chat: ChatFormat) -> None:
    batches = batches_of(open_clips(str(clips), num_frames=2, seed=1), chat)
    order = [next(candidates(position, NUM_CLIPS, 3))[0] for position in range(NUM_CLIPS)]
    read = [batches.batch(step) for step in range(2)]
    assert {clip.clip for batch in read for clip in batch.notes.broken} == set(BROKEN)
    at = order.index(BROKEN[0])
    follower = next(clip for clip in (order[at + 1 :] + order) if clip not in BROKEN)
    ids = read[at // 4].ids_CL[at % 4]
    assert f"{follower} comes then." in chat.tokenizer.decode(ids.tolist())


def test_data_that_is_all_broken_ends_the_run(tmp_path: Path, chat: ChatFormat) -> None:
    listed = write_list(tmp_path, broken=tuple(range(NUM_CLIPS)))
    with pytest.raises(ConfigError, match=f"{NUM_CLIPS} clips one after the other cannot be read, of which the last"):
        batches_of(open_clips(str(listed), num_frames=2, seed=1), chat).batch(0)


def test_too_many_broken_clips_are_named() -> None:
    clips = [BrokenClip(step, step, f"{step}.mp4", "not a video") for step in range(1, 6)]
    few = BrokenClips(max_clips=5, max_share=0.0)
    few.add(clips, 6)
    BrokenClips(max_clips=0, max_share=0.5).add(clips, 10)
    with pytest.raises(ConfigError, match=r"6 of 7 clips .* 1.mp4 \(not a video\); 2.mp4 .*; and 3 more") as found:
        few.add(clips[:1], 7)
    assert "`max_broken_share`" in found.value.remedy


TURNS = (Pair("What colour is it?", "It is red."), Pair("And then?", "3 comes then."), Pair("And then?", "4."))


def test_a_conversation_is_one_row_with_its_history(chat: ChatFormat) -> None:
    """The ids are those of the whole conversation in the template's form; every answer and its end has labels."""
    row = chat.row(TURNS)
    messages = [Message(*each) for turn in TURNS for each in (("user", turn.question), ("assistant", turn.answer))]
    messages[0] = Message("user", f"<image>\n{messages[0].content}")
    whole = chat.tokenizer.encode(render_chat(chat.template, messages))
    assert row.ids == whole[: len(row.ids)]
    assert not row.is_cut
    learnt = [token for token in row.labels if token != IGNORE_INDEX]
    end = chat.tokenizer.end_id
    answers = [chat.tokenizer.encode(turn.answer) for turn in TURNS]
    assert learnt == [token for answer in answers for token in (*answer, end)]
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(row.ids, row.labels, strict=True))


def test_a_long_conversation_ends_after_a_turn(chat: ChatFormat) -> None:
    whole, two = chat.row(TURNS), chat.row(TURNS[:2])
    cut = chat.row(TURNS, len(whole.ids) - 1)
    assert (cut.ids, cut.labels, cut.is_cut) == (two.ids, two.labels, True)
    one = chat.row(TURNS[:1])
    short = chat.row(TURNS, len(one.ids) - 2)
    assert (short.ids, short.is_cut) == (one.ids[:-2], True)
    with pytest.raises(RequestError, match="max_tokens is 3"):
        chat.row(TURNS, 3)


def test_a_run_logs_and_resumes_with_broken_clips_and_refuses_other_data(clips: Path, tmp_path: Path) -> None:
    options = TrainOptions(output=tmp_path / "whole", data=str(clips), device="cpu", workers=0)
    seen = Watching()
    train(recipe(), options, seen)
    lines = logged(tmp_path / "whole")
    named = [(line["step"], clip["clip"]) for line in lines for clip in line.get("broken", ())]
    assert named == [(clip.step, clip.clip) for clip in seen.clips]
    assert {clip for _, clip in named} == set(BROKEN)
    (summary,) = seen.summaries
    assert (summary.num_steps, summary.num_broken) == (6, len(named))
    assert 0 < summary.data_s < summary.step_s
    parts = dataclasses.replace(options, output=tmp_path / "parts", workers=2)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), parts, Watching(stop_at=3))
    edited = write_list_copy(tmp_path, clips)
    resumed = dataclasses.replace(parts, resume=True)
    with pytest.raises(ConfigError, match="was started on other data"):
        train(recipe(), dataclasses.replace(resumed, data=str(edited)), Watching())
    train(recipe(), resumed, Watching())
    assert logged(tmp_path / "parts") == lines


def write_list_copy(folder: Path, clips: Path) -> Path:
    """The same videos with other answers."""
    records = json.loads(clips.read_text("utf-8"))
    for record in records:
        record["path"] = str(clips.parent / record["path"])
        record["conversations"][1]["value"] = "It is blue."
    edited = folder / "edited.json"
    edited.write_text(json.dumps(records), "utf-8")
    return edited


KILLED = """
import os, signal, sys
from pathlib import Path
from clip_files import recipe
from test_clips import Watching
from blip3v.training.options import TrainOptions
from blip3v.training.run import train

class Killed(Watching):
    def step(self, step, num_steps, loss):
        if step == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    options = TrainOptions(
        output=Path(sys.argv[1]), data=sys.argv[2], device="cpu", workers=2, resume=sys.argv[4] == "resume"
    )
    train(recipe(), options, Killed())
"""


@pytest.mark.slow
def test_a_run_that_is_killed_twice_has_the_losses_of_one_that_is_not(clips: Path, tmp_path: Path) -> None:
    """SIGKILL, with workers and broken clips. No process stays behind."""
    train(recipe(), TrainOptions(output=tmp_path / "whole", data=str(clips), device="cpu", workers=0), Watching())
    script = tmp_path / "killed.py"
    script.write_text(KILLED, "utf-8")
    paths = [str(Path(__file__).parent), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    for step, resume in ((3, ""), (5, "resume")):
        command = [sys.executable, str(script), str(tmp_path / "parts"), str(clips), str(step), resume]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    options = TrainOptions(output=tmp_path / "parts", data=str(clips), device="cpu", workers=2, resume=True)
    train(recipe(), options, Watching())
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
