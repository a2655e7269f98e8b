"""What the text of an option may be: parsers for the table of flags. Each gives a value, or a ValueError that says what would be right."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from flanpy.model import Address


def choice(*words: str) -> Callable[[str], str]:
    """One of these words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return parse


def number(low: int, high: int, unit: str = "") -> Callable[[str], int]:
    """A whole number from ``low`` to ``high``; ``unit`` is told where it is wrong."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"{text!r} is not a whole number from {low} to {high}{unit and ' ' + unit}")
        return int(text)

    return parse


def ipv4(text: str) -> IPv4Address | None:
    """An IPv4 address; None for nothing."""
    try:
        return ipaddress.IPv4Address(text) if text else None
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 address such as 192.0.2.7") from None


def address(text: str) -> Address | None:
    """An address of either family; None for nothing."""
    try:
        return ipaddress.ip_address(text) if text else None
    except ValueError:
        raise ValueError(f"{text!r} is not an address such as 192.0.2.7") from None


def ipv6(text: str) -> IPv6Address | None:
    """An IPv6 address; None for nothing."""
    try:
        return ipaddress.IPv6Address(text) if text else None
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv6 address such as 2001:db8::7") from None


def pattern(text: str) -> str:
    """A regular expression, as text."""
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None
    return text


def path(text: str) -> Path:
    """A path; not nothing."""
    if not text:
        raise ValueError("needs a path")
    return Path(text)


def embedded(text: str) -> str:
    """Where an etcd of our own listens."""
    if not re.fullmatch(r"[0-9a-zA-Z.\[\]:-]+:[0-9]{1,5}", text):
        raise ValueError(f"{text!r} is not ADDRESS:PORT such as 127.0.0.1:2379")
    return text
