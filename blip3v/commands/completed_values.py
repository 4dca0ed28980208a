"""Values that the shell completes for an option whose type cannot list them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["completes"]

_Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def completes(names: Iterable[str], *, or_files: bool = False) -> _Complete:
    """The ``shell_complete`` of an option that takes ``names``, and other values too.

    Args:
        names: to complete.
        or_files: whether what is no beginning of a name is completed as a path.
    """
    known = tuple(names)

    def complete(context: click.Context, option: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem  # only completing needs it

        found = [CompletionItem(name) for name in known if name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file")] if or_files and not found else found

    return complete
