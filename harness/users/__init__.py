"""Locust user classes that carry the traffic: the only room that imports locust.

Locust's users are pre-allocated virtual users. Each waits in a pool; one dispatcher a worker walks the
schedule and hands every arrival to an idle user of its kind (worker.py). Importing this package
registers the listeners that lease shares of the schedule to workers and drain them at the end
(protocol.py). A locustfile needs no more than a subclass:

    from harness.users import StreamUser

    class Stream(StreamUser):
        pass
"""

from __future__ import annotations

from locust import User, task
from locust.exception import StopUser

from harness.record import Kind
from harness.users import protocol

__all__ = ["BatchUser", "CompletionUser", "StreamUser", "TrafficUser"]


class TrafficUser(User):
    """A virtual user: one connection, one arrival at a time, of one kind of traffic."""

    abstract = True
    kind: Kind

    @task
    def arrivals(self) -> None:
        """Carry arrivals until the run is over."""
        protocol.current().serve(self.kind)
        raise StopUser


class CompletionUser(TrafficUser):
    """Asks for whole completions: /v1/chat/completions or /v1/completions, not streamed."""

    abstract = True
    kind = Kind.COMPLETION


class StreamUser(TrafficUser):
    """Asks for streamed completions and stamps every chunk."""

    abstract = True
    kind = Kind.STREAM


class BatchUser(TrafficUser):
    """Sends a batch of prompts at once, multiplexed over one HTTP/2 connection."""

    abstract = True
    kind = Kind.BATCH
