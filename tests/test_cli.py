"""The command line: help, examples, the frozen list of options, exit codes, and what must not be imported.

``cli_options.txt`` beside this file is the list of all options, so that a new or changed one is a reviewed change.
After an intended change, regenerate it with `python tests/test_cli.py` and commit it.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import blip3v
from blip3v import cli
from blip3v.commands import failure
from blip3v.errors import BackendError, Blip3vError, ParityError
from blip3v.extras import EXTRAS, pip_line

ROOT = Path(__file__).parents[1]
SNAPSHOT = Path(__file__).with_name("cli_options.txt")
VERBS = list(cli._VERBS)


def command_of(verb: str) -> click.Command:
    """The command of a verb, or of the two words of a command below one."""
    name, *below = verb.split()
    command = importlib.import_module(f"blip3v.commands.{name}").command
    for word in below:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    assert isinstance(command, click.Command)
    return command


def commands_of(verb: str) -> list[str]:
    """The verb and the commands below it, each in the words that call it."""
    command = command_of(verb)
    return [verb, *(f"{verb} {name}" for name in getattr(command, "commands", ()))]


COMMANDS = [name for verb in VERBS for name in commands_of(verb)]
each_verb = pytest.mark.parametrize("verb", COMMANDS)


def help_of(verb: str) -> str:
    result = CliRunner().invoke(cli.group, [*verb.split(), "--help"], prog_name="blip3v", catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def examples_of(verb: str) -> list[str]:
    """The lines below `Examples:`, as displayed."""
    lines = help_of(verb).splitlines()
    assert "  Examples:" in lines, f"blip3v {verb} --help has no line `Examples:` of its own"
    block = lines[lines.index("  Examples:") + 1 :]
    return [line.strip() for line in block[: block.index("")]]


def describe(verb: str) -> str:
    """The options of a verb, one per line: names, kind, choices, and whether it is required or repeatable."""
    lines = [verb]
    for parameter in command_of(verb).params:
        kind = "flag" if getattr(parameter, "is_flag", False) else parameter.type.name
        choices = [str(choice) for choice in getattr(parameter.type, "choices", ())]
        words = [", ".join(parameter.opts), kind, "|".join(choices)]
        words += ["required"] if parameter.required else []
        words += ["repeatable"] if parameter.multiple or parameter.nargs == -1 else []
        lines.append("  " + " ".join(filter(None, words)))
    return "\n".join(lines) + "\n"


def run(*args: str, code: str = "from blip3v.cli import main; main()", **options) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a fresh process."""
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False, **options)


def add_verb(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Adds a verb `fail` that raises ``error``."""

    @click.command()
    def command() -> None:
        raise error

    module = types.ModuleType("blip3v.commands.fail")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli._VERBS, "fail", "Fails.")


@each_verb
def test_help_has_two_examples_that_parse(verb: str):
    """An example that the command would reject is worse than none."""
    examples = examples_of(verb)
    assert len(examples) >= 2
    for example in examples:
        words = shlex.split(example)
        called = max((name for name in COMMANDS if words[1:][: len(name.split())] == name.split()), key=len)
        assert words[0] == "blip3v"
        assert called in commands_of(verb.split()[0])
        args = words[1 + len(called.split()) :]
        command_of(called).make_context(called, args)
        for arg in args:
            assert not arg.startswith("examples/") or (ROOT / arg).is_file(), f"{arg} is not in the repository"


@each_verb
def test_help_is_laid_out_as_written(verb: str):
    """A raw docstring would show click's paragraph mark as the two characters backslash and b."""
    assert "\\b" not in help_of(verb)


@each_verb
def test_help_does_not_need_an_optional_package(verb: str):
    """A base install shows all help, and none waits for torch."""
    hidden = sorted({package.module for packages in EXTRAS.values() for package in packages})
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden})); from blip3v.cli import main; main()"
    result = run(*verb.split(), "--help", code=code)
    assert (result.returncode, result.stderr) == (0, "")


@each_verb
def test_options_are_kebab_case_and_explained(verb: str):
    for parameter in command_of(verb).params:
        if isinstance(parameter, click.Option):
            for name in (*parameter.opts, *parameter.secondary_opts):
                assert re.fullmatch(r"-[a-z]|--[a-z][a-z0-9]*(-[a-z0-9]+)*", name)
            assert parameter.help, f"{parameter.opts[-1]} has no help"


@each_verb
def test_json_is_offered_everywhere(verb: str):
    assert "--json" in [name for parameter in command_of(verb).params for name in parameter.opts]


@each_verb
def test_quiet_is_offered_everywhere(verb: str):
    names = [name for parameter in command_of(verb).params for name in parameter.opts]
    assert {"-q", "--quiet"} <= set(names)


@each_verb
def test_the_list_of_options_is_the_committed_one(verb: str):
    committed = {block.split("\n", 1)[0]: block.strip() for block in SNAPSHOT.read_text("utf-8").split("\n\n")}
    assert describe(verb).strip() == committed.get(verb), f"if this is intended: python tests/{Path(__file__).name}"


def test_the_committed_list_names_no_other_verb():
    assert {block.split("\n", 1)[0] for block in SNAPSHOT.read_text("utf-8").split("\n\n")} == set(COMMANDS)


def test_help_lists_verbs_and_exit_codes():
    result = run("--help")
    assert result.returncode == 0
    for verb in VERBS:
        assert re.search(rf"^  {verb} +\S", result.stdout, re.MULTILINE)
    documented = {int(code) for code in re.findall(r"^    (\d+) ", result.stdout, re.MULTILINE)}
    for word in ("checkpoint", "model folder", "bundle"):
        assert re.search(rf"^    {word} +\S", result.stdout, re.MULTILINE)
    raised = {error.exit_code for error in all_errors(Blip3vError)}
    assert raised | {0, 130} <= documented


def all_errors(error: type[Blip3vError]) -> list[type[Blip3vError]]:
    return [error, *(deeper for below in error.__subclasses__() for deeper in all_errors(below))]


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_little(option: str):
    code = (
        "import sys\nfrom blip3v.cli import main\ntry:\n    main()\nfinally:\n"
        "    print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    result = run(option, code=code)
    assert result.returncode == 0
    imported = result.stderr
    for module in ("click", "blip3v"):
        assert f"'{module}'" in imported
    for module in ("numpy", "onnxruntime", "rich", "torch", "transformers", "av", "tokenizers", "jinja2"):
        assert f"'{module}'" not in imported


def test_version():
    assert run("--version").stdout == f"blip3v, version {blip3v.__version__}\n"


def test_python_m_blip3v_is_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "blip3v", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == run("--help").stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param(["exprt"], "unknown command 'exprt'; did you mean 'export'?", id="typing mistake"),
        pytest.param(["zzz"], "unknown command 'zzz'; allowed: demo, ask", id="nothing near"),
        pytest.param(["--nope"], "No such option", id="unknown option"),
        pytest.param(["data", "--count", "0"], "Invalid value for '--count'", id="value out of range"),
        pytest.param(["ask"], "Missing argument", id="missing argument"),
    ],
)
def test_usage_errors_end_with_2(args: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    assert cli._run(args) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        pytest.param(ParityError("stage vision is off"), 5, "error: stage vision is off", id="parity"),
        pytest.param(BackendError("it broke"), 6, "error: it broke", id="backend"),
        pytest.param(
            PermissionError(13, "Permission denied", "out"),
            1,
            "error: out: permission denied",
            id="system",
        ),
        pytest.param(BrokenPipeError(32, "Broken pipe"), 1, None, id="closed pipe is quiet"),
        pytest.param(KeyboardInterrupt(), 130, "error: interrupted", id="interrupt"),
        pytest.param(
            ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript"),
            2,
            f"error: the package 'onnxscript' is not installed; run: {pip_line('export')}",
            id="missing package",
        ),
    ],
)
def test_a_refusal_is_one_line_and_its_exit_code(
    error: BaseException,
    exit_code: int,
    line: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    add_verb(monkeypatch, error)
    with pytest.raises(SystemExit) as ended:
        cli.main(["fail"])
    assert ended.value.code == exit_code
    captured = capsys.readouterr()
    assert captured.err.strip() == (line or "")  # click first ends the line of a typed ^C
    assert captured.out == ""


@pytest.mark.parametrize(
    ("remedy", "typed"),
    [
        pytest.param("choose another `folder`", "choose another --output", id="another name"),
        pytest.param("replace it with `force=True`", "replace it with --force", id="flag"),
        pytest.param("skip it with `check=False`", "skip it with --no-check", id="off"),
        pytest.param("take `init='random'`", "take --init random", id="value"),
        pytest.param("leave `num_video_tokens` out", "leave --tokens out", id="count"),
        pytest.param("pass `allow_random=True`", "pass --allow-random", id="kebab-case"),
        pytest.param("see `blip3v doctor`", "see `blip3v doctor`", id="command"),
    ],
)
def test_a_remedy_names_options(
    remedy: str, typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The library names Python arguments; the command line shows what to type. The rest of a message is unchanged."""
    error = ParityError("`folder` is odd", remedy=remedy)
    assert str(error) == f"`folder` is odd; {remedy}"
    add_verb(monkeypatch, error)
    assert cli._run(["fail"]) == 5
    assert capsys.readouterr().err == f"error: `folder` is odd; {typed}\n"


def library_strings() -> list[tuple[str, str]]:
    """Every string below the command line, docstrings included, with its file and line.

    Except ``old_manifest.py`` and ``extras.py``: their advice is a whole shell command, on the command line and in
    Python alike.
    """
    files = [path.relative_to(ROOT) for path in sorted((ROOT / "blip3v").rglob("*.py"))]
    below = [path for path in files if path.parts[1] not in ("cli.py", "commands", "extras.py")]
    below = [path for path in below if path.name != "old_manifest.py"]
    return [
        (f"{path}:{node.lineno}", node.value)
        for path in below
        for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_the_library_names_no_option():
    option = re.compile(r"(?<!\S)`*--[a-z]")
    named = [(where, text) for where, text in library_strings() if option.search(text) and "pip install" not in text]
    assert named == []


def test_every_option_of_a_remedy_exists():
    """A remedy that names an option that does not exist is worse than none."""
    options = set(re.findall(r"--[a-z-]+", SNAPSHOT.read_text("utf-8")))
    named: set[str] = set()
    for path in (ROOT / "blip3v").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "remedy":
                text = ast.unparse(node.value)
                named |= set(re.findall(r"--[a-z-]+", failure.as_typed(Blip3vError("", remedy=text))))
    assert {"--output", "--force", "--init", "--tokens"} <= named
    assert named <= options


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(ZeroDivisionError("bug"), id="bug"),
        pytest.param(ModuleNotFoundError("No module named 'blip3v.demmo'", name="blip3v.demmo"), id="our own module"),
    ],
)
def test_a_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch):
    add_verb(monkeypatch, error)
    with pytest.raises(type(error)):
        cli._run(["fail"])


@pytest.mark.parametrize(
    ("verb", "hidden", "extra"),
    [
        pytest.param("train", "accelerate", "train", id="train without accelerate"),
        pytest.param("train", "torch", "train", id="train without torch"),
        pytest.param("export", "torch", "export", id="export without torch"),
    ],
)
def test_a_verb_without_its_package_names_the_pip_line(
    verb: str, hidden: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    code = f"import sys; sys.modules[{hidden!r}] = None; from blip3v.cli import main; main()"
    args = {"train": ["--recipe", "tiny-base"], "export": ["--init", "random"]}[verb]
    result = run(verb, *args, code=code, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: the package {hidden!r} is not installed; run: {pip_line(extra)}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")
def test_an_interrupt_ends_with_130_and_leaves_nothing(tmp_path: Path):
    args = [sys.executable, "-m", "blip3v", "data", "--count", "200", "-o", "films"]
    with subprocess.Popen(args, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(tmp_path.rglob("*.mp4")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.strip() == "error: interrupted"
    assert stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")
def test_a_reader_that_goes_away_causes_no_traceback():
    read_end, write_end = os.pipe()
    os.close(read_end)
    args = [sys.executable, "-m", "blip3v", "--help"]
    done = subprocess.run(args, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")


def test_json_of_a_verb_is_the_only_thing_on_stdout():
    assert json.loads(run("doctor", "--json").stdout)["version"] == blip3v.__version__


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(describe(verb) for verb in COMMANDS), "utf-8")
