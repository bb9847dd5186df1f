"""Requests: what is asked, and how it is to be answered."""

from __future__ import annotations

import ctypes
import json
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, Union

from graftwork import _abi
from graftwork._library import invalid, real, unsigned, utf8

if TYPE_CHECKING:
    from graftwork.adapter import Adapter

F32_MAX = 3.4028234663852886e38


class Message(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str


MessageLike = Union[Message, "tuple[str, str]", "Mapping[str, str]"]
AdapterLike = Union[str, "Adapter"]
# An adapter, several, or each with a weight.
AdaptersLike = Union[
    AdapterLike,
    "tuple[AdapterLike, float]",
    "Mapping[str, float]",
    "Sequence[Union[AdapterLike, tuple[AdapterLike, float]]]",
]


ContextLike = Union[Literal["stop", "shift"], int]


@dataclass
class Request:
    """One request. Exactly one of text, tokens, messages and chat_json must be given; fields are those of gw_request."""

    text: str | None = None
    """A text to go on with. Special tokens are recognised in it, as completion APIs do."""
    tokens: Iterable[int] | None = None
    messages: Sequence[MessageLike] | None = None
    """A conversation to be answered: {"role": ..., "content": ...} or (role, content), each."""
    chat_json: str | Mapping[str, Any] | None = None
    """The same with all that a chat template may know: messages, tools, documents; as JSON or as a dict."""

    adapters: AdaptersLike = ()
    """That answer it, in order: "name", ("name", weight) or {"name": weight}; none: the base model."""
    stops: str | Sequence[str] = ()
    """Texts that end the answer; they are not part of it."""
    stop_tokens: Iterable[int] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Numbers that are added to tokens' logits; -inf bans a token."""

    max_tokens: int = 0
    """Most tokens of the answer. 0: as many as the context and the KV cache hold."""
    seed: int = 0
    temperature: float = 0.0
    """0: the likeliest token. 1: the model's distribution."""
    top_k: int = 0
    top_p: float = 0.0
    min_p: float = 0.0
    repetition_penalty: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 0
    """How many of the last tokens count as repeated. 0: 64. 0xFFFFFFFF: all."""
    top_logprobs: int = 0
    """How many of the likeliest tokens `logprobs` reports."""
    context: ContextLike = 0
    """What happens when the context is full: "stop" (GW_CONTEXT_STOP), or "shift" (GW_CONTEXT_SHIFT): the older half goes."""
    keep: int = 0
    """With "shift": how many of the prompt's tokens always stay."""
    grammar: str | None = None
    """UnsupportedError in this version."""

    ignore_eos: bool = False
    """Go on after the model's own end-of-answer tokens."""
    logprobs: bool = False
    """Report the log-probability of each token."""
    logits: bool = False
    """Report the logits that each token was chosen from."""


class RequestOptions(TypedDict, total=False):
    """The fields of Request but its prompt, as keyword arguments."""

    adapters: AdaptersLike
    stops: str | Sequence[str]
    stop_tokens: Iterable[int]
    logit_bias: Mapping[int, float]
    max_tokens: int
    seed: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_last_n: int
    top_logprobs: int
    context: ContextLike
    keep: int
    grammar: str | None
    ignore_eos: bool
    logprobs: bool
    logits: bool


Prompt = Union[Request, str, "Iterable[int]", "Sequence[MessageLike]", "Mapping[str, Any]"]

_OPTIONS = frozenset(RequestOptions.__annotations__)


def to_request(prompt: Prompt, options: Mapping[str, Any]) -> Request:
    """The request of a prompt, by its type: text, tokens, messages, or a dict for chat_json."""
    unknown = options.keys() - _OPTIONS
    if unknown:
        raise TypeError(f"request: no such option: {', '.join(sorted(unknown))}")
    if isinstance(prompt, Request):
        return replace(prompt, **options) if options else prompt
    if isinstance(prompt, str):
        return Request(text=prompt, **options)
    if isinstance(prompt, Mapping):
        return Request(chat_json=prompt, **options)
    if isinstance(prompt, (bytes, bytearray)) or not isinstance(prompt, Iterable):
        raise TypeError(f"prompt: expected text, tokens, messages or a dict, found {type(prompt).__name__}")
    given: list[Any] = list(prompt)
    if given and isinstance(given[0], (tuple, Mapping)):
        return Request(messages=given, **options)
    return Request(tokens=given, **options)


class Packed:
    """A gw_request, and all that it points to."""

    __slots__ = ("raw", "_kept")

    def __init__(self, request: Request) -> None:
        self._kept: list[Any] = []
        self.raw = raw = _abi.gw_request(ctypes.sizeof(_abi.gw_request))
        self._prompt(request)
        raw.flags = (
            (_abi.GW_REQUEST_IGNORE_EOS if request.ignore_eos else 0)
            | (_abi.GW_REQUEST_LOGPROBS if request.logprobs else 0)
            | (_abi.GW_REQUEST_LOGITS if request.logits else 0)
        )
        if request.adapters or request.adapters == "":
            raw.adapters, raw.adapter_count = self._array(uses(request.adapters))
        if request.stops or request.stops == "":
            stops: Iterable[Any] = [request.stops] if isinstance(request.stops, str) else request.stops
            if not isinstance(stops, Iterable):
                raise TypeError(f"stops: expected texts, found {type(stops).__name__}")
            texts = [utf8("stops", stop) for stop in stops]
            raw.stops, raw.stop_count = self._array([_abi.gw_text(text, len(text)) for text in texts])
        raw.stop_tokens, raw.stop_token_count = self._tokens("stop_tokens", request.stop_tokens)
        if request.logit_bias:
            if not isinstance(request.logit_bias, Mapping):
                raise TypeError(f"logit_bias: expected a dict, found {type(request.logit_bias).__name__}")
            biases = [
                _abi.gw_logit_bias(unsigned("logit_bias", token), f32("logit_bias", bias))
                for token, bias in request.logit_bias.items()
            ]
            raw.logit_bias, raw.logit_bias_count = self._array(biases)
        for name, bits in _INTEGERS:
            value = getattr(request, name)
            if value:
                setattr(raw, name, unsigned(name, value, bits))
        raw.context = context(request.context)
        for name in _FLOATS:
            value = getattr(request, name)
            if value:
                setattr(raw, name, f32(name, value))
        if request.grammar is not None:
            raw.grammar, raw.grammar_size = self._text("grammar", request.grammar)

    def _prompt(self, request: Request) -> None:
        raw = self.raw
        if request.text is not None:
            raw.text, raw.text_size = self._text("text", request.text)
        if request.tokens is not None:
            raw.tokens, raw.token_count = self._tokens("tokens", request.tokens)
        if request.messages is not None:
            messages = [message(given) for given in request.messages]
            raw.messages, raw.message_count = self._array(messages or [_abi.gw_message()])
            raw.message_count = len(messages)
        if request.chat_json is not None:
            chat = request.chat_json if isinstance(request.chat_json, str) else json.dumps(request.chat_json)
            raw.chat_json, raw.chat_json_size = self._text("chat_json", chat)

    def _text(self, name: str, value: str) -> tuple[bytes, int]:
        text = utf8(name, value)
        return text, len(text)

    def _array(self, elements: Sequence[Any]) -> tuple[Any, int]:
        made = (type(elements[0]) * len(elements))(*elements) if elements else None
        self._kept += [made, elements]
        return made, len(elements)

    def _tokens(self, name: str, tokens: Iterable[int]) -> tuple[Any, int]:
        made, count = tokens_for_c(name, tokens)
        self._kept.append(made)
        return made, count


_CONTEXTS = {"stop": _abi.GW_CONTEXT_STOP, "shift": _abi.GW_CONTEXT_SHIFT}
_INTEGERS = (
    ("max_tokens", 64),
    ("seed", 64),
    ("top_k", 32),
    ("penalty_last_n", 32),
    ("top_logprobs", 32),
    ("keep", 64),
)
_FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def context(given: object) -> int:
    """What happens when the context is full, for C."""
    if not isinstance(given, str):
        return unsigned("context", given)
    if given not in _CONTEXTS:
        raise invalid("context", '"stop" or "shift"', repr(given))
    return _CONTEXTS[given]


def f32(name: str, value: object) -> float:
    """A number that C takes in f32; one that is too large for that becomes infinite, which C refuses where it must."""
    number = real(name, value)
    return math.copysign(math.inf, number) if abs(number) > F32_MAX else number


def tokens_for_c(name: str, tokens: Iterable[int]) -> tuple[Any, int]:
    """An array of tokens, which is not NULL if it is empty, and their number."""
    if isinstance(tokens, (str, bytes, bytearray)):
        raise TypeError(f"{name}: expected integers, found {type(tokens).__name__}")
    try:
        given = tokens if isinstance(tokens, (list, tuple)) else list(tokens)
        numbers = array("I", given)
    except (TypeError, OverflowError):
        numbers = array("I", [unsigned(name, token) for token in tokens])
    count = len(numbers)
    if not count:
        return (ctypes.c_uint32 * 1)(), 0
    return (ctypes.c_uint32 * count).from_buffer(numbers), count


def message(given: MessageLike) -> _abi.gw_message:
    """A message for C."""
    if isinstance(given, Mapping):
        unknown = given.keys() - {"role", "content"}
        if unknown or len(given) != 2:
            raise TypeError(
                f"messages: expected role and content, found {', '.join(map(str, given)) or 'nothing'}; "
                "chat_json takes what else a chat template knows"
            )
        role, content = given["role"], given["content"]
    elif isinstance(given, tuple) and len(given) == 2:
        role, content = given
    else:
        raise TypeError(f"messages: expected role and content, found {given!r:.80}")
    role_text, content_text = utf8("messages.role", role), utf8("messages.content", content)
    return _abi.gw_message(role_text, len(role_text), content_text, len(content_text))


def uses(adapters: AdaptersLike) -> list[_abi.gw_use]:
    """The adapters of a request for C."""
    from graftwork.adapter import Adapter

    if isinstance(adapters, (str, Adapter)):
        adapters = [adapters]
    elif isinstance(adapters, Mapping):
        adapters = list(adapters.items())
    elif isinstance(adapters, tuple) and len(adapters) == 2 and isinstance(adapters[1], (int, float)):
        adapters = [adapters]  # One and its weight.
    elif isinstance(adapters, (bytes, bytearray)) or not isinstance(adapters, Iterable):
        raise TypeError(f"adapters: expected names, found {type(adapters).__name__}")
    made = []
    for given in adapters:
        used, weight = given if isinstance(given, tuple) and len(given) == 2 else (given, 1.0)
        name = utf8("adapters.name", used.name if isinstance(used, Adapter) else used)
        made.append(_abi.gw_use(name, len(name), f32("adapters.weight", weight), 0))
    return made


# What to_request() takes is what there is.
assert _OPTIONS == {f.name for f in fields(Request)} - {"text", "tokens", "messages", "chat_json"}
