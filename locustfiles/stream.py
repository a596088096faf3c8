"""Carries stream traffic; run it by `locust -f locustfiles/stream.py --host URL`."""

from harness.users import StreamUser


class Stream(StreamUser):
    """Carries the scenario's stream entries."""
