"""What a URL is, whether it may be fetched, and which addresses are public. Not here: ``download.py``."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, quote, urlsplit

from blip3v.errors import UnsupportedVideoError
from blip3v.video_decoder.limits import VideoLimits

__all__ = ["PORTS", "Target", "check_allowed", "check_no_url", "is_public", "printable", "shown", "target_of", "url_in"]

PORTS = {"http": 80, "https": 443}

# Two letters at least: "C:/film.mp4" is a path. One slash, since a Path of a URL has lost the others.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//?)(.*)", re.DOTALL)
_SAFE = "%/:=&?~+!$,;'@()*[]"

# IPv6 addresses that stand for an IPv4 one, in their last 32 bits.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Target:
    """A URL in parts, in the form in which it is sent."""

    url: str
    scheme: str
    host: str
    port: int
    path: str


def url_in(video: str | Path) -> str | None:
    """The URL that ``video`` is; None if it is a path. A Path that was made of a URL gets back its lost slashes."""
    found = _URL.match(str(video))
    if found is None:
        return None
    scheme, slashes, rest = found[1].lower(), found[2], found[3]
    if slashes == "/" and scheme == "file":
        rest = f"/{rest}"
    return f"{scheme}://{rest}"


def check_no_url(video: str | Path, name: str) -> None:
    """Refuses a URL where only files are read.

    Raises:
        UnsupportedVideoError: it is one.
    """
    url = url_in(video)
    if url is not None:
        raise UnsupportedVideoError(f"{name} is the URL {shown(url)}; only a whole video is fetched: download it")


def check_allowed(url: str, limits: VideoLimits) -> None:
    """Refuses what may not, or cannot, be fetched.

    Raises:
        UnsupportedVideoError: a scheme other than http and https, no host, a password, or ``allow_url`` is not set.
    """
    target_of(url)
    if not limits.allow_url:
        raise UnsupportedVideoError(
            f"{shown(url)} is a URL, which the video limits do not allow to fetch",
            remedy="pass `allow_url=True`, or download the video and give its path",
        )


def target_of(url: str) -> Target:
    """The parts of a URL that can be fetched.

    Raises:
        UnsupportedVideoError: it cannot.
    """
    parts, port, host = _split(url)
    if parts.scheme not in PORTS:
        advice = f"give the path, {parts.path}" if parts.scheme == "file" else "download the video"
        raise UnsupportedVideoError(
            f"{shown(url)} is a URL with the scheme {parts.scheme}; only http and https are fetched: {advice}"
        )
    if parts.username is not None or parts.password is not None:
        raise UnsupportedVideoError(f"{shown(url)} holds a name or password, which is not sent; download the video")
    path = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
    return Target(url, parts.scheme, host, port or PORTS[parts.scheme], path)


def _split(url: str) -> tuple[SplitResult, int | None, str]:
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
        host = host if ":" in host else host.encode("idna").decode("ascii")
    except (ValueError, UnicodeError) as error:
        raise UnsupportedVideoError(f"{shown(url)} is not a valid URL ({error}); check it") from error
    if parts.scheme in PORTS and not re.fullmatch(r"[A-Za-z0-9._:%-]+", host):
        raise UnsupportedVideoError(f"{shown(url)} is not a valid URL: it names no host; check it")
    return parts, port, host


def shown(url: str) -> str:
    """The URL for messages and logs: without name, password and query, which may be secret."""
    bare = re.sub(r"(?<=://)[^/?#]*@", "", url)
    return printable(re.split(r"[?#]", bare, maxsplit=1)[0])


def printable(text: str) -> str:
    """Text of a server without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)


def is_public(text: str) -> bool:
    """Whether a numeric address, and any that it stands for, belongs to the public internet."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return all(_is_global(form) for form in _forms(address))


def _is_global(address: _Address) -> bool:
    special = address.is_multicast or address.is_reserved or address.is_loopback or address.is_link_local
    site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return address.is_global and not special and not site_local


def _forms(address: _Address) -> list[_Address]:
    """The address, or the IPv4 addresses that it stands for: a gateway would pass the connection on to them."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    embedded: list[_Address] = []
    if address.ipv4_mapped is not None:
        embedded.append(address.ipv4_mapped)
    if address.sixtofour is not None:
        embedded.append(address.sixtofour)
    if address.teredo is not None:
        embedded.extend(address.teredo)
    if address in _NAT64:
        embedded.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return embedded or [address]
