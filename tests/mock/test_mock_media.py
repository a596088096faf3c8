"""Claims about embeddings, images, speech and transcripts, made without a server."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import struct
import wave
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.mock import audio, embeddings, images, multipart
from harness.mock.media import Asked, Made
from harness.mock.plan import Framing, Kind
from harness.mock.questions import Refusal

MS = 1_000_000


def asked(body: object, content_type: str = "application/json") -> Asked:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Asked(raw, content_type, "http://mock:1", 1000, lambda n: [5 * MS + i * MS for i in range(n)])


def made(answer: Made | Refusal) -> Made:
    assert isinstance(answer, Made), answer
    return answer


def body_of(answer: Made | Refusal) -> dict:
    return json.loads(b"".join(step.payload for step in made(answer).plan.steps))


def events_of(answer: Made | Refusal) -> list[dict]:
    payloads = [step.payload for step in made(answer).plan.steps]
    return [json.loads(payload.partition(b"data: ")[2]) for payload in payloads]


# -- forms ------------------------------------------------------------------------------------------------


names = st.text(
    st.characters(codec="utf-8", exclude_characters='"\\', exclude_categories=["C", "Z"]), min_size=1
)


@given(st.lists(st.tuples(names, st.binary()), max_size=5))
def test_a_form_is_read_back_as_it_was_written(fields: list[tuple[str, bytes]]):
    # The boundary cannot occur in the contents, as its maker must see to.
    boundary = b"b-" + "".join(content.hex() for _, content in fields).encode()[-30:] + b"-0123456789"
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
        % (boundary, name.encode(), content)
        for name, content in fields
    ]
    body = b"".join(parts) + b"--" + boundary + b"--\r\n"
    form = multipart.parse(body, f"multipart/form-data; boundary={boundary.decode()}")
    assert [(part.name, part.content) for part in form] == fields


@given(st.binary(max_size=300), st.text(max_size=40))
def test_what_is_no_form_is_a_value_error_and_nothing_else(body: bytes, boundary: str):
    with contextlib.suppress(ValueError):
        multipart.parse(body, f"multipart/form-data; boundary={boundary}")


def test_a_file_of_a_form_has_its_name():
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a b.wav"\r\n\r\n\r\n\x00\r\n--x--'
    assert multipart.parse(body, "multipart/form-data; boundary=x") == [
        multipart.Part("file", b"\r\n\x00", "a b.wav")
    ]


# -- embeddings -------------------------------------------------------------------------------------------


def unpacked(text: str, dimensions: int) -> tuple[float, ...]:
    return struct.unpack(f"<{dimensions}f", embeddings.vector(text, dimensions))


@given(st.text(), st.integers(1, 300))
def test_vectors_are_units_that_the_text_alone_decides(text: str, dimensions: int):
    vector = unpacked(text, dimensions)
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)
    assert vector == unpacked(text, dimensions)


def test_other_texts_are_nearly_orthogonal_and_shorter_vectors_point_the_same_way():
    cat, dog = unpacked("cat", 1536), unpacked("dog", 1536)
    assert abs(sum(a * b for a, b in zip(cat, dog, strict=True))) < 0.1
    short = unpacked("cat", 8)
    assert [a / b for a, b in zip(short, cat[:8], strict=True)] == pytest.approx(
        [short[0] / cat[0]] * 8, rel=1e-4
    )


def test_base64_is_the_same_vector_as_floats():
    plain = body_of(embeddings.make(asked({"model": "e", "input": "a", "dimensions": 3})))
    packed = body_of(
        embeddings.make(asked({"model": "e", "input": "a", "dimensions": 3, "encoding_format": "base64"}))
    )
    decoded = struct.unpack("<3f", base64.b64decode(packed["data"][0]["embedding"]))
    assert list(decoded) == plain["data"][0]["embedding"]


@pytest.mark.parametrize(
    ("given", "count", "tokens"),
    [
        ("hi", 1, 1),
        (["a" * 10, "b" * 10], 2, 6),
        ([1, 2, 3], 1, 3),
        ([[1, 2], [3]], 2, 3),
    ],
)
def test_inputs_are_texts_or_token_ids_one_or_many(given: object, count: int, tokens: int):
    answer = embeddings.make(asked({"model": "e", "input": given, "dimensions": 2}))
    body = body_of(answer)
    assert [item["index"] for item in body["data"]] == list(range(count))
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert made(answer).plan.steps[0].at_ns == 5 * MS


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        ({"model": "e"}, 422),
        ({"model": "e", "input": ""}, 422),
        ({"model": "e", "input": []}, 422),
        ({"model": "e", "input": ["a", 1]}, 422),
        ({"model": "e", "input": "a", "dimensions": 0}, 422),
        ({"model": "e", "input": "a", "encoding_format": "int8"}, 422),
    ],
)
def test_embeddings_refuse_what_is_no_input(body: object, status: int):
    answer = embeddings.make(asked(body))
    assert isinstance(answer, Refusal)
    assert answer.status == status


# -- images -----------------------------------------------------------------------------------------------


def chunks(picture: bytes) -> dict[bytes, bytes]:
    """A PNG's chunks, each checked against its checksum."""
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    found, rest = {}, picture[8:]
    while rest:
        size = int.from_bytes(rest[:4], "big")
        kind, content = rest[4:8], rest[8 : 8 + size]
        assert int.from_bytes(rest[8 + size : 12 + size], "big") == zlib.crc32(kind + content)
        found[kind], rest = content, rest[12 + size :]
    return found


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 3), (1024, 1024), (1536, 1024)])
def test_a_picture_is_a_png_of_its_size(width: int, height: int):
    picture = images.png(f"{width}x{height}")
    assert picture is not None
    found = chunks(picture)
    assert list(found) == [b"IHDR", b"IDAT", b"IEND"]
    assert struct.unpack(">II", found[b"IHDR"][:8]) == (width, height)
    assert len(zlib.decompress(found[b"IDAT"])) == height * (1 + math.ceil(width / 8))


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        ({}, 272),
        ({"quality": "high"}, 4160),
        ({"n": 2}, 544),
        ({"size": "512x512", "quality": "medium"}, 264),
    ],
)
def test_pictures_are_due_when_their_tokens_are(request_: dict, tokens: int):
    answer = images.make(asked({"prompt": "a", **request_}))
    assert body_of(answer)["usage"]["output_tokens"] == tokens
    assert made(answer).plan.completion_tokens == tokens
    assert made(answer).plan.steps[0].at_ns == 5 * MS + (tokens - 1) * MS


def test_partial_pictures_come_before_the_whole_one():
    answer = images.make(asked({"prompt": "a", "stream": True, "partial_images": 3}))
    assert [event["type"].removeprefix("image_generation.") for event in events_of(answer)] == [
        *["partial_image"] * 3,
        "completed",
    ]
    dues = [step.at_ns // MS for step in made(answer).plan.steps]
    assert dues == [72, 140, 208, 276]


@pytest.mark.parametrize("size", ["0x1", "x", "10", "5000x1", "-1x4", "1024X1024"])
def test_no_picture_has_no_size(size: str):
    answer = images.make(asked({"prompt": "a", "size": size}))
    assert isinstance(answer, Refusal)
    assert answer.status == 400


# -- audio ------------------------------------------------------------------------------------------------

SPEECH = {"model": "tts", "voice": "alloy", "input": "x" * 36}


def test_speech_in_wav_is_as_long_as_the_text_takes_to_say():
    answer = audio.speech(asked({**SPEECH, "response_format": "wav"}))
    sound = b"".join(step.payload for step in made(answer).plan.steps)
    with wave.open(io.BytesIO(sound)) as parsed:
        assert (parsed.getnchannels(), parsed.getsampwidth(), parsed.getframerate()) == (1, 2, 24_000)
        assert parsed.getnframes() / parsed.getframerate() == pytest.approx(36 / 15)
        assert parsed.readframes(10**6) == bytes(2 * parsed.getnframes())


def test_speech_in_mp3_is_whole_frames():
    answer = audio.speech(asked(SPEECH))
    sound = b"".join(step.payload for step in made(answer).plan.steps)
    frames = [sound[i : i + 96] for i in range(0, len(sound), 96)]
    assert len(frames) * 0.024 == pytest.approx(36 / 15)
    assert {frame[:4] for frame in frames} == {b"\xff\xf3\x44\xc0"}


def test_speech_comes_in_chunks_that_are_due_like_tokens():
    plan = made(audio.speech(asked({**SPEECH, "speed": 2, "response_format": "pcm"}))).plan
    assert plan.framing is Framing.BYTES
    assert [step.at_ns // MS for step in plan.steps] == [5, 6, 7, 8, 9]
    assert {step.kind for step in plan.steps} == {Kind.TOKEN}


def test_events_of_speech_carry_the_same_sound():
    plain = made(audio.speech(asked({**SPEECH, "response_format": "pcm"}))).plan.steps
    *deltas, done = events_of(
        audio.speech(asked({**SPEECH, "response_format": "pcm", "stream_format": "sse"}))
    )
    assert [base64.b64decode(delta["audio"]) for delta in deltas] == [step.payload for step in plain]
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["output_tokens"] == len(deltas) == 10


def form(**fields: str | bytes) -> Asked:
    parts = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        % (
            name.encode(),
            b'; filename="a"' if isinstance(value, bytes) else b"",
            value if isinstance(value, bytes) else value.encode(),
        )
        for name, value in fields.items()
    )
    return asked(parts + b"--x--\r\n", "multipart/form-data; boundary=x")


def two_seconds() -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(32_000))
    return written.getvalue()


@pytest.mark.parametrize("sound", [two_seconds(), bytes(32_000)])
def test_a_transcript_has_three_words_a_second(sound: bytes):
    body = body_of(audio.transcription(form(file=sound, model="w")))
    assert len(body["text"].split()) == 6
    assert body["usage"] == {"type": "tokens", "input_tokens": 20, "output_tokens": 6, "total_tokens": 26}


def test_a_streamed_transcript_is_the_same_words():
    whole = body_of(audio.transcription(form(file=bytes(16_000), model="w")))
    *deltas, done = events_of(audio.transcription(form(file=bytes(16_000), model="w", stream="true")))
    assert "".join(delta["delta"] for delta in deltas) == done["text"] == whole["text"]


@pytest.mark.parametrize(
    ("wanted", "start"),
    [
        ("text", b""),
        ("srt", b"1\n00:00:00,000 --> 00:00:02,000\n"),
        ("vtt", b"WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n"),
    ],
)
def test_transcripts_come_in_other_formats(wanted: str, start: bytes):
    plain = body_of(audio.transcription(form(file=bytes(32_000), model="w")))["text"]
    plan = made(audio.transcription(form(file=bytes(32_000), model="w", response_format=wanted))).plan
    assert plan.headers == [("content-type", "text/plain; charset=utf-8")]
    assert plan.steps[0].payload == start + plain.encode() + b"\n"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"model": "w"}, 422),
        ({"file": b"a"}, 422),
        ({"file": b"", "model": "w"}, 422),
        ({"file": b"a", "model": "w", "response_format": "xml"}, 422),
        ({"file": b"a", "model": "w", "stream": "yes"}, 422),
    ],
)
def test_transcription_refuses_forms_that_lack_something(fields: dict, status: int):
    answer = audio.transcription(form(**fields))
    assert isinstance(answer, Refusal)
    assert answer.status == status
