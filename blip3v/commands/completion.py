"""``blip3v completion``: the completion script of a shell, on stdout or where the shell looks for it.

The script is click's own: at each Tab it asks this program, which answers verbs without importing any of them.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from blip3v.commands.output import quiet_option, talk
from blip3v.errors import UsageError
from blip3v.publishing import check_writable, write_file
from blip3v.strict_json import dumps

__all__ = ["command"]

_PROGRAM, _VARIABLE = "blip3v", "_BLIP3V_COMPLETE"
_SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class _Place:
    """Where a shell looks for the completions of a user."""

    file: Path
    activate: str  # what to do once so that the shell reads it


@click.command("completion", short_help="Print or install the completion of a shell.")
@click.argument("shell", type=click.Choice(_SHELLS), required=False)
@click.option("--install", is_flag=True, help="Write the script to where the shell looks for a user's completions.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@quiet_option
def command(shell: str | None, install: bool, as_json: bool) -> None:
    """Print the script that completes commands, options and their values in SHELL, or install it.

    Without SHELL, the script is for the login shell ($SHELL). The configuration files of the shell are never changed:
    what they need to contain is printed.

    \b
    Examples:
      blip3v completion --install
      blip3v completion zsh
    """
    chosen = shell or _login_shell()
    script = _script(chosen)
    if not install:
        values = {"shell": chosen, "script": script}
        click.echo(dumps(values) if as_json else script, nl=False)
        return
    place = _place(chosen)
    _write(place.file, script)
    if as_json:
        click.echo(dumps({"shell": chosen, "output": str(place.file), "activate": place.activate}), nl=False)
        return
    click.echo(str(place.file))
    talk(f"to activate it: {place.activate}")
    if shutil.which(_PROGRAM) is None:
        talk(f"it completes the command {_PROGRAM}, which is not on PATH: activate its virtual environment first")


def _login_shell() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    if name not in _SHELLS:
        found = f"the login shell is {name!r}" if name else "the login shell is unknown"
        raise UsageError(f"{found}; name one of {', '.join(_SHELLS)}, as in `blip3v completion bash`")
    return name


def _script(shell: str) -> str:
    kind = get_completion_class(shell)
    assert kind is not None, "click completes in all of _SHELLS"
    return kind(click.Command(_PROGRAM), {}, _PROGRAM, _VARIABLE).source().lstrip() + "\n"


def _place(shell: str) -> _Place:
    """The file that the shell's own documentation names for a user's completions, or the usual one for zsh."""
    home = Path.home()
    if shell == "bash":
        data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
        folder = Path(os.environ.get("BASH_COMPLETION_USER_DIR") or data / "bash-completion")
        file = folder / "completions" / _PROGRAM
        return _Place(file, f"open a new shell; without the package bash-completion, add to ~/.bashrc: source {file}")
    if shell == "zsh":
        file = home / ".zfunc" / f"_{_PROGRAM}"
        line = f"fpath+=({file.parent}); autoload -Uz compinit && compinit"
        return _Place(file, f"add to ~/.zshrc, unless it is there: {line}")
    configuration = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return _Place(configuration / "fish" / "completions" / f"{_PROGRAM}.fish", "open a new shell")


def _write(file: Path, script: str) -> None:
    check_writable(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, script)
