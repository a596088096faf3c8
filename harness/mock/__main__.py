"""`python -m harness.mock`: the bundled mock as a process of its own."""

from harness.mock.command import mock

mock()
