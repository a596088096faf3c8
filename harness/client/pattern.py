"""Recognises the pieces of a stream that differ from one already read in nothing but their text.

Servers send token after token in the same words: `data: {"id":"x",...,"delta":{"content":"` token
`"},"finish_reason":null}]}`. Once such a piece has been parsed, a later one with the same head and tail
and a plain text between them says the same, and that is found out in 0.3 µs instead of 5.
"""

from __future__ import annotations

import re

import msgspec

from harness.client.dialects import Delta
from harness.client.sse import Event

_PLAIN = rb"[ !#-\[\]-~\x80-\xff]+"
"""Text that is not empty and needs no unescaping: neither quote nor backslash nor control character."""
_TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning|text)": ?"(%b)"' % _PLAIN)
"""Where the dialects keep an answer's text. In valid JSON it is a member, never a part of a string: its
quotes would be escaped there."""
_plain = re.compile(_PLAIN).fullmatch


class Pattern(msgspec.Struct, frozen=True, gc=False):
    """What stands before and after the text in every piece of its kind."""

    head: bytes
    tail: bytes

    def matches(self, piece: bytes) -> bool:
        """The piece differs in its text only, which is not empty, and valid UTF-8."""
        head, tail = self.head, self.tail
        return (
            piece.startswith(head)
            and piece.endswith(tail)
            and _plain(piece, len(head), len(piece) - len(tail)) is not None
            and (piece.isascii() or _is_utf8(piece))
        )


def pattern_of(piece: bytes, event: Event, delta: Delta) -> Pattern | None:
    """The pattern of a piece that held one whole event, and nothing else; None if it is not usual.

    Args:
        piece: the bytes, begun and ended between two events.
        event: what they framed.
        delta: what that said: text, and nothing that depends on what the text is.
    """
    says_text = delta.content or delta.reasoning
    if not says_text or delta.finish_reason is not None or delta.usage is not None or delta.error is not None:
        return None
    start = piece.find(event.payload)
    texts = list(_TEXT.finditer(event.payload))
    if start < 0 or len(texts) != 1 or event.name == b"error":
        return None
    begin, end = texts[0].span(1)
    return Pattern(piece[: start + begin], piece[start + end :])


def _is_utf8(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True
