"""Certificates made on the spot: self-signed, for an ECDSA key on P-256 that nobody keeps.

    certificate   DER of X.509 v3 (RFC 5280): serial, ecdsa-with-SHA256, names, validity, key, extensions
    signature     ECDSA (FIPS 186-5, section 6.4.1)      s = k^-1 (hash + r d) mod n, r = x of k G
    curve         P-256 (SP 800-186):  y^2 = x^3 - 3 x + b  over the integers mod p

Python's own library can check certificates but make none, and the mock may not need another to break one.
The arithmetic takes no constant time: for certificates that are wrong on purpose, and for tests.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import secrets
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

_P = 2**256 - 2**224 + 2**192 + 2**96 - 1
_N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
_Point = tuple[int, int] | None
"""None is the point at infinity."""

_EC_KEY = bytes.fromhex("06072a8648ce3d0201")
_P256 = bytes.fromhex("06082a8648ce3d030107")
_ECDSA_SHA256 = bytes.fromhex("06082a8648ce3d040302")
_COMMON_NAME = bytes.fromhex("0603550403")
_BASIC_CONSTRAINTS = bytes.fromhex("0603551d13")
_ALTERNATIVE_NAME = bytes.fromhex("0603551d11")
_INTEGER, _BITS, _OCTETS, _UTF8, _TIME = 0x02, 0x03, 0x04, 0x0C, 0x18
_SEQUENCE, _SET = 0x30, 0x31
_FOR_EVER = timedelta(days=365)


class Pair(NamedTuple):
    """A certificate and its private key, both PEM."""

    certificate: str
    key: str


def expired(host: str, now: datetime) -> Pair:
    """A self-signed certificate for the host (and localhost) that ended a day ago."""
    return _made(host, now - _FOR_EVER, now - timedelta(days=1))


def self_signed(host: str, now: datetime) -> Pair:
    """A self-signed certificate for the host (and localhost) that is valid for a year."""
    return _made(host, now - timedelta(days=1), now + _FOR_EVER)


def _made(host: str, start: datetime, end: datetime) -> Pair:
    private = 1 + secrets.randbelow(_N - 1)
    public = _point_bytes(_times(private, _G))
    name = _der(_SEQUENCE, _der(_SET, _der(_SEQUENCE, _COMMON_NAME + _der(_UTF8, b"harness mock"))))
    algorithm = _der(_SEQUENCE, _ECDSA_SHA256)
    key_info = _der(_SEQUENCE, _der(_SEQUENCE, _EC_KEY + _P256) + _der(_BITS, b"\0" + public))
    # Its own authority, so that a client that is given it need not complain of anything but its time.
    authority = _der(_SEQUENCE, b"\x01\x01\xff")
    extensions = _der(
        _SEQUENCE,
        _der(_SEQUENCE, _BASIC_CONSTRAINTS + b"\x01\x01\xff" + _der(_OCTETS, authority))
        + _der(_SEQUENCE, _ALTERNATIVE_NAME + _der(_OCTETS, _der(_SEQUENCE, _names(host)))),
    )
    to_be_signed = _der(
        _SEQUENCE,
        _der(0xA0, _integer(2))
        + _integer(1 + secrets.randbits(63))
        + algorithm
        + name
        + _der(_SEQUENCE, _time(start) + _time(end))
        + name
        + key_info
        + _der(0xA3, extensions),
    )
    signature = _der(_BITS, b"\0" + _signed(to_be_signed, private))
    ec_key = _der(
        _SEQUENCE, _integer(1) + _der(_OCTETS, private.to_bytes(32)) + _der(0xA1, _der(_BITS, b"\0" + public))
    )
    pkcs8 = _der(_SEQUENCE, _integer(0) + _der(_SEQUENCE, _EC_KEY + _P256) + _der(_OCTETS, ec_key))
    return Pair(
        _pem("CERTIFICATE", _der(_SEQUENCE, to_be_signed + algorithm + signature)), _pem("PRIVATE KEY", pkcs8)
    )


# -- ECDSA ------------------------------------------------------------------------------------------------


def _signed(message: bytes, private: int) -> bytes:
    digest = int.from_bytes(hashlib.sha256(message).digest())
    while True:
        k = 1 + secrets.randbelow(_N - 1)
        point = _times(k, _G)
        assert point is not None
        r = point[0] % _N
        s = pow(k, -1, _N) * (digest + r * private) % _N
        if r and s:
            return _der(_SEQUENCE, _integer(r) + _integer(s))


def _times(factor: int, point: _Point) -> _Point:
    total: _Point = None
    while factor:
        if factor & 1:
            total = _plus(total, point)
        point = _plus(point, point)
        factor >>= 1
    return total


def _plus(a: _Point, b: _Point) -> _Point:
    if a is None or b is None:
        return a or b
    (ax, ay), (bx, by) = a, b
    if ax == bx and (ay + by) % _P == 0:
        return None
    rise, run = (3 * ax * ax - 3, 2 * ay) if a == b else (by - ay, bx - ax)
    slope = rise * pow(run, -1, _P) % _P
    x = (slope * slope - ax - bx) % _P
    return x, (slope * (ax - x) - ay) % _P


def _point_bytes(point: _Point) -> bytes:
    assert point is not None
    return b"\x04" + point[0].to_bytes(32) + point[1].to_bytes(32)


# -- DER and PEM ------------------------------------------------------------------------------------------


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    size = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(size))) + size + content


def _integer(value: int) -> bytes:
    # One bit more than it needs: the first is the sign.
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1))


def _time(when: datetime) -> bytes:
    return _der(_TIME, when.astimezone(UTC).strftime("%Y%m%d%H%M%SZ").encode())


def _names(host: str) -> bytes:
    dns, address = 0x82, 0x87
    names = _der(dns, b"localhost")
    try:
        return names + _der(address, ipaddress.ip_address(host).packed)
    except ValueError:
        return names + _der(dns, host.encode("idna"))


def _pem(label: str, der: bytes) -> str:
    text = base64.b64encode(der).decode()
    lines = "\n".join(text[i : i + 64] for i in range(0, len(text), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"
