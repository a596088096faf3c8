"""Log probabilities that might be a model's: made up from the tokens alone, adding up to no more than one.

p(chosen) = 0.5 … 0.99, and each alternative has half of what is left: (1 - p) / 2, (1 - p) / 4, …
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import msgspec

from harness.mock.generation import VOCABULARY, unescaped


class _Alternative(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class _Token(_Alternative):
    top_logprobs: list[_Alternative]


class _Legacy(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


_encode = msgspec.json.Encoder().encode


def chat(tokens: Sequence[bytes], top: int) -> bytes:
    """The list that chat answers have, as JSON: each token with its `top` likeliest, itself the first."""
    listed = []
    for token in tokens:
        ranked = [_Alternative(text, value, list(text.encode())) for text, value in _ranked(token, top)]
        chosen = ranked[0]
        listed.append(_Token(chosen.token, chosen.logprob, chosen.bytes, ranked[:top]))
    return _encode(listed)


def legacy(tokens: Sequence[bytes], top: int, offset: int) -> bytes:
    """The object that completions have, as JSON.

    Args:
        tokens: which tokens.
        top: how many of the likeliest to list for each.
        offset: how many characters of the answer are before them.
    """
    ranked = [_ranked(token, top) for token in tokens]
    offsets = []
    for each in ranked:
        offsets.append(offset)
        offset += len(each[0][0])
    return _encode(
        _Legacy(
            tokens=[each[0][0] for each in ranked],
            token_logprobs=[each[0][1] for each in ranked],
            top_logprobs=[dict(each[:top]) for each in ranked],
            text_offset=offsets,
        )
    )


def _ranked(token: bytes, top: int) -> list[tuple[str, float]]:
    """The token, then others than it, by falling log probability: as many as `top`, at least itself."""
    seed = zlib.crc32(token)
    chosen = 0.5 + 0.49 * (seed % 997) / 996
    ranked = [(unescaped(token), math.log(chosen))]
    others = (VOCABULARY[(seed + i) % len(VOCABULARY)] for i in range(len(VOCABULARY)))
    rest = 1 - chosen
    for other in others:
        if len(ranked) >= top:
            break
        text = unescaped(other)
        if other != token and text not in dict(ranked):
            rest /= 2
            ranked.append((text, math.log(rest)))
    return ranked
