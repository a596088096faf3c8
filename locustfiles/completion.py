"""Carries completion traffic; run it by `locust -f locustfiles/completion.py --host URL`."""

from harness.users import CompletionUser


class Completion(CompletionUser):
    """Carries the scenario's completion entries."""
