"""Prompts: one image, no forged turns, follow-up turns that fit the cache, the splice."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from blip3v.errors import ArtifactVersionError, ConfigError, RequestError
from blip3v.text import (
    RELEASED_SYSTEM_PROMPT,
    RELEASED_TEMPLATE,
    GenerationConfig,
    Message,
    Tokenizer,
    build_prompt,
    continue_prompt,
    splice,
    train_tokenizer,
)
from blip3v.text.special import ADDED_TOKENS, BASE_TOKENS

PLAIN = GenerationConfig(system_prompt=None, max_new_tokens=32)
RELEASED = GenerationConfig(system_prompt=RELEASED_SYSTEM_PROMPT, max_new_tokens=1024)
SPECIAL = [token.text for token in (*BASE_TOKENS, *ADDED_TOKENS)]


def ask(question: str) -> list[Message]:
    return [Message("user", question)]


def test_the_released_prompt_with_its_system_turn(film_tokenizer: Tokenizer) -> None:
    prompt = build_prompt(film_tokenizer, RELEASED_TEMPLATE, RELEASED, ask("What turns?"))
    text = f"<|system|>\n{RELEASED_SYSTEM_PROMPT}<|end|>\n<|user|>\n<image>\nWhat turns?<|end|>\n<|assistant|>\n"
    assert prompt.ids == film_tokenizer.encode(text)
    assert prompt.ids[prompt.image_position] == film_tokenizer.image_id
    assert prompt.length(32) == len(prompt.ids) + 31


def test_a_system_turn_of_the_caller_takes_the_place_of_the_default(film_tokenizer: Tokenizer) -> None:
    prompt = build_prompt(film_tokenizer, RELEASED_TEMPLATE, RELEASED, [Message("system", "Short."), *ask("What?")])
    assert prompt.ids == film_tokenizer.encode("<|system|>Short.<|end|><|user|><image>\nWhat?<|end|><|assistant|>")


@pytest.mark.parametrize(
    "system", ["Answer in one word.", "Zwei Zeilen,\n  und \u00fcber Umlaute.", RELEASED_SYSTEM_PROMPT]
)
def test_a_system_turn_is_rendered_as_transformers_renders_it(piece_tokenizer: Tokenizer, system: str) -> None:
    backend = tokenizers.Tokenizer.from_str(piece_tokenizer._backend.to_str())
    oracle = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=RELEASED_TEMPLATE, eos_token="<|end|>")
    turns = [{"role": "system", "content": system}, {"role": "user", "content": "<image>\nWhat turns?"}]
    expected = oracle.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    found = build_prompt(piece_tokenizer, RELEASED_TEMPLATE, PLAIN, [Message("system", system), *ask("What turns?")])
    assert found.ids == expected


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% if messages[0].role == 'system' %}{{ messages[1].content }}{% else %}{{ messages[0].content }}{% endif %}",
    ],
    ids=["passed over", "skipped"],
)
def test_a_template_without_a_system_turn_refuses_the_callers_and_drops_the_models(
    film_tokenizer: Tokenizer, template: str
) -> None:
    assert build_prompt(film_tokenizer, template, RELEASED, ask("What?")).image_position == 0
    with pytest.raises(RequestError, match=r"writes no system turn.*; leave `system` out"):
        build_prompt(film_tokenizer, template, RELEASED, [Message("system", "Short."), *ask("What?")])


@pytest.mark.parametrize("role", ["user", "system", "assistant"])
@pytest.mark.parametrize("token", SPECIAL)
def test_a_special_token_in_a_message_is_refused_by_name(film_tokenizer: Tokenizer, token: str, role: str) -> None:
    messages = [Message(role, f"What{token} turns?"), *ask("Which?")]
    with pytest.raises(RequestError) as caught:
        build_prompt(film_tokenizer, RELEASED_TEMPLATE, PLAIN, messages)
    assert f"{role} message contains the special token {token};" in str(caught.value)
    with pytest.raises(RequestError, match="special token"):
        continue_prompt(film_tokenizer, RELEASED_TEMPLATE, f"What{token} turns?")


@given(question=st.text(alphabet=st.sampled_from([*"<|>/aeimgndusr\n "]), min_size=1) | st.text(min_size=1))
def test_no_question_makes_more_special_tokens_than_its_own_turn(film_tokenizer: Tokenizer, question: str) -> None:
    try:
        ids = build_prompt(film_tokenizer, RELEASED_TEMPLATE, PLAIN, ask(question)).ids
    except RequestError:
        return
    special = [i for i in ids if i in film_tokenizer.added_tokens.values()]
    assert special == [film_tokenizer.id(t) for t in ("<|user|>", "<image>", "<|end|>", "<|assistant|>")]


def test_a_template_that_makes_special_tokens_of_plain_text_is_caught(film_tokenizer: Tokenizer) -> None:
    """`<|END|>` is plain text to the tokenizer until a template lower-cases it."""
    template = "{% for m in messages %}{{ m.content | lower }}{% endfor %}"
    assert build_prompt(film_tokenizer, template, PLAIN, ask("END")).image_position == 0
    with pytest.raises(RequestError, match="becomes special tokens"):
        build_prompt(film_tokenizer, template, PLAIN, ask("<|END|>"))


@pytest.mark.parametrize(
    "template", ["no image", "{{ messages[0].content }}{{ messages[0].content }}"], ids=["dropped", "doubled"]
)
def test_a_template_must_write_the_image_once(film_tokenizer: Tokenizer, template: str) -> None:
    with pytest.raises(ConfigError, match="<image> for one video"):
        build_prompt(film_tokenizer, template, PLAIN, ask("What?"))


@pytest.mark.parametrize("messages", [[], [Message("system", "Short.")]], ids=["none", "system-only"])
def test_a_user_turn_is_needed(film_tokenizer: Tokenizer, messages: list[Message]) -> None:
    with pytest.raises(RequestError, match="no user turn"):
        build_prompt(film_tokenizer, RELEASED_TEMPLATE, PLAIN, messages)


@pytest.mark.parametrize("question", ["", " \n\t"], ids=["empty", "blank"])
def test_an_empty_question_is_refused(film_tokenizer: Tokenizer, question: str) -> None:
    with pytest.raises(RequestError, match="question is empty"):
        build_prompt(film_tokenizer, RELEASED_TEMPLATE, PLAIN, ask(question))
    with pytest.raises(RequestError, match="question is empty"):
        continue_prompt(film_tokenizer, RELEASED_TEMPLATE, question)


@pytest.fixture(scope="module")
def keeping_tokenizer() -> Tokenizer:
    """Like the film tokenizer, but no marker strips the newline after it."""
    values = json.loads(train_tokenizer(["What turns left?"] * 9, vocab_size_base=608).to_str())
    for token in values["added_tokens"]:
        token["rstrip"] = False
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(values)))


@pytest.mark.parametrize("generation", [PLAIN, RELEASED], ids=["no-system", "system"])
@pytest.mark.parametrize("name", ["film_tokenizer", "keeping_tokenizer"])
def test_turn_by_turn_equals_the_conversation_at_once(
    request: pytest.FixtureRequest, name: str, generation: GenerationConfig
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    turns = [("What turns?", "A red circle."), ("  Left or right?\n", "Left,\nthen right"), ("How often?", "3")]
    messages = [Message("user", turns[0][0])]
    ids = build_prompt(tokenizer, RELEASED_TEMPLATE, generation, messages).ids
    for (_, answer), (question, _) in itertools.pairwise(turns):
        ids = [*ids, *tokenizer.encode(answer), tokenizer.end_id]
        ids += continue_prompt(tokenizer, RELEASED_TEMPLATE, question)
        messages += [Message("assistant", answer), Message("user", question)]
        assert ids == build_prompt(tokenizer, RELEASED_TEMPLATE, generation, messages).ids


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0].content }}", "{% for m in messages %}{{ m.content }} {% endfor %}"],
    ids=["drops-answers", "no-end"],
)
def test_a_template_that_does_not_close_turns_cannot_continue(film_tokenizer: Tokenizer, template: str) -> None:
    with pytest.raises(ConfigError, match="assistant's turn"):
        continue_prompt(film_tokenizer, template, "And then?")


def test_splice_puts_the_video_tokens_in_place() -> None:
    embeds_TD = np.arange(12, dtype=np.float32).reshape(4, 3)
    video_MD = -np.ones((2, 3), np.float32)
    expected = [[0, 1, 2], [-1, -1, -1], [-1, -1, -1], [6, 7, 8], [9, 10, 11]]
    np.testing.assert_array_equal(splice(embeds_TD, 1, video_MD), expected)


@pytest.mark.parametrize("position", [0, 3], ids=["first", "last"])
def test_splice_at_the_ends_keeps_the_dtype(position: int) -> None:
    out = splice(np.zeros((4, 3), np.float16), position, np.ones((5, 3), np.float32))
    assert out.shape == (8, 3)
    assert out.dtype == np.float16
    assert out[position : position + 5].all()
    assert out.sum() == 15


@pytest.mark.parametrize(
    ("position", "shape"),
    [(4, (2, 3)), (-1, (2, 3)), (0, (2, 4)), (0, (3,))],
    ids=["past", "negative", "width", "flat"],
)
def test_splice_refuses_what_does_not_fit(position: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError):
        splice(np.zeros((4, 3), np.float32), position, np.zeros(shape, np.float32))


def test_generation_config_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "generation.json"
    RELEASED.save(path)
    assert GenerationConfig.load(path) == RELEASED


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"max_new_token": 3}, ConfigError, "did you mean 'max_new_tokens'"),
        ({"max_new_tokens": 0}, ConfigError, "at least 1"),
        ({"max_new_tokens": "8"}, ConfigError, "int is expected"),
        ({"stop_token": "</s>"}, ConfigError, "allowed: <|end|>"),
        ({"do_sample": True}, ConfigError, "greedy"),
        ({"schema_version": 2}, ArtifactVersionError, "reads 1"),
    ],
    ids=["unknown-key", "zero", "type", "stop", "sampling", "version"],
)
def test_generation_config_is_strict(
    tmp_path: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    path = tmp_path / "generation.json"
    PLAIN.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error) as caught:
        GenerationConfig.load(path)
    assert message in str(caught.value)
