"""Error answers as each provider words them, and when each says to come back."""

from __future__ import annotations

import math
from email.utils import formatdate
from typing import Literal

from harness.mock import api
from harness.mock.plan import Plan

Flavour = Literal["deepseek", "openai"]

_OPENAI: dict[int, tuple[str, str, str | None]] = {
    400: (
        "We could not parse the JSON body of your request.",
        "invalid_request_error",
        None,
    ),
    401: (
        "Incorrect API key provided. You can find your API key at https://platform.openai.com/account/api-keys.",
        "invalid_request_error",
        "invalid_api_key",
    ),
    402: (
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        "insufficient_quota",
    ),
    403: (
        "Country, region, or territory not supported",
        "request_forbidden",
        "unsupported_country_region_territory",
    ),
    404: (
        "The model does not exist or you do not have access to it.",
        "invalid_request_error",
        "model_not_found",
    ),
    405: (
        "Not allowed to use this method on this endpoint.",
        "invalid_request_error",
        "method_not_supported",
    ),
    408: ("Request timed out.", "timeout", None),
    409: ("The resource was updated by another process. Please try again.", "conflict_error", None),
    413: ("The request body exceeds the maximum size.", "invalid_request_error", "request_too_large"),
    422: ("Unable to process the request despite the format being correct.", "invalid_request_error", None),
    429: (
        "Rate limit reached for requests per min (RPM). Please try again later.",
        "requests",
        "rate_limit_exceeded",
    ),
    500: (
        "The server had an error while processing your request. Sorry about that!",
        "server_error",
        None,
    ),
    502: ("Bad gateway.", "server_error", None),
    503: ("The engine is currently overloaded, please try again later.", "server_error", None),
    504: ("Gateway timeout.", "server_error", None),
}
"""Status to message, type and code, in the shape and the manner of OpenAI's error guide."""


def refusal(flavour: Flavour, status: int, *, headers: list[tuple[str, str]]) -> Plan:
    """An error answer in the provider's words, due at once."""
    if flavour == "deepseek":
        return api.refusal(status, headers=headers)
    message, kind, code = _OPENAI[status]
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    if status == 429 and not any(name.startswith("x-ratelimit") for name, _ in headers):
        headers = [*headers, *exhausted(headers)]
    return api.json_plan(body, status=status, headers=headers)


def retry_after(seconds: float, *, wall_s: float | None) -> tuple[str, str]:
    """The Retry-After header: in seconds, or as the HTTP date after that time (whole seconds, rounded up).

    Args:
        seconds: to wait.
        wall_s: Unix time of now, for a date; None for seconds.
    """
    if wall_s is None:
        return "retry-after", f"{seconds:g}"
    return "retry-after", formatdate(math.ceil(wall_s + seconds), usegmt=True)


def exhausted(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What OpenAI's rate-limit headers say beside a 429 that nothing counted: no request is left."""
    given = dict(headers).get("retry-after", "")
    wait_s = float(given) if given.replace(".", "", 1).isdigit() else 1.0
    return ratelimit_headers("requests", limit=500, remaining=0, reset_s=wait_s)


def ratelimit_headers(
    resource: Literal["requests", "tokens"], *, limit: int, remaining: int, reset_s: float
) -> list[tuple[str, str]]:
    """OpenAI's three headers about one limit."""
    return [
        (f"x-ratelimit-limit-{resource}", str(limit)),
        (f"x-ratelimit-remaining-{resource}", str(remaining)),
        (f"x-ratelimit-reset-{resource}", go_duration(reset_s)),
    ]


def go_duration(seconds: float) -> str:
    """As OpenAI writes durations: `0s`, `20ms`, `1.5s`, `6m0s`."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        return f"{max(1, math.ceil(seconds * 1000))}ms"
    minutes, rest = divmod(seconds, 60)
    text = f"{math.ceil(rest * 1000) / 1000:g}s"
    return f"{int(minutes)}m{text}" if minutes else text


HTML_PAGE = b"""<html>
<head><title>502 Bad Gateway</title></head>
<body>
<center><h1>502 Bad Gateway</h1></center>
<hr><center>nginx</center>
</body>
</html>
"""
"""What a gateway in front of an API says when it should say nothing."""
