"""`/files`: what clients upload and batches write, kept in memory."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from harness.mock import multipart
from harness.mock.questions import Refusal

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
"""What an upload may be for (OpenAI's API reference)."""

_MIB = 1024 * 1024
_LARGEST_BATCH = 200 * _MIB
"""OpenAI's limit for a batch's input file."""


class File(msgspec.Struct, frozen=True):
    """What the API says of a file."""

    id: str
    bytes: int
    created_at: int
    """Unix time in seconds, as all times here."""
    filename: str
    purpose: str
    expires_at: int | None = None
    status: str = "processed"
    object: str = "file"


class Files:
    """The files by their ids, oldest first.

    Args:
        capacity: how many bytes are kept in all; uploads beyond are refused.
    """

    def __init__(self, capacity: int = 512 * _MIB) -> None:
        self._capacity = capacity
        self._held = 0
        self._files: dict[str, tuple[File, bytes]] = {}

    def upload(self, body: bytes, content_type: str, now_s: int) -> File | Refusal:
        """Take a form with `file`, `purpose` and, if it expires, `expires_after[seconds]`."""
        try:
            form = multipart.parse(body, content_type)
        except ValueError as error:
            return Refusal(400, str(error))
        file = next((part for part in form if part.name == "file"), None)
        fields = {part.name: part.content.decode(errors="replace") for part in form if part.name != "file"}
        purpose, seconds = fields.get("purpose"), fields.get("expires_after[seconds]", "")
        if file is None:
            return Refusal(422, "the form needs a `file`")
        if purpose not in PURPOSES:
            return Refusal(422, f"`purpose` is {purpose!r}: choose one of {', '.join(PURPOSES)}")
        if seconds and not (seconds.isdecimal() and seconds.isascii() and len(seconds) < 10):
            return Refusal(422, f"`expires_after[seconds]` is {seconds!r}: write whole seconds")
        if purpose == "batch" and len(file.content) > _LARGEST_BATCH:
            return Refusal(413, "a batch's file may have up to 200 MB")
        if self._held + len(file.content) > self._capacity:
            return Refusal(413, f"the mock keeps up to {self._capacity // _MIB} MiB of files: delete some")
        expires_at = now_s + int(seconds) if seconds else None
        return self.add(file.content, file.filename or "file", purpose, now_s, expires_at)

    def add(
        self, content: bytes, filename: str, purpose: str, now_s: int, expires_at: int | None = None
    ) -> File:
        """Keep a file, whatever room there is: what a batch writes must not be lost."""
        file = File(f"file-{uuid.uuid4().hex}", len(content), now_s, filename, purpose, expires_at)
        self._files[file.id] = (file, content)
        self._held += len(content)
        return file

    def listed(self, now_s: int) -> list[File]:
        """All that have not expired."""
        self._expire(now_s)
        return [file for file, _ in self._files.values()]

    def get(self, file_id: str, now_s: int) -> tuple[File, bytes] | None:
        """A file and its content; None if there is none, or no longer."""
        self._expire(now_s)
        return self._files.get(file_id)

    def delete(self, file_id: str) -> bool:
        """Forget a file, and say whether there was one."""
        found = self._files.pop(file_id, None)
        self._held -= len(found[1]) if found else 0
        return found is not None

    def _expire(self, now_s: int) -> None:
        gone = [file.id for file, _ in self._files.values() if (file.expires_at or now_s + 1) <= now_s]
        for file_id in gone:
            self.delete(file_id)


class _Named(Protocol):
    @property
    def id(self) -> str: ...


_Item = TypeVar("_Item", bound=_Named)


def page(items: Iterable[_Item], query: Mapping[str, Sequence[str]]) -> dict[str, Any] | Refusal:
    """One page of a list, newest first unless `order=asc`.

    Args:
        items: oldest first.
        query: `limit` (1 to 10,000, 20 by default), `after` (the id before the page's first), `order`.
    """
    limit, after = query.get("limit", ["20"])[0], query.get("after", [""])[0]
    order = query.get("order", ["desc"])[0]
    if not (limit.isdecimal() and limit.isascii() and 1 <= int(limit[:9]) <= 10_000):
        return Refusal(422, f"`limit` is {limit!r}: write 1 to 10000")
    if order not in {"asc", "desc"}:
        return Refusal(422, f"`order` is {order!r}: write asc or desc")
    ordered = list(items) if order == "asc" else list(items)[::-1]
    position = next((i + 1 for i, item in enumerate(ordered) if item.id == after), 0)
    shown = ordered[position : position + int(limit)]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
        "has_more": position + len(shown) < len(ordered),
    }
