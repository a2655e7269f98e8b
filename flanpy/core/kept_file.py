"""Kept leases (``core.grace``) as text that outlives the agent, and back; no I/O, no clock.

    {"version": 1, "boot": "b5a0…", "kept": [{"key": "subnets/10.5.2.0-24", "value": "{…}", "created": 7, "modified": 9, "lease": 77,
                                              "until_s": 5021.5, "cause": "expired", "since": 20}, …]}

Times are of the monotonic clock, so they mean something until the next boot alone. The text is read as a stranger's: one bad item is
left out, the rest is taken; no lease is kept for longer than today's options say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from flanpy.core.codec import decode_lease, encode_attributes
from flanpy.core.grace import Grace
from flanpy.errors import CodecError
from flanpy.model import KeptLease, Record

VERSION = 1
LEASES_MAX = 4096
"""More than these are not written: the ones that end last are."""
TEXT_BYTES_MAX = 8 * 1024 * 1024
VALUE_BYTES_MAX = 16 * 1024
_CAUSES: Mapping[object, Literal["expired", "lost"]] = {"expired": "expired", "lost": "lost"}


def render(kept: Mapping[str, KeptLease], boot: str) -> str:
    """The text for these leases, in an order that depends on nothing but them."""
    chosen = sorted(kept.items(), key=lambda item: (-item[1].until_s, item[0]))[:LEASES_MAX]
    items = [_item(key, lease) for key, lease in chosen]
    return json.dumps({"version": VERSION, "boot": boot, "kept": [item for item in items if item is not None]})


def parse(text: str, boot: str, grace: Grace, now_s: float) -> dict[str, KeptLease]:
    """What is left of them in this boot, at this time, with these grace times; empty for a text that is none of ours."""
    try:
        held = json.loads(text) if len(text) <= TEXT_BYTES_MAX else None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(held, dict) or (held.get("version"), held.get("boot")) != (VERSION, boot):
        return {}
    items = held.get("kept")
    found = (_lease(item, grace, now_s) for item in items[:LEASES_MAX]) if isinstance(items, list) else ()
    return dict(item for item in found if item is not None)


def _item(key: str, kept: KeptLease) -> dict[str, Any] | None:
    value = encode_attributes(kept.lease.attributes)
    if len(value) > VALUE_BYTES_MAX:
        return None
    lease = kept.lease
    return {
        "key": key,
        "value": value.decode(),
        "created": lease.create_revision,
        "modified": lease.mod_revision,
        "lease": lease.etcd_lease_id,
        "until_s": kept.until_s,
        "cause": kept.cause,
        "since": kept.since_revision,
    }


def _lease(item: object, grace: Grace, now_s: float) -> tuple[str, KeptLease] | None:
    if not isinstance(item, dict):
        return None
    key, value, cause = item.get("key"), item.get("value"), _CAUSES.get(str(item.get("cause")))
    numbers = [item.get(name) for name in ("created", "modified", "lease", "since")]
    until_s = item.get("until_s")
    if not isinstance(key, str) or not isinstance(value, str) or cause is None or not isinstance(until_s, int | float):
        return None
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        return None
    created, modified, lease_id, since = (int(number or 0) for number in numbers)
    try:
        lease = decode_lease(Record(key, value.encode("utf-8"), created, modified, lease_id))
    except (CodecError, UnicodeEncodeError):
        return None
    longest_s = max(grace.peer_s, grace.loss_s) if cause == "lost" else grace.peer_s
    if not until_s > now_s:
        return None
    until_s = float(min(until_s, now_s + longest_s))  # the least first: an integer may be larger than any float
    return (key, KeptLease(lease, until_s, cause, since)) if until_s > now_s else None
