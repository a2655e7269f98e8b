"""The public half of a WireGuard key: X25519 of RFC 7748 with the base point; pure.

Used once a start, on the node's own key, where nobody measures the time: the kernel does all other cryptography.
"""

from __future__ import annotations

_P = 2**255 - 19
_A24 = 121665
KEY_BYTES = 32


def public_key(private: bytes) -> bytes:
    """The public key of 32 private bytes. Montgomery's ladder, section 5 of the RFC."""
    if len(private) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(private)}")
    scalar = int.from_bytes(clamped(private), "little")
    x2, z2, x3, z3, swap = 1, 0, 9, 1, 0
    for position in reversed(range(255)):
        bit = scalar >> position & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        x2, z2, x3, z3 = _step(x2, z2, x3, z3)
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, _P - 2, _P) % _P).to_bytes(KEY_BYTES, "little")


def clamped(private: bytes) -> bytes:
    """The bits that every private key has in common."""
    return bytes([private[0] & 248, *private[1:31], private[31] & 127 | 64])


def _step(x2: int, z2: int, x3: int, z3: int) -> tuple[int, int, int, int]:
    a, b, c, d = (x2 + z2) % _P, (x2 - z2) % _P, (x3 + z3) % _P, (x3 - z3) % _P
    da, cb, aa, bb = d * a % _P, c * b % _P, a * a % _P, b * b % _P
    e = (aa - bb) % _P
    return aa * bb % _P, e * (aa + _A24 * e) % _P, (da + cb) ** 2 % _P, 9 * (da - cb) ** 2 % _P
