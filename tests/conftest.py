"""Fixtures for all tests."""

from __future__ import annotations

import pytest

from harness.testing import MockServer, mock

__all__ = ["mock", "mock_url"]


@pytest.fixture(scope="session")
def mock_url(mock: MockServer) -> str:
    """The base URL of a mock without delay."""
    return mock.url
