"""Carries batch traffic; run it by `locust -f locustfiles/batch.py --host URL`."""

from harness.users import BatchUser


class Batch(BatchUser):
    """Carries the scenario's batch entries."""
