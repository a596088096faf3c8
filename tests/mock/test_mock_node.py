"""Claims about the mock, made by the official OpenAI SDK for Node, which npm fetches into a folder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.testing import MockServer

SDK = "openai@7.57.0"
SCRIPT = """
import OpenAI from "openai";

const sdk = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "any", maxRetries: 0, timeout: 20000 });
const ask = { model: "deepseek-flash", messages: [{ role: "user", content: "hi" }], max_tokens: 8 };
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "weather", parameters } }];
const told = {};

const whole = await sdk.chat.completions.create(ask);
told.whole = { finish: whole.choices[0].finish_reason, tokens: whole.usage.completion_tokens };

told.streamed = { reasoning: 0, content: 0 };
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await sdk.chat.completions.create({ ...ask, ...options })) {
  const delta = chunk.choices[0]?.delta ?? {};
  if (delta.reasoning_content) told.streamed.reasoning += 1;
  if (delta.content) told.streamed.content += 1;
  if (chunk.usage) told.streamed.tokens = chunk.usage.completion_tokens;
}

const calling = sdk.chat.completions.stream({ ...ask, model: "m", max_tokens: 99, tools });
const accumulated = await calling.finalChatCompletion();
told.call = JSON.parse(accumulated.choices[0].message.tool_calls[0].function.arguments);

const completion = await sdk.completions.create({ model: "m", prompt: "hi", max_tokens: 3 });
told.completion = completion.usage.completion_tokens;

const response = await sdk.responses.create({ model: "m", input: "hi", max_output_tokens: 5 });
told.response = { status: response.status, tokens: response.usage.output_tokens };
told.text = response.output_text;

const events = [];
const streamed = await sdk.responses.create({ model: "m", input: "hi", stream: true });
for await (const event of streamed) events.push(event);
told.numbered = events.every((event, i) => event.sequence_number === i);
told.last = events.at(-1).type;

try {
  await sdk.chat.completions.create({ ...ask, model: "deepseek-chat" });
} catch (error) {
  told.refused = { status: error.status, message: error.message };
}
for (const fault of ["status;code=429", "error_event;after=2"]) {
  try {
    const headers = { "x-mock-fault": fault };
    for await (const _ of await sdk.chat.completions.create({ ...ask, stream: true }, { headers }));
  } catch (error) {
    told[fault] = error.constructor.name;
  }
}
console.log(JSON.stringify(told));
"""

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def told(mock: MockServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("node")
    (folder / "script.mjs").write_text(SCRIPT)
    install = [
        "npm",
        "install",
        "--silent",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--prefix",
        ".",
        SDK,
    ]
    subprocess.run(install, cwd=folder, check=True, timeout=90, capture_output=True)
    ran = subprocess.run(
        ["node", "script.mjs", mock.url], cwd=folder, check=False, timeout=30, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def test_whole_and_streamed_answers_agree(told: dict[str, Any]):
    assert told["whole"] == {"finish": "length", "tokens": 8}
    assert told["streamed"] == {"reasoning": 2, "content": 6, "tokens": 8}
    assert told["completion"] == 3


def test_streamed_tool_calls_accumulate(told: dict[str, Any]):
    assert told["call"] == {"city": "text"}


def test_responses_work_whole_and_streamed(told: dict[str, Any]):
    assert told["response"] == {"status": "incomplete", "tokens": 5}
    assert told["text"]
    assert told["numbered"] is True
    assert told["last"] == "response.completed"


def test_errors_become_the_sdks_errors(told: dict[str, Any]):
    assert told["refused"]["status"] == 400
    assert "The supported API model names are" in told["refused"]["message"]
    assert told["status;code=429"] == "RateLimitError"
    assert told["error_event;after=2"] == "APIError"
