"""The bare loop to beat: Locust's FastHttpUser posts one request over and over, and nothing else.

BASELINE_BODY=JSON locust -f benchmarks/baselines/fasthttp_completions.py --headless --host URL
"""

import json
import os

from locust import FastHttpUser, task

REQUEST = json.loads(os.environ["BASELINE_BODY"])


class Loop(FastHttpUser):
    """Posts again as soon as it has the answer."""

    @task
    def complete(self) -> None:
        """One request, encoded as JSON each time, as users write it and as the harness does."""
        self.client.post("/v1/chat/completions", json=REQUEST)
