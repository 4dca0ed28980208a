"""One attempt at one request over HTTP, and which way it failed.

The proxies of the environment are used (``HTTPS_PROXY``, ``NO_PROXY``). Redirects are not followed: the key would go to
whatever host they name.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

import blip3v

__all__ = ["Refusal", "UnreachableError", "post_json"]

_MAX_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 16


class UnreachableError(Exception):
    """No whole response came: no connection, a dropped one, or the time is up. The text says which."""


@dataclass(frozen=True)
class Refusal:
    """A response that is not 200."""

    status: int
    detail: str  # what the endpoint says, on one line; empty if nothing
    code: str  # the endpoint's word for the error, such as insufficient_quota; empty if none
    retry_after_s: float | None  # how long it asks to wait


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # the redirect is then an HTTPError like any other status


def post_json(url: str, body: dict[str, Any], *, key: str | None, timeout_s: float) -> bytes | Refusal:
    """Posts JSON and returns the body of the response, or how it was refused.

    Args:
        url: http or https.
        body: what to send.
        key: for the header ``Authorization``; None: the header is left out.
        timeout_s: for all of it. A server that sends now and then is given up after at most twice as long.

    Raises:
        UnreachableError: no whole response came.
    """
    headers = {"Content-Type": "application/json", "User-Agent": f"blip3v/{blip3v.__version__}"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    end_s = time.monotonic() + timeout_s
    try:
        try:
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout_s) as response:
                return _read(response, end_s, timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                return _refusal(error, _read(error, end_s, timeout_s))
    except TimeoutError as error:
        raise UnreachableError(f"it did not answer within {timeout_s:g} s") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise UnreachableError(f"no connection within {timeout_s:g} s") from error
        raise UnreachableError(_words(error.reason)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnreachableError(_words(error)) from error


def _read(response: Any, end_s: float, timeout_s: float) -> bytes:
    body = b""
    while chunk := response.read1(_CHUNK_BYTES):
        body += chunk
        if len(body) > _MAX_BYTES:
            raise UnreachableError(f"its response is longer than {_MAX_BYTES >> 20} MiB")
        if time.monotonic() > end_s:
            raise UnreachableError(f"it did not finish its response within {timeout_s:g} s")
    if response.length:  # what is missing of the length that it gave
        raise UnreachableError("the connection was lost in the middle of its response")
    return body


def _refusal(error: urllib.error.HTTPError, body: bytes) -> Refusal:
    detail, code = "", ""
    try:
        values = json.loads(body)
        inner = values.get("error", values) if isinstance(values, dict) else {}
        if isinstance(inner, dict):
            detail, code = str(inner.get("message") or inner.get("detail") or ""), str(inner.get("code") or "")
        else:
            detail = str(inner)
    except (ValueError, RecursionError):
        pass  # not JSON: a proxy's page, which says no more than the status does
    if 300 <= error.code < 400:
        detail = f"redirects to {error.headers.get('Location')}"
    return Refusal(error.code, _line(detail), code, _retry_after(error.headers.get("Retry-After")))


def _retry_after(text: str | None) -> float | None:
    """Seconds, from a number of them or a date."""
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _words(reason: object) -> str:
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return _line(str(reason)) or type(reason).__name__


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:500].strip()
