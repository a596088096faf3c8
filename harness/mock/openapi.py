"""The API's description (OpenAPI 3.1), kept in openapi.yaml."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml


@cache
def document() -> dict[str, Any]:
    """The description as plain values."""
    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("openapi.yaml").read_text("utf-8"))
    return found
