"""`/images/generations`: valid PNG pictures of the size asked for, which show nothing but stripes.

A picture counts 272 tokens at 1024x1024 and quality `low` or `auto`, 1056 at `medium` and 4160 at `high`
(OpenAI's image generation guide), and in proportion to its area at other sizes.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from harness.mock.media import Asked, Made, event, read, whole
from harness.mock.plan import Framing, Kind, Plan, Step
from harness.mock.questions import Refusal, count_tokens

_TOKENS = {"auto": 272, "low": 272, "medium": 1056, "high": 4160}
_SIZE = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})", re.ASCII)
_LARGEST = 4096


class _Body(msgspec.Struct):
    prompt: Annotated[str, Meta(min_length=1, max_length=32_000)]
    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    size: str | None = None
    quality: Literal["auto", "low", "medium", "high"] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Meta(ge=0, le=3)] | None = None


_decode = msgspec.json.Decoder(_Body).decode


def make(asked: Asked) -> Made | Refusal:
    """Answer: due with the last picture's last token; streamed, each event when its share is through."""
    body = read(_decode, asked.body)
    if isinstance(body, Refusal):
        return body
    size = "1024x1024" if body.size in {None, "auto"} else str(body.size)
    picture = png(size)
    if picture is None:
        return Refusal(400, f"`size` is {size!r}: write WIDTHxHEIGHT, each from 1 to {_LARGEST}")
    quality = body.quality or "auto"
    count = body.n or 1
    model = body.model or "gpt-image"
    prompt_tokens = count_tokens(body.prompt)
    tokens = count * _tokens(size, quality)
    offsets = asked.due(tokens)
    shape = {
        "background": "opaque",
        "output_format": "png",
        "quality": "low" if quality == "auto" else quality,
        "size": size,
    }
    usage = _usage(prompt_tokens, tokens)
    if body.stream:
        if count > 1:
            return Refusal(400, "`n` must be 1 for a stream")
        plan = _stream(
            picture,
            created=asked.created,
            offsets=offsets,
            partial=body.partial_images or 0,
            shape=shape,
            usage=usage,
        )
        return Made(plan, model, prompt_tokens, stream=True, generated=tokens)
    if body.response_format == "url":
        one = {"url": f"{asked.origin}/v1/images/files/{size}.png"}
    else:
        one = {"b64_json": base64.b64encode(picture).decode()}
    answer = {"created": asked.created, "data": [one] * count, **shape, "usage": usage}
    plan = whole(msgspec.json.encode(answer), at_ns=offsets[-1], completion_tokens=tokens)
    return Made(plan, model, prompt_tokens)


def _stream(
    picture: bytes,
    *,
    created: int,
    offsets: Sequence[int],
    partial: int,
    shape: dict[str, str],
    usage: dict[str, Any],
) -> Plan:
    common = {"b64_json": base64.b64encode(picture).decode(), "created_at": created, **shape}
    steps = []
    for index in range(partial):
        name = "image_generation.partial_image"
        payload = event({"type": name, "partial_image_index": index, **common}, name=name)
        steps.append(Step(offsets[(index + 1) * len(offsets) // (partial + 1) - 1], payload, Kind.TOKEN))
    name = "image_generation.completed"
    last = event({"type": name, "usage": usage, **common}, name=name)
    steps.append(Step(offsets[-1], last, Kind.TOKEN))
    headers = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
    return Plan(200, headers, steps, Framing.SSE, completion_tokens=len(steps))


def file(name: str) -> Plan | None:
    """The picture that a `url` of an answer leads to, by its name, or None."""
    picture = png(name.removesuffix(".png")) if name.endswith(".png") else None
    return None if picture is None else whole(picture, at_ns=0, content_type="image/png")


@lru_cache(maxsize=64)
def png(size: str) -> bytes | None:
    """A striped picture, one bit a pixel; None for a size that is none.

    The format: www.w3.org/TR/png-3.
    """
    match = _SIZE.fullmatch(size)
    if match is None:
        return None
    width, height = int(match.group(1)), int(match.group(2))
    if max(width, height) > _LARGEST:
        return None
    row = b"\0" + b"\xf0" * -(-width // 8)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(row * height)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _tokens(size: str, quality: str) -> int:
    width, height = map(int, size.split("x"))
    return max(1, round(_TOKENS[quality] * width * height / 1024**2))


def _usage(prompt: int, completion: int) -> dict[str, Any]:
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"text_tokens": prompt, "image_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": completion},
        "total_tokens": prompt + completion,
    }
