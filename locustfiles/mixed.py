"""Carries a scenario's whole mix; run it by `locust -f locustfiles/mixed.py --host URL`."""

from harness.users import BatchUser, CompletionUser, StreamUser


class Completion(CompletionUser):
    """Carries the scenario's completion entries."""


class Stream(StreamUser):
    """Carries the scenario's stream entries."""


class Batch(BatchUser):
    """Carries the scenario's batch entries."""
