"""`/audio/speech` and `/audio/transcriptions`: silence of the right length, and words for any sound.

One token of speech is 0.24 s of sound, and a second speaks 15 characters (150 words a minute). One word of
a transcript is a token, three a second. Sound that is not WAV is taken for 128 kbit/s.
"""

from __future__ import annotations

import base64
import io
import struct
import wave
import zlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from harness.mock import multipart
from harness.mock.media import Asked, Made, event, read, whole
from harness.mock.plan import Framing, Kind, Plan, Step
from harness.mock.questions import Refusal, count_tokens

_RATE = 24_000
"""Samples a second of all sound that goes out: 16 bits, mono, as OpenAI's `pcm`."""
TOKEN_S = 0.24
_CHARACTERS_PER_S = 15
TOKEN_PCM = bytes(round(TOKEN_S * _RATE) * 2)
"""Of silence."""
_MP3_FRAME = b"\xff\xf3\x44\xc0" + bytes(92)
"""MPEG-2 layer III, 32 kbit/s, 24 kHz, mono (ISO/IEC 13818-3): 576 samples without any coefficient, which is
silence. 72 * 32,000 / 24,000 = 96 bytes for 24 ms."""
_MP3_TOKEN = _MP3_FRAME * 10
_TYPES = {"mp3": "audio/mpeg", "wav": "audio/wav", "pcm": "audio/pcm"}

# -- speech -----------------------------------------------------------------------------------------------


class _VoiceId(msgspec.Struct):
    id: str


class _Speech(msgspec.Struct):
    model: str
    input: Annotated[str, Meta(min_length=1, max_length=4096)]
    voice: str | _VoiceId
    response_format: Literal["mp3", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Meta(ge=0.25, le=4)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"


_decode_speech = msgspec.json.Decoder(_Speech).decode


def speech(asked: Asked) -> Made | Refusal:
    """Answer with sound in chunks of one token, each when it is due: plain, or in events."""
    body = read(_decode_speech, asked.body)
    if isinstance(body, Refusal):
        return body
    count = max(1, round(len(body.input) / _CHARACTERS_PER_S / body.speed / TOKEN_S))
    prompt_tokens = count_tokens(body.input)
    pieces = _sound(body.response_format, count)
    offsets = asked.due(count)
    if body.stream_format == "sse":
        plan = _speech_events(pieces, offsets, prompt_tokens)
    else:
        steps = [Step(at_ns, piece, Kind.TOKEN) for at_ns, piece in zip(offsets, pieces, strict=True)]
        headers = [("content-type", _TYPES[body.response_format])]
        plan = Plan(200, headers, steps, Framing.BYTES, completion_tokens=count)
    return Made(plan, body.model, prompt_tokens, stream=True)


def _sound(form: str, count: int) -> list[bytes]:
    if form == "mp3":
        return [_MP3_TOKEN] * count
    pieces = [TOKEN_PCM] * count
    if form == "wav":
        pieces[0] = _wav_head(count * len(TOKEN_PCM)) + TOKEN_PCM
    return pieces


def _wav_head(size: int) -> bytes:
    """The 44 bytes before the samples: RIFF, `fmt ` (PCM, mono, 16 bits) and the head of `data`."""
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, _RATE, 2 * _RATE, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + layout + struct.pack("<4sI", b"data", size)


def _speech_events(pieces: Sequence[bytes], offsets: Sequence[int], prompt_tokens: int) -> Plan:
    steps = [
        Step(
            at_ns,
            event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()}),
            Kind.TOKEN,
        )
        for at_ns, piece in zip(offsets, pieces, strict=True)
    ]
    usage = _usage(prompt_tokens, len(pieces))
    steps.append(Step(offsets[-1], event({"type": "speech.audio.done", "usage": usage}), Kind.FRAME))
    return Plan(200, _SSE, steps, Framing.SSE, completion_tokens=len(pieces))


# -- transcriptions ---------------------------------------------------------------------------------------

_WORDS = ("the", "mock", "hears", "nothing", "but", "says", "as", "many", "words", "as", "it", "is", "long")
_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")


def transcription(asked: Asked) -> Made | Refusal:
    """Answer with words for a form's `file`: whole when the last is due, or streamed word by word."""
    try:
        form = multipart.parse(asked.body, asked.content_type)
    except ValueError as error:
        return Refusal(400, str(error))
    sound = next((part for part in form if part.name == "file"), None)
    fields = {part.name: part.content.decode(errors="replace") for part in form if part.name != "file"}
    model, wanted = fields.get("model"), fields.get("response_format", "json")
    if sound is None or not sound.content or not model:
        return Refusal(422, "the form needs a `file` that is not empty, and a `model`")
    if wanted not in _FORMATS:
        return Refusal(422, f"`response_format` is {wanted!r}: choose one of {', '.join(_FORMATS)}")
    if fields.get("stream", "false") not in {"true", "false"}:
        return Refusal(422, f"`stream` is {fields['stream']!r}: write true or false")
    seconds = _seconds(sound.content)
    count = max(1, round(3 * seconds))
    start = zlib.crc32(sound.content)
    words = [_WORDS[(start + i) % len(_WORDS)] for i in range(count)]
    prompt_tokens = max(1, round(10 * seconds))
    offsets = asked.due(count)
    if fields.get("stream") == "true":
        return Made(_transcript_events(words, offsets, prompt_tokens), model, prompt_tokens, stream=True)
    content_type, text = _transcript(wanted, " ".join(words), seconds, _usage(prompt_tokens, count))
    plan = whole(text, at_ns=offsets[-1], content_type=content_type, completion_tokens=count)
    return Made(plan, model, prompt_tokens)


def _seconds(sound: bytes) -> float:
    try:
        with wave.open(io.BytesIO(sound)) as parsed:
            seconds = float(parsed.getnframes() / parsed.getframerate())
    except (wave.Error, EOFError, ZeroDivisionError):
        return len(sound) / 16_000
    return min(seconds, len(sound) / 1000)  # A head may announce more sound than there is.


def _transcript(wanted: str, text: str, seconds: float, usage: dict[str, Any]) -> tuple[str, bytes]:
    """An answer's content type and body."""
    end = _clock(seconds)
    match wanted:
        case "text":
            return "text/plain; charset=utf-8", text.encode() + b"\n"
        case "srt":
            cue = f"1\n00:00:00,000 --> {end.replace('.', ',')}\n{text}\n"
            return "text/plain; charset=utf-8", cue.encode()
        case "vtt":
            return "text/plain; charset=utf-8", f"WEBVTT\n\n00:00:00.000 --> {end}\n{text}\n".encode()
        case "verbose_json":
            segment = {
                "id": 0,
                "seek": 0,
                "start": 0.0,
                "end": seconds,
                "text": text,
                "tokens": [],
                "temperature": 0.0,
                "avg_logprob": -0.1,
                "compression_ratio": 1.0,
                "no_speech_prob": 0.0,
            }
            verbose = {
                "task": "transcribe",
                "language": "english",
                "duration": seconds,
                "text": text,
                "segments": [segment],
                "usage": {"type": "duration", "seconds": seconds},
            }
            return "application/json", msgspec.json.encode(verbose)
        case _:
            plain = {"text": text, "usage": {"type": "tokens", **usage}}
            return "application/json", msgspec.json.encode(plain)


def _clock(seconds: float) -> str:
    whole_s, ms = divmod(round(seconds * 1000), 1000)
    return f"{whole_s // 3600:02}:{whole_s // 60 % 60:02}:{whole_s % 60:02}.{ms:03}"


def _transcript_events(words: Sequence[str], offsets: Sequence[int], prompt_tokens: int) -> Plan:
    steps = []
    for i, (at_ns, word) in enumerate(zip(offsets, words, strict=True)):
        delta = word if i == 0 else " " + word
        steps.append(Step(at_ns, event({"type": "transcript.text.delta", "delta": delta}), Kind.TOKEN))
    usage = {"type": "tokens", **_usage(prompt_tokens, len(words))}
    done = event({"type": "transcript.text.done", "text": " ".join(words), "usage": usage})
    steps.append(Step(offsets[-1], done, Kind.FRAME))
    return Plan(200, _SSE, steps, Framing.SSE, completion_tokens=len(words))


def _usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}


_SSE = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
