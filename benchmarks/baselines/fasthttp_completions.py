"""The bare loop to beat: Locust's FastHttpUser posts one fixed body, and nothing else.

BASELINE_BODY=JSON locust -f benchmarks/baselines/fasthttp_completions.py --headless --host URL
"""

import os

from locust import FastHttpUser, task

BODY = os.environ["BASELINE_BODY"].encode()
HEADERS = {"content-type": "application/json"}


class Loop(FastHttpUser):
    """Posts again as soon as it has the answer."""

    @task
    def complete(self) -> None:
        """One request; `data=` spares it the JSON encoding."""
        self.client.post("/v1/chat/completions", data=BODY, headers=HEADERS)
