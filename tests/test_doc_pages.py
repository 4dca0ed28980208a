"""Every page of the documentation: links that lead somewhere, and commands that the command line takes."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import click
import pytest
from doc_pages import PAGES, ROOT, anchors, blocks, links, prose

from blip3v import cli

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
COMMANDS = ROOT / "docs/commands.md"


def command_of(verb: str) -> click.Command:
    assert verb in cli._VERBS, f"there is no blip3v {verb}"
    command = importlib.import_module(f"blip3v.commands.{verb}").command
    assert isinstance(command, click.Command)
    return command


def simple_commands(line: str) -> list[list[str]]:
    """The words of each command in a line of shell, without what is behind a redirection."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


@each_page
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


@each_page
def test_every_command_in_a_block_parses(page: Path) -> None:
    """Also that of a block which is not run."""
    for block in blocks(page):
        for line in block.text.replace("\\\n", " ").splitlines() if block.language == "sh" else ():
            for words in simple_commands(line):
                if "blip3v" in words:
                    verb, *arguments = words[words.index("blip3v") + 1 :]
                    command_of(verb).make_context(verb, arguments)


@each_page
def test_every_command_in_the_text_has_its_verb_and_options(page: Path) -> None:
    for code in re.findall(r"`blip3v ([^`]+)`", prose(page)):
        verb, *words = code.replace("...", "").split()
        if re.fullmatch(r"[a-z]+", verb):
            command = command_of(verb)
            below = command.commands.get(words[0]) if isinstance(command, click.Group) and words else None
            known = {name for parameter in (below or command).params for name in parameter.opts} | {"--help"}
            assert {word for word in words if word.startswith("-")} <= known, code


@each_page
def test_every_python_block_is_python(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs/README.md"
    assert {f"docs/{link}" for link in links(index) if "/" not in link} == {
        page.relative_to(ROOT).as_posix() for page in PAGES if page.parent == index.parent and page != index
    }


def test_the_table_of_verbs_is_complete() -> None:
    named = re.findall(r"^\| `blip3v ([a-z]+)", COMMANDS.read_text("utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(cli._VERBS)


def test_the_exit_codes_are_those_of_help() -> None:
    in_help = re.findall(r"^  (\d+)", cli._EPILOG, re.MULTILINE)
    assert re.findall(r"^\| (\d+) \|", COMMANDS.read_text("utf-8"), re.MULTILINE) == in_help
