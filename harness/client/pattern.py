"""Recognises the pieces of a stream that differ from one already read in nothing but their text.

Servers send token after token in the same words: `data: {"id":"x",...,"delta":{"content":"` token
`"},"finish_reason":null}]}`. Once such a piece has been parsed, a later one with the same head and tail
and a plain text between them says the same, and that is found out in 0.3 µs instead of 5; of many that came
at once, with texts that are known by now, in half of that. Some servers change
more with each token: padding against listeners, probabilities. A piece that differs in members which nobody
reads says the same, too; its shape tells that in 1 µs. Where each piece comes in a chunk of HTTP/1.1 of its
own, and each read ends where a chunk does, the chunk's framing is part of what repeats itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import takewhile

import msgspec

from harness.client.dialects import Delta
from harness.client.sse import Event

_PLAIN = rb"[ !#-\[\]-~\x80-\xff]+"
"""Text that is not empty and needs no unescaping: neither quote nor backslash nor control character."""
_TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning|text)": ?"(%b)"' % _PLAIN)
"""Where the dialects keep an answer's text. In valid JSON it is a member, never a part of a string: its
quotes would be escaped there."""
_plain = re.compile(_PLAIN).fullmatch

_NUMBER = rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_VALUES = (rb'"[ !#-\[\]-~]*"', _NUMBER, rb"\[(?:%b(?:, ?%b)*)?\]" % (_NUMBER, _NUMBER))
"""Of values that nobody reads, any other of their sort will do: ASCII text, numbers, lists of numbers."""
_MEMBER = re.compile(rb'"([A-Za-z0-9_]+)": ?(?:(%b)|(%b)|(%b))(?=[,}])' % _VALUES)

Shape = Callable[[bytes, int, int], re.Match[bytes] | None]
"""Matches a piece that looks alike, in a read from one place to another; the first group is the text."""
_SHAPES: dict[bytes, Shape | None] = {}
"""By their expressions. Compiling one takes 0.5 ms: it is None until the expression comes again."""
_SHAPES_MOST = 256

_KNOWN: set[bytes] = set()
"""Short texts that were found plain: tokens come again and again."""
_KNOWN_MOST, _SHORT = 4_096, 32

_CRLF = b"\r\n"
_LONGEST = 2_048
"""Chunks of HTTP/1.1 whose data is longer are parsed: their tokens are not what they are made of."""
_SIZES = {form % size: size for size in range(1, _LONGEST) for form in (b"%x", b"%X")}
"""How long a chunk's data is, by the line before it, without leading zeros and extensions (RFC 9112 section
7.1). In capitals, as hyper and gunicorn write them, too."""
_SIZE_LINES = {
    len(line) + size + len(_CRLF): line for size in range(1, _LONGEST) for line in (b"%x\r\n" % size,)
}
"""The line before it, by how long a chunk is, from that line to its end."""


class Pattern(msgspec.Struct, frozen=True, gc=False):
    """What stands before and after the text in every piece of its kind."""

    head: bytes
    tail: bytes
    shape: Shape | None = None

    def matches(self, piece: bytes) -> bool:
        """The piece differs in its text, which is not empty and valid UTF-8, and in nothing that is read."""
        head, tail = self.head, self.tail
        text = piece[len(head) : -len(tail)]
        plain = text in _KNOWN or (piece.endswith(tail) and _is_plain(text))
        return (plain and piece == b"".join((head, text, tail))) or self.resembles(piece, 0, len(piece))

    def leads(self, pieces: Sequence[bytes]) -> int:
        """How many of the first pieces match, by texts that are known to be plain, all told at once."""
        head, tail = self.head, self.tail
        begin, end = len(head), -len(tail)
        texts = list(takewhile(_KNOWN.__contains__, (piece[begin:end] for piece in pieces)))
        # No known text is empty: so each piece is as long as its parts, and stands for itself in the whole.
        whole = b"".join((head, (tail + head).join(texts), tail))
        return len(texts) if texts and b"".join(pieces[: len(texts)]) == whole else 0

    def resembles(self, read: bytes, begin: int, end: int) -> bool:
        """The same of a piece that differs in more than its text: the read from `begin` to `end`."""
        if self.shape is None:
            return False
        match = self.shape(read, begin, end)
        return match is not None and (match[1] in _KNOWN or _is_plain(match[1]))


class Stride:
    """Takes the reads of a stream as long as each is whole chunks of HTTP/1.1 that match a pattern.

    Of such a chunk its stamp says all that is new: nothing is parsed, nothing put by, and little memory
    touched. That of a thousand streams does not stay in the cache, and is what a chunk costs.

    Args:
        pattern: what the chunks' data looks like.
        chunk_ns: where the stamps go.
    """

    __slots__ = ("_chunk_ns", "_end", "_head", "_pattern", "bytes_in")

    def __init__(self, pattern: Pattern, chunk_ns: list[int]) -> None:
        self.bytes_in = 0
        """Of the chunks taken, with their framing."""
        self._pattern = pattern
        self._head = pattern.head
        self._end = pattern.tail + _CRLF
        self._chunk_ns = chunk_ns

    def takes(self, read: bytes, stamp_ns: int) -> bool:
        """Take a read, which begins where a chunk does; False if any of it is anything else."""
        total = len(read)
        line = _SIZE_LINES.get(total)
        if line is not None:  # one chunk, with a text that is known, as most are
            head, end = self._head, self._end
            text = read[len(line) + len(head) : -len(end)]
            if text in _KNOWN and read == b"".join((line, head, text, end)):
                self._chunk_ns.append(stamp_ns)
                self.bytes_in += total
                return True
        count = self._chunks(read)
        if count:
            self._chunk_ns += [stamp_ns] * count
            self.bytes_in += total
        return count > 0

    def _chunks(self, read: bytes) -> int:
        """How many chunks that match a read is; 0 if any of it is something else."""
        *parts, rest = read.split(_CRLF)
        if rest or len(parts) % 2:
            return 0
        sizes, matches, each = _SIZES, self._pattern.matches, iter(parts)
        for line, data in zip(each, each, strict=True):
            if sizes.get(line) != len(data) or not matches(data):
                return 0
        return len(parts) // 2


def shapes_help() -> bool:
    """Streams of this process have differed in more than their texts."""
    return any(_SHAPES.values())


def pattern_of(piece: bytes, event: Event, delta: Delta, reads: frozenset[bytes] | None) -> Pattern | None:
    """The pattern of a piece that held one whole event, and nothing else; None if it is not usual.

    Args:
        piece: the bytes, begun and ended between two events.
        event: what they framed.
        delta: what that said: text, and nothing that depends on what the text is.
        reads: the names of all members that make a difference; None leaves its shape out.
    """
    says_text = delta.content or delta.reasoning
    if not says_text or delta.finish_reason is not None or delta.usage is not None or delta.error is not None:
        return None
    start = piece.find(event.payload)
    texts = list(_TEXT.finditer(event.payload))
    if start < 0 or len(texts) != 1 or event.name == b"error":
        return None
    begin, end = (start + at for at in texts[0].span(1))
    shape = None if reads is None else _shape(_expression(piece, begin, end, reads))
    return Pattern(piece[:begin], piece[end:], shape)


def _expression(piece: bytes, begin: int, end: int, reads: frozenset[bytes]) -> bytes:
    """Matches what differs from a piece in its text, from `begin` to `end`, and in what nobody reads."""
    others = (member for member in _MEMBER.finditer(piece) if not member.start() < begin < member.end())
    sorts = [(member, member.lastindex or 0) for member in others if member[1] not in reads]
    holes = [(*member.span(sort), _VALUES[sort - 2]) for member, sort in sorts]
    parts, at = [], 0
    for low, high, values in sorted([*holes, (begin, end, b"(%b)" % _PLAIN)]):
        parts += [re.escape(piece[at:low]), values]
        at = high
    return b"".join([*parts, re.escape(piece[at:])])


def _shape(expression: bytes) -> Shape | None:
    """What an expression matches; None of one that is new: it may never come again."""
    if expression not in _SHAPES:
        if len(_SHAPES) >= _SHAPES_MOST:  # those that never came again make room
            for once in [known for known, shape in _SHAPES.items() if shape is None]:
                del _SHAPES[once]
        if len(_SHAPES) < _SHAPES_MOST:
            _SHAPES[expression] = None
        return None
    shape = _SHAPES[expression]
    if shape is None:
        shape = _SHAPES[expression] = re.compile(expression).fullmatch
    return shape


def _is_plain(text: bytes) -> bool:
    """The text says what it spells."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    if _plain(text) is None:
        return False
    if len(text) <= _SHORT and len(_KNOWN) < _KNOWN_MOST:
        _KNOWN.add(text)
    return True
