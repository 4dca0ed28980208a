"""``blip3v data rephrase``: short answers as sentences, through an OpenAI-compatible endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from blip3v.commands.held_lines import held_line
from blip3v.commands.output import check_file, quiet_option, talk, talk_console
from blip3v.commands.prices import PricesType, estimate_line
from blip3v.commands.program import command_line
from blip3v.data.authors_list import write_samples
from blip3v.data.mixture import check_parts, parts_of, read_part
from blip3v.data.records import ClipSample
from blip3v.data.rephrase import REPLY_TOKENS, RephrasePrompt, rephrase, short_turns
from blip3v.endpoint import AnswerCache, Client, Endpoint, Prices, Usage, estimate_usage
from blip3v.errors import UsageError
from blip3v.strict_json import dumps
from blip3v.units import format_count

__all__ = ["command"]

_POSITIVE = click.FloatRange(min=0, min_open=True)
_CACHE = Path("rephrase-cache")
_MAX_NAMES = 5


@click.command("rephrase")
@click.argument("words", nargs=-1, required=True, metavar="DATA...")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="JSON list to write.")
@click.option("--endpoint", "url", required=True, metavar="URL", help="OpenAI-compatible endpoint: https://HOST/v1.")
@click.option("--model", required=True, metavar="NAME", help="Model of that endpoint.")
@click.option(
    "--key",
    metavar="VARIABLE",
    default=Endpoint.key_variable,
    show_default=True,
    help="Environment variable that holds the endpoint's key.",
)
@click.option("--rate", type=_POSITIVE, help="Requests a minute at most.  [default: no limit]")
@click.option(
    "--parallel",
    type=click.IntRange(1, 256),
    default=Endpoint.parallel,
    show_default=True,
    help="Requests at once.",
)
@click.option(
    "--price",
    type=PricesType(),
    help="What the endpoint charges for a million tokens of prompts and of replies, such as 0.5,1.5.",
)
@click.option("--max-cost", type=_POSITIVE, help="End once the answers have cost this much, by --price.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=_CACHE,
    show_default=True,
    help="Folder of answers: what is in it is not asked for again.",
)
@click.option(
    "--prompt",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with rephrase_system.txt and rephrase_user.txt, to ask with another prompt than ours.",
)
@click.option(
    "--max-words",
    type=click.IntRange(min=1),
    default=6,
    show_default=True,
    help="Rephrase answers of at most so many words.",
)
@click.option("--keep-short", is_flag=True, help="Keep every record with its short answers too.")
@click.option("--dry-run", is_flag=True, help="Print how many requests it would send and what they cost; then stop.")
@click.option("--force", is_flag=True, help="Replace the output file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@quiet_option
def command(
    words: tuple[str, ...],
    output: Path,
    url: str,
    model: str,
    key: str,
    rate: float | None,
    parallel: int,
    price: Prices | None,
    max_cost: float | None,
    cache: Path,
    prompt: Path | None,
    max_words: int,
    keep_short: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Have the short answers of DATA rephrased as sentences, and write a JSON list that train takes.

    DATA is what --data of train takes, such as NAME=FOLDER. Before the first request it says how many there are and
    about what they cost. Answers are kept in the cache: a run that was ended goes on where it was.

    \b
    Examples:
      blip3v data rephrase msrvtt-qa=/data/msrvtt -o msrvtt.json --endpoint http://localhost:8000/v1 --model NAME
      blip3v data rephrase tgif-qa=/data/tgif --keep-short -o tgif.json --endpoint URL --model NAME --dry-run
    """
    if max_cost is not None and price is None:
        raise UsageError("--max-cost needs --price, what the endpoint charges for a million tokens")
    endpoint = Endpoint(url=url, model=model, key_variable=key, requests_per_minute=rate, parallel=parallel)
    asked = RephrasePrompt.load() if prompt is None else RephrasePrompt.load(prompt)
    if not dry_run:
        check_file(output, force=force)
    samples = _samples(words)
    turns = short_turns(samples, max_words)
    if not turns:
        raise UsageError(f"no answer has at most {format_count(max_words, 'word')}; give a larger --max-words")
    client = Client(endpoint, cache=AnswerCache(cache), prices=price, max_cost=max_cost)
    unsent = [request for request in map(asked.request, turns) if not client.is_cached(request)]
    estimate = estimate_usage(unsent, completion_tokens=REPLY_TOKENS)
    line = estimate_line(estimate, price, len(turns) - len(unsent))
    if dry_run:
        click.echo(dumps(_estimated(estimate, price, len(turns))) if as_json else line, nl=not as_json)
        return
    talk(line)
    with Progress(console=talk_console(), transient=True, disable=not talk_console().is_terminal) as progress:
        task = progress.add_task("answers", total=len(turns))
        done = rephrase(samples, turns, client, asked, keep_short=keep_short, each=lambda: progress.advance(task))
    write_samples(done.samples, output)
    if as_json:
        values = {
            "output": str(output),
            "num_records": len(done.samples),
            "num_rephrased": done.num_rephrased,
            "num_refused": len(done.refused),
            "usage": vars(client.usage),
            "cost": client.cost,
        }
        click.echo(dumps(values), nl=False)
        return
    cost = f", cost {client.cost:.4g}" if client.cost is not None else ""
    rephrased = format_count(done.num_rephrased, "answer")
    click.echo(f"{output}: {format_count(len(done.samples), 'record')}, {rephrased} rephrased{cost}")
    if done.refused:
        shown = ", ".join(f"{turn.question!r}" for turn in done.refused[:_MAX_NAMES])
        talk(f"{format_count(len(done.refused), 'answer')} stayed short, since the model gave no sentence: {shown}")
    talk(f"next: {command_line('train', '--recipe', 'RECIPE', '--data', str(output))}")


def _samples(words: tuple[str, ...]) -> list[ClipSample]:
    parts = parts_of(words)
    check_parts(parts)
    samples: list[ClipSample] = []
    for part in parts:
        held = read_part(part)
        talk(held_line(held))
        samples += held.samples
    return samples


def _estimated(usage: Usage, prices: Prices | None, num_turns: int) -> dict[str, Any]:
    return {
        "num_requests": usage.num_requests,
        "num_cached": num_turns - usage.num_requests,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cost": None if prices is None else usage.cost(prices),
    }
