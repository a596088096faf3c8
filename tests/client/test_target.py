"""Claims about base URLs."""

from __future__ import annotations

import pytest

from harness.client.target import api_key, parse
from harness.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "base_path", "authority"),
    [
        ("http://localhost", "http", "localhost", 80, "", "localhost"),
        ("https://api.deepseek.com/", "https", "api.deepseek.com", 443, "", "api.deepseek.com"),
        ("http://127.0.0.1:8000/v1", "http", "127.0.0.1", 8000, "", "127.0.0.1:8000"),
        ("https://host/openai/v1/", "https", "host", 443, "/openai", "host"),
        ("https://host/beta", "https", "host", 443, "/beta", "host"),
        ("http://[::1]:8000", "http", "::1", 8000, "", "[::1]:8000"),
        ("https://host:443", "https", "host", 443, "", "host"),
        ("https://host:80", "https", "host", 80, "", "host:80"),
        ("HTTP://Host", "http", "host", 80, "", "host"),
        ("http://b\u00fccher.example", "http", "xn--bcher-kva.example", 80, "", "xn--bcher-kva.example"),
    ],
)
def test_a_base_url_is_taken_apart(url, scheme, host, port, base_path, authority):  # noqa: PLR0917  # a table
    target = parse(url)
    assert (target.scheme, target.host, target.port, target.base_path) == (scheme, host, port, base_path)
    assert target.authority == authority


@pytest.mark.parametrize(
    "url",
    [
        "api.deepseek.com",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host:0",
        "http://host:99999",
        "http://user:secret@host",
        "http://host/?a=b",
        "http://host/?",
        "http://host/#a",
        "http://host/a b",
        "http://a..b",
        "http://[::1",
    ],
)
def test_a_mistaken_url_names_its_source_and_a_remedy(url):
    with pytest.raises(ConfigError) as caught:
        parse(url, source="scenario.yaml", name="target")
    assert caught.value.source == "scenario.yaml"
    assert caught.value.key == "target"
    assert caught.value.remedy
    assert "secret" not in str(caught.value)


def test_the_key_shows_in_no_repr_and_no_url():
    target = parse("https://host", key="sk-secret")
    assert "sk-secret" not in repr(target)
    assert "sk-secret" not in target.url
    assert target.key == "sk-secret"


def test_a_key_that_breaks_a_header_is_refused_without_being_shown():
    with pytest.raises(ConfigError) as caught:
        parse("https://host", key="sk-secret\n")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "environ", "key"),
    [
        ("https://api.deepseek.com", {"DEEPSEEK_API_KEY": "d"}, "d"),
        ("https://api.deepseek.com/v1", {"DEEPSEEK_API_KEY": "d", "HARNESS_API_KEY": "h"}, "h"),
        ("https://api.openai.com", {"DEEPSEEK_API_KEY": "d"}, ""),
        ("https://example.org", {"DEEPSEEK_API_KEY": "d", "OPENAI_API_KEY": "o"}, ""),
        ("http://127.0.0.1:8000", {"HARNESS_API_KEY": "h"}, "h"),
        ("https://api.openai.com", {"OPENAI_API_KEY": ""}, ""),
    ],
)
def test_a_host_gets_its_own_key_and_nobody_elses(url: str, environ: dict[str, str], key: str) -> None:
    assert api_key(url, environ) == key
