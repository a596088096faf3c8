"""The API's description holds: schemathesis asks what it allows, and the answers are what it promises."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
import schemathesis.checks
from hypothesis import HealthCheck, settings
from schemathesis.config import (
    GenerationConfig,
    PhasesConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)

from harness.mock import openapi
from harness.mock.endpoints import MAKERS
from harness.mock.questions import Endpoint
from harness.testing import MockServer

LENGTHS = {"max_tokens": 393_216, "max_completion_tokens": 393_216, "max_output_tokens": 393_216, "n": 128}


def shorten(body: Any) -> None:
    """Ask for less: answers of hundreds of thousands of tokens would only take time."""
    if isinstance(body, dict):
        for name, most in LENGTHS.items():
            if type(body.get(name)) is int and 4 < body[name] <= most:
                body[name] = 4


def configured() -> SchemathesisConfig:
    generation = GenerationConfig(deterministic=True, max_examples=6)
    phases = PhasesConfig()
    for phase in (phases.examples, phases.coverage, phases.stateful):
        phase.enabled = False
    project = ProjectConfig(generation=generation, phases=phases)
    return SchemathesisConfig(seed=1, projects=ProjectsConfig(default=project))


schema = schemathesis.openapi.from_dict(openapi.document(), config=configured())


@schema.parametrize()
@settings(
    max_examples=6, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
def test_answers_are_as_described(case: schemathesis.Case, mock: MockServer):
    # A schema cannot say all: that JSON mode wants the word in the prompt, that a task has no stream, that
    # 3.0 is no whole number to DeepSeek's server. So what it allows may be refused, but never the reverse.
    excluded = [schemathesis.checks.positive_data_acceptance]
    if case.media_type == "multipart/form-data" or case.query:
        # Forms and queries are text: a number in the place of a text is one.
        excluded.append(schemathesis.checks.negative_data_rejection)
    shorten(case.body)
    case.call_and_validate(base_url=mock.url, timeout=20, excluded_checks=excluded)


def test_the_description_has_every_endpoint_and_the_mock_every_path(mock: MockServer):
    described = set(httpx.get(f"{mock.url}/openapi.json", trust_env=False).json()["paths"])
    served = {endpoint.value for endpoint in Endpoint} | set(MAKERS)
    assert served <= {path.removeprefix("/v1") for path in described}
    with httpx.Client(base_url=mock.url, trust_env=False) as http:
        for path in described:
            filled = path.replace("{name}", "1x1.png")
            answer = http.request("PATCH", filled)
            missing = answer.status_code == 404 and "Not Found: " in answer.text
            assert not missing, path


@pytest.mark.parametrize("path", ["/v1/nothing", "/files/a/b", "/batches/a/b/c", "/images/files/a.png"])
def test_what_is_not_described_is_not_there(mock: MockServer, path: str):
    assert httpx.get(mock.url + path, trust_env=False).status_code == 404
