"""Claims about mistakes in a faults file: each is named with file, key, value and remedy, in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import ConfigError
from harness.mock import faults, script


@pytest.mark.parametrize(
    ("text", "key", "value", "remedy"),
    [
        ("fautls: []", "fautls", [], "did you mean `faults`? known here: `faults`, `limits`"),
        ("faults: [{fualt: cut, requests: [1]}]", "faults[0].fualt", "cut", "did you mean `fault`?"),
        ("faults: [{requests: [1]}]", "faults[0].fault", None, "is missing"),
        ("faults: 3", "faults", 3, "expected a list, got a whole number"),
        ("faults: [{fault: cut, probability: 2}]", "faults[0].probability", 2, "expected a number <= 1"),
        ("faults: [{fault: cut, requests: [0]}]", "faults[0].requests[0]", 0, "a whole number >= 1"),
        ("limits: {rate: 3}", "limits.rate", 3, "known here: `requests_per_minute`"),
        ("limits: {flavour: vllm}", "limits.flavour", "vllm", "it is one of `deepseek`, `openai`"),
        ("[]", "", [], "expected a mapping, got a list"),
        ("{1: 2}", "", {1: 2}, "keys are text"),
        ("faults: [{fault: ctu, requests: [1]}]", "faults[0].fault", "ctu", "did you mean `cut`?"),
    ],
)
def test_a_mistake_in_a_faults_file_names_key_value_and_remedy(
    tmp_path: Path, text: str, key: str, value: object, remedy: str
) -> None:
    path = tmp_path / "faults.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        script.load_script(path)
    assert (caught.value.source, caught.value.key, caught.value.value) == (str(path), key, value)
    assert remedy in caught.value.remedy
    assert "Object" not in str(caught.value)


@pytest.mark.parametrize(
    ("spelling", "remedy"),
    [
        ("status;cod=429", "`cod` is '429': unknown; did you mean `code`?"),
        ("no_done;after=1", "`after` is '1': unknown; known here: nothing"),
        ("stall;seconds=soon", "`seconds` is 'soon': expected a number"),
        ("cut;inside=perhaps", "`inside` is 'perhaps': expected true or false"),
        ("cut;how=gently", "`how` is 'gently': it is one of `close`, `reset`"),
        ("cut;after=-1", "`after` is '-1': expected a whole number >= 0"),
        ("cut;after=1;after=2", "each once"),
        ("cut;name=stall", "each once"),
        ("finish;reason=No!", "`reason` is 'No!': write a finish reason in lower-case letters"),
        ("status;code=418", "`code` is 418: choose one of 400, 401"),
    ],
)
def test_a_mistake_in_a_fault_s_spelling_names_the_parameter(spelling: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        faults.parse(spelling, "load.yaml", "faults[2].fault")
    assert (caught.value.source, caught.value.key, caught.value.value) == (
        "load.yaml",
        "faults[2].fault",
        spelling,
    )
    assert remedy in caught.value.remedy
    assert "`str`" not in str(caught.value)
