"""Questions to a vision-language model behind an OpenAI-compatible server, such as vLLM, SGLang or a hosted one.

Owns requests, waiting, tries and the cache of answers. Knows no rubric: a caller brings messages and a parser. The key
stands in an environment variable, is read anew for each request and goes into its header only. Redirects are refused,
since a redirected request would take the key to another server.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import math
import os
import random
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from reward_forcing.config import Settings, unknown

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]]
"""A conversation as `/chat/completions` takes it."""

_TRANSIENT = (408, 409, 425, 429)
_OF_ONE_QUESTION = (400, 413, 415, 422)  # another question may still be answered
_NO_LIST_OF_MODELS = (404, 405, 501)
_MAX_REPLY_BYTES = 1 << 24


class VlmError(RuntimeError):
    """A question without a usable answer. answer: what the model said last, '' if nothing came."""

    def __init__(self, message: str, answer: str = "") -> None:
        super().__init__(message)
        self.answer = answer


class _RefusalError(ValueError):
    """The server takes no question in this form; `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Endpoint(Settings):
    """A server, a model and how both are asked.

    url: the base, for example http://localhost:8000/v1. api_key_env: the environment variable that holds the key; a
    variable that is not set sends none. extra: further fields of a request; null leaves a field of ours out (some
    models take `max_completion_tokens` for `max_tokens`). timeout_seconds: for one request, answer and all.

    A connection that fails, a status 408, 409, 425, 429 or 5xx and an answer that is not the protocol's are tried
    again `retries` times, after backoff_seconds * 2^n, of which a random part of up to one half is taken off, or after
    the server's Retry-After where that is longer; nothing waits longer than max_wait_seconds. An answer that cannot be
    parsed is asked for again `parse_retries` times, at retry_temperature and with the next seeds.

    cache: a folder for answers by the SHA-256 of their request, whatever the server. check_server: ask at load whether
    the server has the model; false lets a full cache be used without a server.
    """

    url: str
    model: str = Field(min_length=1)
    api_key_env: str = "OPENAI_API_KEY"
    temperature: NonNegativeFloat = 0.0
    retry_temperature: NonNegativeFloat = 0.3
    seed: int | None = 0
    max_tokens: PositiveInt = 256
    extra: dict[str, Any] = Field(default_factory=dict)
    timeout_seconds: PositiveFloat = 120.0
    retries: NonNegativeInt = 5
    backoff_seconds: PositiveFloat = 0.5
    max_wait_seconds: PositiveFloat = 60.0
    parse_retries: NonNegativeInt = 2
    max_parallel: PositiveInt = 8
    cache: Path | None = None
    check_server: bool = True

    @field_validator("url")
    @classmethod
    def _is_a_base_url(cls, url: str) -> str:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError for one that is no number
        if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in url):
            raise ValueError(f"expected a base url such as http://localhost:8000/v1, got '{url}'")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("the url may hold no user, query or fragment; the key belongs in the environment")
        if parts.path.rstrip("/").endswith(("/chat/completions", "/models")):
            raise ValueError(f"expected the base of the server's addresses, often up to /v1, got '{url}'")
        return url.rstrip("/")

    @field_validator("extra")
    @classmethod
    def _adds_fields(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name, value in extra.items():
            if name in ("model", "messages", "stream"):
                raise ValueError(f"extra cannot change '{name}'")
            if name in ("temperature", "seed", "max_tokens") and value is not None:
                raise ValueError(f"'{name}' is a setting of its own; extra can only leave it out, with null")
        return extra


@dataclass(frozen=True)
class Answer:
    """What a model said. finish_reason: 'length' where max_tokens cut it off. model: the server's name for it."""

    text: str
    finish_reason: str
    model: str


class VlmClient:
    """Sends questions to an endpoint, from any number of threads and at most `max_parallel` at a time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._slots = threading.BoundedSemaphore(endpoint.max_parallel)
        self._jitter = random.Random()  # its own, so that waiting never moves the draws of a training
        self._opener = build_opener(_NoRedirect)
        self._cache = None if endpoint.cache is None else endpoint.cache.expanduser()

    def check(self) -> None:
        """Ask the server for its models; a server that keeps no such list passes.

        Raises ValueError for a server that does not answer, that refuses the key, or that lacks the model.
        """
        try:
            models = self._send("/models", None, _read_models, threading.Event())
        except VlmError as error:
            raise ValueError(f"{error}; start the server, or set check_server to false to use only the cache") from None
        except _RefusalError as error:
            if error.status not in _NO_LIST_OF_MODELS:
                raise
            return
        if models and self.endpoint.model not in models:
            raise ValueError(f"{self.endpoint.url}: {unknown('model', self.endpoint.model, models)}")

    def body(self, messages: Messages, attempt: int = 0) -> bytes:
        """The request as JSON with sorted names; attempts after the first have their own temperature and seed."""
        asked = self.endpoint
        warmth = max(asked.temperature, asked.retry_temperature) if attempt else asked.temperature
        fields = {
            "model": asked.model,
            "messages": list(messages),
            "temperature": warmth,
            "seed": None if asked.seed is None else asked.seed + attempt,
            "max_tokens": asked.max_tokens,
        } | asked.extra
        said = {name: value for name, value in fields.items() if value is not None}
        return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()

    def answer(self, body: bytes, stop: threading.Event | None = None) -> Answer:
        """The answer to a request. stop: once set, no further try is made.

        Raises VlmError if none came after all tries or the server refuses this question, ValueError for what would
        stop every question: a refused key, an address that is not there, a redirect, a certificate.
        """
        return self._send("/chat/completions", body, _read_answer, stop or threading.Event())

    def recall(self, body: bytes) -> str | None:
        """The answer to a request that the cache holds, or None."""
        try:
            text = json.loads(self._place(body).read_text(encoding="utf-8"))["text"] if self._cache else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return text if isinstance(text, str) else None

    def remember(self, body: bytes, answer: Answer) -> None:
        """Keep an answer, whole or not at all. Raises OSError for a cache that cannot be written."""
        if self._cache is None:
            return
        place = self._place(body)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_text(json.dumps(vars(answer), ensure_ascii=False, indent=1), encoding="utf-8")
            os.replace(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)

    def _place(self, body: bytes) -> Path:
        assert self._cache is not None
        digest = hashlib.sha256(body).hexdigest()
        return self._cache / digest[:2] / f"{digest}.json"

    def _send(self, path: str, body: bytes | None, read: Callable[[bytes], T], stop: threading.Event) -> T:
        tries = self.endpoint.retries + 1
        for number in range(tries):
            with self._slots:
                if stop.is_set():
                    raise VlmError("stopped before an answer came")
                reply = self._exchange(path, body, read)
            if not isinstance(reply, _Failure):
                return reply
            if number + 1 == tries:
                raise VlmError(f"{self.endpoint.url} gave no answer in {tries} tries; the last: {reply.problem}")
            limit = self.endpoint.max_wait_seconds
            if reply.retry_after > limit:
                asked = f"asks to wait {reply.retry_after:g} s, longer than max_wait_seconds ({limit:g})"
                raise VlmError(f"{self.endpoint.url} {asked}: {reply.problem}")
            backoff = min(limit, self.endpoint.backoff_seconds * 2.0 ** min(number, 60))
            stop.wait(max(reply.retry_after, backoff * self._jitter.uniform(0.5, 1.0)))
        raise AssertionError(f"{tries} tries")

    def _exchange(self, path: str, body: bytes | None, read: Callable[[bytes], T]) -> T | _Failure:
        """What `read` makes of the reply to one request, or a failure after which another try makes sense."""
        deadline = time.monotonic() + self.endpoint.timeout_seconds
        request = Request(self.endpoint.url + path, data=body, headers=self._headers())
        try:
            with self._opener.open(request, timeout=self.endpoint.timeout_seconds) as response:
                reply = _read_all(response, deadline)
        except HTTPError as error:
            with error:
                return self._failure(error)
        except URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise ValueError(f"{self.endpoint.url}: {error.reason}") from None
            return _Failure(f"{error.reason}")
        except TimeoutError:
            return _Failure(f"no answer within {self.endpoint.timeout_seconds:g} s")
        except (OSError, HTTPException) as error:
            return _Failure(repr(error))
        try:
            return read(reply)
        except (ValueError, LookupError, TypeError, RecursionError):
            said = self._without_key(reply.decode("utf-8", "replace"))
            return _Failure(f"a reply that is not the protocol's: '{shortened(said)}'")

    def _failure(self, error: HTTPError) -> _Failure:
        status, url = error.code, self.endpoint.url
        try:
            said = error.read(4096).decode("utf-8", "replace")
        except (OSError, HTTPException):
            said = ""
        problem = f"status {status}: {shortened(self._without_key(said) or str(error.reason))}"
        if status in _TRANSIENT or status >= 500:
            return _Failure(problem, _seconds(error.headers.get("Retry-After")))
        if status in _OF_ONE_QUESTION:
            raise VlmError(f"{url} refuses the question, {problem}")
        if status in (401, 403):
            name = self.endpoint.api_key_env or "the variable that api_key_env names"
            raise _RefusalError(f"{url} refuses the key; put a valid one into {name}, {problem}", status)
        if status < 400:
            raise _RefusalError(
                f"{url} redirects; set url to the place itself: {error.headers.get('Location')}", status
            )
        raise _RefusalError(
            f"{url} has no {urlsplit(error.url).path}; url ends in /v1 for most servers, {problem}", status
        )

    def _key(self) -> str:
        return os.environ.get(self.endpoint.api_key_env, "").strip() if self.endpoint.api_key_env else ""

    def _without_key(self, text: str) -> str:
        key = self._key()
        return text.replace(key, "***") if key else text

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "reward-forcing"}
        key = self._key()
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"the key in {self.endpoint.api_key_env} holds characters that no header can; set it anew")
        return headers | ({"Authorization": f"Bearer {key}"} if key else {})


def ask(client: VlmClient, messages: Messages, parse: Callable[[str], T], stop: threading.Event | None = None) -> T:
    """What `parse` makes of the model's answer, from the cache where an answer to the same request is known.

    parse: raises ValueError for an answer that it cannot read. Only answers that it could read are cached, each under
    the request that brought it. Raises VlmError as `VlmClient.answer` does, and with the model's last answer when
    none of 1 + parse_retries could be read; ValueError for what would stop every question.
    """
    bodies = [client.body(messages, attempt) for attempt in range(client.endpoint.parse_retries + 1)]
    for body in bodies:
        known = client.recall(body)
        if known is not None:
            try:
                return parse(known)
            except ValueError:
                continue
    problem, answer = "", None
    for body in bodies:
        answer = client.answer(body, stop)
        try:
            value = parse(answer.text)
        except ValueError as error:
            problem = str(error)
            continue
        client.remember(body, answer)
        return value
    assert answer is not None, bodies
    cut = ", cut off at max_tokens" if answer.finish_reason == "length" else ""
    raise VlmError(
        f"{client.endpoint.model} gave no usable answer in {len(bodies)} tries: {problem}; the last was "
        f"'{shortened(answer.text)}'{cut}",
        answer.text,
    )


def ask_all(
    client: VlmClient, conversations: Sequence[Messages], parse: Callable[[str], T], give_up: int
) -> list[T | VlmError]:
    """`ask` for each conversation, in their order and `max_parallel` at a time; a failed one gives its error.

    give_up: so many failures in a row, in the order in which they end, stop the rest. Raises VlmError then, and
    ValueError as `ask` does; both once no request is under way.
    """
    stop, lock = threading.Event(), threading.Lock()
    in_a_row, final = 0, None

    def outcome(messages: Messages) -> T | VlmError:
        nonlocal in_a_row, final
        try:
            found = ask(client, messages, parse, stop)
        except VlmError as error:
            found = error
        except BaseException:
            stop.set()
            raise
        with lock:  # here and not where results are gathered, so that a worker begins no question after the last
            in_a_row = in_a_row + 1 if isinstance(found, VlmError) else 0
            if in_a_row >= give_up and not stop.is_set():
                final = found
                stop.set()
        return found

    with ThreadPoolExecutor(client.endpoint.max_parallel) as pool:
        try:
            outcomes = list(pool.map(outcome, conversations))
        finally:
            stop.set()
    if isinstance(final, VlmError):
        raise VlmError(f"gave up after {give_up} questions in a row failed; the last: {final}", final.answer)
    return outcomes


def shortened(text: str, length: int = 200) -> str:
    """The text in one line, its end cut off beyond `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


@dataclass(frozen=True)
class _Failure:
    """Why a request brought nothing, and how many seconds the server asks to wait."""

    problem: str
    retry_after: float = 0.0


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        return None


def _read_all(response: HTTPResponse, deadline: float) -> bytes:
    """The body; unlike `response.read`, slow pieces cannot stretch it beyond the deadline."""
    pieces, size = [], 0
    while piece := response.read1(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > _MAX_REPLY_BYTES:
            raise HTTPException(f"an answer of more than {_MAX_REPLY_BYTES} bytes")
    promised = response.headers.get("Content-Length")
    if promised is not None and promised.isdigit() and size < int(promised):
        raise IncompleteRead(b"".join(pieces), int(promised) - size)
    return b"".join(pieces)


def _read_models(reply: bytes) -> list[str]:
    """The names in a list of models; none where the reply is no such list."""
    try:
        return [str(entry["id"]) for entry in json.loads(reply)["data"]]
    except (ValueError, LookupError, TypeError):
        return []


def _read_answer(reply: bytes) -> Answer:
    values = json.loads(reply)
    choice = values["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str | None):
        raise TypeError("content must be text")
    return Answer(text or "", str(choice.get("finish_reason")), str(values.get("model")))


def _seconds(retry_after: str | None) -> float:
    """The seconds of a Retry-After header (RFC 9110, 10.2.3: a number or a date); 0 for none or an unreadable one."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
