"""The prices of an endpoint as the value of an option, and what requests will cost, in words."""

from __future__ import annotations

from typing import Any

import click

from blip3v.endpoint import Prices, Usage
from blip3v.units import format_count

__all__ = ["PricesType", "estimate_line"]


class PricesType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions
    """``PROMPT,COMPLETION``: two numbers."""

    name = "prompt,completion"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Prices:
        """Two numbers from 0, or an error that says so."""
        if isinstance(value, Prices):
            return value
        try:
            prompt, completion = map(float, str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not two numbers with a comma between them, such as 0.5,1.5", param, ctx)
        if not (0 <= prompt < float("inf") and 0 <= completion < float("inf")):
            self.fail(f"{value!r} has a price that is not 0 or more", param, ctx)
        return Prices(prompt, completion)


def estimate_line(usage: Usage, prices: Prices | None, num_cached: int) -> str:
    """What is about to be asked, in one line: requests, tokens, and the price if it is known."""
    tokens = f"about {usage.prompt_tokens:,} tokens of prompts and {usage.completion_tokens:,} of answers"
    cost = f", about {usage.cost(prices):.4g} in all" if prices is not None else ""
    return f"{format_count(usage.num_requests, 'request')} to send, {num_cached} in the cache: {tokens}{cost}"
