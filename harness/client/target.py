"""Where requests go: an API's base URL, taken apart and checked."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

import msgspec

from harness.errors import ConfigError
from harness.workload.blame import meant_url

_PORTS = {"http": 80, "https": 443}
KEY_VARIABLES = ("HARNESS_API_KEY",)
"""Environment variables that hold the key of any target."""
KEYS_OF_HOSTS = {"api.deepseek.com": "DEEPSEEK_API_KEY", "api.openai.com": "OPENAI_API_KEY"}
"""And those that hold the key of one: never sent to another."""
_EXAMPLE = "write http://HOST[:PORT] or https://HOST[:PORT], with a path if the API has one"


class Key(str):
    """An API key, which no repr shows."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"


class Target(msgspec.Struct, frozen=True, cache_hash=True):
    """An API to load. `parse` makes it from a URL."""

    scheme: str
    """`http` or `https`."""
    host: str
    """Name or address, without brackets."""
    port: int
    base_path: str
    """What stands before `/v1`; empty or with a leading slash, never a trailing one."""
    key: Key = Key()
    """Sent as `Authorization: Bearer`; empty sends none."""

    @property
    def authority(self) -> str:
        """The `Host` header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The base URL, without credentials."""
        return f"{self.scheme}://{self.authority}{self.base_path}"


def parse(url: str, *, key: str = "", source: str = "--target", name: str = "") -> Target:
    """Take a base URL apart; a trailing `/v1` is understood, not doubled.

    Args:
        url: `http://` or `https://`, host, optional port, optional path.
        key: the API key, from the environment.
        source: where the URL stands, for the error.
        name: the key inside the source, for the error.

    Raises:
        ConfigError: another scheme, no host, a bad port, credentials, a query or a fragment.
    """

    def refuse(remedy: str, *, shown: object = url) -> ConfigError:
        return ConfigError(source, name, shown, remedy)

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise refuse(f"not a URL; {_EXAMPLE}", shown=None) from None
    if "@" in parts.netloc:
        raise refuse("leave user and password out; the key comes from the environment", shown=None)
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise refuse("leave the query and the fragment out", shown=None)
    if parts.scheme not in _PORTS:
        raise refuse(meant_url(url) + _EXAMPLE)
    if port == 0:
        raise refuse("port 0 can't be loaded; give the server's port")
    base_path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    if not base_path.isascii() or any(c <= " " for c in base_path):
        raise refuse("percent-encode the path")
    host = _host(parts)
    if host is None:
        raise refuse(_EXAMPLE)
    if not key.isascii() or any(c <= " " for c in key):
        raise ConfigError("API key", "", None, "blanks or letters outside ASCII; copy the key again")
    return Target(parts.scheme, host, port or _PORTS[parts.scheme], base_path, Key(key))


def key_variables(url: str) -> tuple[str, ...]:
    """The environment variables that may hold a target's key, the first one set wins."""
    own = KEYS_OF_HOSTS.get(urlsplit(url).hostname or "")
    return (*KEY_VARIABLES, own) if own else KEY_VARIABLES


def api_key(url: str, environ: Mapping[str, str]) -> str:
    """The key for a target, from the environment; empty if there is none."""
    return next((environ[name] for name in key_variables(url) if environ.get(name)), "")


def _host(parts: SplitResult) -> str | None:
    """The host as sent on the wire; None if it is none."""
    host = parts.hostname or ""
    if ":" in host:
        return host
    try:
        wire = host.encode("idna").decode("ascii")
    except UnicodeError:
        return None
    return wire if wire and not any(c <= " " for c in wire) else None
