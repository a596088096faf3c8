"""`/embeddings`: vectors that depend on the input alone, so that equal texts are equal and others are not.

Each component is drawn from SHAKE-256 of the input, and the vector is normed to 1. Fewer `dimensions` are
the first of the full vector, normed again, as with the embedding models that can be shortened.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from array import array
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from harness.mock.media import Asked, Made, read, whole
from harness.mock.questions import Refusal, count_tokens

DIMENSIONS = 1536
"""Of a vector whose request does not say: text-embedding-3-small's."""

_Text = Annotated[str, Meta(min_length=1)]
_Token = Annotated[int, Meta(ge=0)]
_Inputs = Annotated[
    list[_Text | _Token | Annotated[list[_Token], Meta(min_length=1)]], Meta(min_length=1, max_length=2048)
]


class _Body(msgspec.Struct):
    model: str
    input: _Text | _Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=4096)] = DIMENSIONS


class _Embedding(msgspec.Struct):
    index: int
    embedding: list[float] | str
    object: str = "embedding"


_decode = msgspec.json.Decoder(_Body).decode


def make(asked: Asked) -> Made | Refusal:
    """Answer: due with the first token, since nothing is generated after the prompt is read."""
    body = read(_decode, asked.body)
    if isinstance(body, Refusal):
        return body
    inputs = _inputs(body.input)
    if inputs is None:
        return Refusal(422, "`input` must be texts or token ids, not both")
    tokens = sum(count_tokens(item) if isinstance(item, str) else len(item) for item in inputs)
    listed = []
    for index, item in enumerate(inputs):
        packed = vector(repr(item), body.dimensions)
        plain = base64.b64encode(packed).decode() if body.encoding_format == "base64" else _floats(packed)
        listed.append(_Embedding(index, plain))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"object": "list", "data": listed, "model": body.model, "usage": usage}
    return Made(whole(msgspec.json.encode(answer), at_ns=asked.due(1)[0]), body.model, tokens)


def vector(text: str, dimensions: int) -> bytes:
    """A text's unit vector as little-endian 32-bit floats."""
    drawn = array("i")
    drawn.frombytes(hashlib.shake_256(text.encode()).digest(drawn.itemsize * dimensions))
    norm = math.hypot(*drawn) or 1.0
    return struct.pack(f"<{dimensions}f", *(component / norm for component in drawn))


def _floats(packed: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(packed) // 4}f", packed))


def _inputs(given: str | list[str | int | list[int]]) -> list[str] | list[list[int]] | None:
    """The texts, or the token lists; a flat list of token ids is one input."""
    if isinstance(given, str):
        return [given]
    texts = [item for item in given if isinstance(item, str)]
    tokens = [item for item in given if isinstance(item, int)]
    lists = [item for item in given if isinstance(item, list)]
    if len(texts) == len(given):
        return texts
    if len(tokens) == len(given):
        return [tokens]
    return lists if len(lists) == len(given) else None
