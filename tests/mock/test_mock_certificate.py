"""Claims about certificates that are made on the spot."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography import x509

from harness.mock import certificate

NOW = datetime(2030, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(("make", "valid"), [(certificate.self_signed, True), (certificate.expired, False)])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "mock.example"])
def test_it_is_signed_by_its_own_key_for_its_host_and_time(make, valid: bool, host: str):
    read = x509.load_pem_x509_certificate(make(host, NOW).certificate.encode())
    read.verify_directly_issued_by(read)
    assert (read.not_valid_before_utc < NOW < read.not_valid_after_utc) is valid
    assert read.not_valid_before_utc < NOW - timedelta(hours=1)
    names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    told = [
        str(name)
        for name in (*names.get_values_for_type(x509.DNSName), *names.get_values_for_type(x509.IPAddress))
    ]
    assert told == ["localhost", host]


@contextmanager
def serving(name: str) -> Iterator[tuple[str, ssl.SSLContext]]:
    """A mock with a certificate of that name, and a context that trusts it."""
    command = [
        sys.executable,
        "-m",
        "harness.mock",
        "--port",
        "0",
        "--profile",
        "fast",
        "--certificate",
        name,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        told = json.loads(process.stdout.readline())
        try:
            yield told["url"], ssl.create_default_context(cafile=told["certificate"])
        finally:
            process.terminate()
        assert process.wait(20) == 0


def test_an_expired_certificate_is_refused_for_its_time_alone():
    with (
        serving("expired") as (url, trusting),
        pytest.raises(httpx.ConnectError, match="certificate has expired"),
    ):
        httpx.get(url + "/health", verify=trusting, trust_env=False)


def test_a_self_signed_certificate_serves_those_who_trust_it():
    with serving("self-signed") as (url, trusting):
        assert httpx.get(url + "/health", verify=trusting, trust_env=False).status_code == 200
        with pytest.raises(httpx.ConnectError, match="self-signed certificate"):
            httpx.get(url + "/health", verify=ssl.create_default_context(), trust_env=False)
