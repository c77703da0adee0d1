"""The reward of a vision-language model, against a server that can misbehave in every way a real one does."""

import base64
import email.utils
import io
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from reward_forcing.config import describe
from reward_forcing.rewards.base import rate
from reward_forcing.rewards.vlm import QUESTIONS, VlmReward, evenly_spread, parse_score, rating_messages
from reward_forcing.rewards.vlm_client import Endpoint, VlmClient, VlmError, ask, ask_all, shortened

CPU = torch.device("cpu")
KEY = "sk-a-key-that-must-stay-secret"
HELLO = [{"role": "user", "content": "hello"}]
GOOD = b'{"choices": [{"message": {"content": "Score: 1"}}]}'


class Handler(BaseHTTPRequestHandler):
    server: "Stub"  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.server.models(self)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), json.loads(body)))
            act = self.server.script.pop(0) if self.server.script else self.server.default
        act(self)

    def reply(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


Act = Callable[[Handler], None]


def says(text: str | None, finish_reason: str = "stop") -> Act:
    choice = {"message": {"content": text}, "finish_reason": finish_reason}
    return raw(json.dumps({"model": "served", "choices": [choice]}).encode())


def raw(body: bytes, status: int = 200, length: int | None = None, **headers: str) -> Act:
    return lambda handler: handler.reply(status, body, length, **headers)


def hangs(handler: Handler) -> None:
    handler.server.released.wait()


def trickles(handler: Handler) -> None:
    """Sends a good answer, no pause longer than 0.02 s, over more than 0.6 s."""
    handler.reply(200, b"", length=30 + len(GOOD))
    for _ in range(30):
        handler.server.released.wait(0.02)
        handler.wfile.write(b" ")
    handler.wfile.write(GOOD)


def hangs_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def score(value: float) -> Act:
    return says(json.dumps({"score": value}))


class Stub(ThreadingHTTPServer):
    """Answers with the acts of `script` in turn, then with `default`, and remembers what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Act] = []
        self.default = score(3)
        self.models = raw(b'{"data": [{"id": "judge-7b"}]}')
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.lock, self.released = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, _, body in self.requests]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    stub = Stub()
    threading.Thread(target=stub.serve_forever, args=(0.01,), daemon=True).start()
    yield stub
    stub.released.set()
    stub.shutdown()
    stub.server_close()


def reward(server: Stub, **changes: Any) -> VlmReward:
    values = {"url": server.url, "model": "judge-7b", "backoff_seconds": 0.001, "retries": 3}
    return VlmReward.model_validate(values | changes)


def client(server: Stub, **changes: Any) -> VlmClient:
    return VlmClient(reward(server, **changes))


def clips(count: int, frames: int = 5, size: tuple[int, int] = (16, 24)) -> Tensor:
    """Clips whose frames are of one grey each: frame t of clip i is (10 i + t) / 255."""
    greys = 10.0 * torch.arange(count)[:, None] + torch.arange(frames)
    return (greys / 255)[:, :, None, None, None].expand(count, frames, 3, *size).contiguous()


def score_of(settings: VlmReward, video: Tensor | None = None, prompt: str = "a red ball rolls") -> float:
    video = clips(1) if video is None else video
    return float(rate(settings, settings.load(CPU), video, [prompt], 16.0)[0])


def pictures(body: dict[str, Any]) -> list[Image.Image]:
    parts = body["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


def text_of(body: dict[str, Any]) -> str:
    return "".join(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text")


def test_scores_stand_in_the_order_of_the_clips_and_are_normalised(server: Stub) -> None:
    def answer(handler: Handler) -> None:
        score(pictures(handler.server.bodies[-1])[0].getpixel((0, 0))[0] / 10)(handler)  # type: ignore[index]

    server.default = answer
    settings = reward(server, scale=[0, 10], image_format="png", max_parallel=1, mean=1, std=2)
    found = rate(settings, settings.load(CPU), clips(4), ["p"] * 4, 16.0)
    assert found.tolist() == [-0.5, 0.0, 0.5, 1.0]


def test_the_request_holds_the_model_the_pictures_in_order_and_the_prompt(server: Stub) -> None:
    prompt = 'a "red" ball\nrolls, été'
    assert score_of(reward(server, frames=4, image_format="png", seed=7), clips(1, frames=10), prompt) == 3
    [(path, headers, body)] = server.requests
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"], body["seed"], body["max_tokens"]) == ("judge-7b", 0, 7, 256)
    assert [picture.getpixel((0, 0)) for picture in pictures(body)] == [(t, t, t) for t in (0, 3, 6, 9)]
    assert json.dumps(prompt, ensure_ascii=False) in text_of(body)
    assert "0.00, 0.19, 0.38, 0.56 seconds" in text_of(body)
    assert QUESTIONS["motion"].asks in text_of(body)
    assert "Authorization" not in headers


def test_pictures_are_jpeg_and_no_larger_than_asked(server: Stub) -> None:
    score_of(reward(server, max_side=32), clips(1, 3, size=(40, 80)))
    sent = pictures(server.bodies[0])
    assert [(picture.format, picture.size) for picture in sent] == [("JPEG", (32, 16))] * 3


def test_a_question_of_ones_own_and_its_scale_are_asked(server: Stub) -> None:
    server.default = score(0.5)
    assert score_of(reward(server, question="How much does it rain?", scale=[0, 1])) == 0.5
    assert "How much does it rain?" in text_of(server.bodies[0])
    assert "from 0 (worst) to 1 (best)" in text_of(server.bodies[0])


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_built_in_question_names_the_ends_and_the_middle_of_the_scale(name: str) -> None:
    settings = VlmReward(url="http://h/v1", model="m", question=name, scale=(0, 10))
    text = text_of({"messages": rating_messages(settings, clips(1)[0], "p", 16.0)})
    asked = QUESTIONS[name]
    assert f"0: {asked.low}\n5: {asked.middle}\n10: {asked.high}" in text


@pytest.mark.parametrize(("length", "count", "expected"), [
    (10, 4, [0, 3, 6, 9]), (3, 8, [0, 1, 2]), (9, 1, [4]), (81, 2, [0, 80]), (5, 5, [0, 1, 2, 3, 4]),
])  # fmt: skip
def test_frames_are_spread_from_the_first_to_the_last(length: int, count: int, expected: list[int]) -> None:
    assert evenly_spread(length, count) == expected


@pytest.mark.parametrize("clip", [(torch.zeros(0, 3, 4, 4), 16.0), (torch.zeros(2, 3, 4, 4), 0.0)])
def test_a_clip_without_frames_or_time_is_refused(clip: tuple[Tensor, float]) -> None:
    settings = VlmReward(url="http://h/v1", model="m")
    with pytest.raises(ValueError, match="at least one frame and a positive rate"):
        rating_messages(settings, clip[0], "p", clip[1])


@pytest.mark.parametrize(("answer", "expected"), [
    ('{"score": 4}', 4.0),
    (' {"why": "smooth", "score": 3.5}\n', 3.5),
    ('```json\n{"score": 2}\n```', 2.0),
    ("The motion is smooth.\nScore: 4", 4.0),
    ("Fluid.\n\n**Score:** 4.25 \n", 4.25),
    ('<think>{"score": 1}? no</think>\n{"score": 5}', 5.0),
])  # fmt: skip
def test_a_score_is_read(answer: str, expected: float) -> None:
    assert parse_score(answer, 1, 5) == expected


@pytest.mark.parametrize("answer", [
    "", "4", "I would say 4 out of 5.", "Score: 4\nsince it is smooth", "Score: 4/5", "Score: four", '{"score": 4',
    '{"score": "4"}', '{"score": true}', '{"score": null}', '{"score": NaN}', '{"rating": 4}', "[4]",
    '{"score": 1, "score": 5}', 'Here it is: {"score": 4}', "[" * 100_000,
    '{"score": 6}', '{"score": 0.99}', "Score: -1", '{"score": 1' + "0" * 400 + "}",
])  # fmt: skip
def test_anything_else_is_no_score(answer: str) -> None:
    with pytest.raises(ValueError, match=r"expected|outside"):
        parse_score(answer, 1, 5)


FAULTS: dict[str, Act] = {
    "500": raw(b"overloaded", 500),
    "408": raw(b"", 408),
    "409": raw(b"", 409),
    "429 with seconds": raw(b"slow down", 429, Retry_After="0.01"),
    "429 with nonsense": raw(b"slow down", 429, Retry_After="soon"),
    "429 with a date gone by": raw(b"", 429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "no JSON": raw(b"<html>maintenance</html>"),
    "half a JSON": raw(b'{"choices": [{"mess'),
    "no choices": raw(b'{"error": {"message": "busy"}}'),
    "content in parts": raw(b'{"choices": [{"message": {"content": [{"type": "text"}]}}]}'),
    "closes halfway": raw(b'{"choices": [', length=1000),
    "closes before its length": raw(GOOD, length=1000),
    "closes at once": hangs_up,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_tried_again(server: Stub, fault: str) -> None:
    server.script = [FAULTS[fault], FAULTS[fault], score(4)]
    assert score_of(reward(server)) == 4
    assert len(server.requests) == 3
    assert server.bodies[0] == server.bodies[2]


@pytest.mark.parametrize("act", [hangs, trickles])
def test_an_answer_beyond_the_timeout_is_tried_again(server: Stub, act: Act) -> None:
    server.script = [act, score(4)]
    assert ask(client(server, timeout_seconds=0.2, retries=30), HELLO, lambda text: parse_score(text, 1, 5)) == 4
    assert len(server.requests) >= 2


def test_a_fault_that_stays_is_an_error_after_all_tries(server: Stub) -> None:
    server.default = raw(b"overloaded", 503)
    with pytest.raises(VlmError, match="gave no answer in 4 tries; the last: status 503: overloaded"):
        score_of(reward(server))
    assert len(server.requests) == 4


class Clock(threading.Event):
    """Notes how many seconds it was asked to wait, and does not."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return self.is_set()


def test_the_server_is_left_alone_for_as_long_as_it_asks(server: Stub) -> None:
    asker = client(server)
    date = email.utils.formatdate(time.time() + 40, usegmt=True)
    server.script = [raw(b"", 429, Retry_After="17"), raw(b"", 503, Retry_After=date), score(4)]
    clock = Clock()
    assert asker.answer(asker.body(HELLO), clock).text == '{"score": 4}'
    assert clock.waits[0] == 17
    assert 20 < clock.waits[1] <= 40


def test_a_wait_beyond_the_limit_is_an_error(server: Stub) -> None:
    server.default = raw(b"", 429, Retry_After="3600")
    with pytest.raises(VlmError, match=r"asks to wait 3600 s, longer than max_wait_seconds \(60\)"):
        score_of(reward(server))
    assert len(server.requests) == 1


def test_waits_double_up_to_the_limit_less_a_random_part(server: Stub) -> None:
    server.default = raw(b"", 500)
    asker = client(server, retries=6, backoff_seconds=1, max_wait_seconds=10)
    state, clock = random.getstate(), Clock()
    with pytest.raises(VlmError):
        asker.answer(asker.body(HELLO), clock)
    waits, whole = clock.waits, [1, 2, 4, 8, 10, 10]
    assert len(waits) == len(whole)
    assert all(full / 2 <= wait <= full for wait, full in zip(waits, whole, strict=True))
    assert len({wait / full for wait, full in zip(waits, whole, strict=True)}) == len(whole)
    assert random.getstate() == state, "waiting moved the draws of others"


@pytest.mark.parametrize(("status", "message"), [
    (401, "refuses the key; put a valid one into OPENAI_API_KEY, status 401"),
    (403, "refuses the key"),
    (404, "has no /v1/chat/completions; url ends in /v1"),
    (307, "redirects; set url to the place itself: http://elsewhere"),
])  # fmt: skip
def test_what_would_stop_every_question_stops_at_once(server: Stub, status: int, message: str) -> None:
    server.default = raw(b"no", status, Location="http://elsewhere.invalid/v1")
    settings = reward(server, max_parallel=1)
    with pytest.raises(ValueError, match=message):
        rate(settings, settings.load(CPU), clips(5), ["p"] * 5, 16.0)
    assert len(server.requests) == 1


def test_a_redirect_never_takes_the_key_elsewhere(server: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    other = Stub()
    asked: list[str] = []
    other.models = lambda handler: asked.append(handler.path)
    threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
    server.default = raw(b"", 302, Location=other.url)
    asker = client(server)
    with pytest.raises(ValueError, match="redirects"):
        asker.answer(asker.body(HELLO))
    other.shutdown()
    other.server_close()
    assert (asked, other.requests) == ([], [])


def test_a_refused_question_leaves_the_others_be(server: Stub) -> None:
    server.script = [raw(b'{"error": "too many images"}', 400)]
    settings = reward(server, max_parallel=1)
    with pytest.raises(
        VlmError, match=r"1 of 3 clips have no score; clip 0: .*refuses the question, .*too many images"
    ):
        rate(settings, settings.load(CPU), clips(3), ["p"] * 3, 16.0)
    assert len(server.requests) == 3


def test_an_unusable_answer_is_asked_for_anew_with_some_warmth(server: Stub) -> None:
    server.script = [says("It is quite good."), score(9), score(2)]
    assert score_of(reward(server, retry_temperature=0.4)) == 2
    assert [(body["temperature"], body["seed"]) for body in server.bodies] == [(0, 0), (0.4, 1), (0.4, 2)]


@pytest.mark.parametrize(("act", "problem"), [
    (says("I would say 4 out of 5, " + "really " * 100), "expected .*it|I would say 4 out of 5, really .*\\.\\.\\.'"),
    (score(6), "a score outside 1 to 5; the last was '{\"score\": 6}'"),
    (says("The motion is", "length"), "'The motion is', cut off at max_tokens"),
    (says(None, "length"), "'', cut off at max_tokens"),
])  # fmt: skip
def test_no_usable_answer_is_an_error_that_shows_it(server: Stub, act: Act, problem: str) -> None:
    server.default = act
    with pytest.raises(VlmError, match=f"judge-7b gave no usable answer in 2 tries: .*{problem}") as caught:
        score_of(reward(server, parse_retries=1))
    assert len(str(caught.value)) < 500
    assert len(server.requests) == 2


def test_the_error_holds_the_whole_answer_for_a_record(server: Stub) -> None:
    server.default = says("no " * 500)
    with pytest.raises(VlmError) as caught:
        ask(client(server, parse_retries=0), HELLO, int)
    assert caught.value.answer == "no " * 500


def test_any_parser_can_be_brought(server: Stub) -> None:
    server.default = says("41")
    assert ask(client(server), HELLO, int) == 41
    assert server.bodies[0]["messages"] == HELLO


def test_known_answers_are_not_asked_for_again(server: Stub, tmp_path: Path) -> None:
    settings = reward(server, cache=tmp_path / "answers")
    assert score_of(settings) == 3
    server.default = score(5)
    assert score_of(settings) == 3
    assert len(server.requests) == 1


@pytest.mark.parametrize("other", [
    {"model": "judge-8b"}, {"seed": 1}, {"temperature": 0.1}, {"max_tokens": 99}, {"frames": 2}, {"question": "text"},
    {"scale": [0, 5]}, {"max_side": 16}, {"image_format": "png"}, {"extra": {"top_p": 0.5}},
])  # fmt: skip
def test_another_question_is_asked_for(server: Stub, tmp_path: Path, other: dict[str, Any]) -> None:
    score_of(reward(server, cache=tmp_path))
    server.default = score(5)
    assert score_of(reward(server, cache=tmp_path, check_server=False, **other)) == 5
    assert len(server.requests) == 2


def test_other_frames_another_prompt_or_rate_are_asked_for(server: Stub, tmp_path: Path) -> None:
    settings = reward(server, cache=tmp_path)
    rater = settings.load(CPU)
    for video, prompt, fps in [(clips(1), "a", 16.0), (clips(2)[1:], "a", 16.0), (clips(1), "b", 16.0),
                               (clips(1), "a", 8.0), (clips(1), "a", 16.0)]:  # fmt: skip
        rate(settings, rater, video, [prompt], fps)
    assert len(server.requests) == 4


def test_the_cache_is_of_no_server_and_needs_none(server: Stub, tmp_path: Path) -> None:
    score_of(reward(server, cache=tmp_path))
    assert (
        score_of(reward(server, url="http://127.0.0.1:9/v1", cache=tmp_path, check_server=False, timeout_seconds=1))
        == 3
    )


def test_only_usable_answers_are_kept_under_the_request_that_brought_them(server: Stub, tmp_path: Path) -> None:
    server.script = [says("hm"), score(2)]
    settings = reward(server, cache=tmp_path)
    assert score_of(settings) == 2
    assert score_of(settings) == 2
    assert len(server.requests) == 2
    [kept] = tmp_path.rglob("*.json")
    assert json.loads(kept.read_text()) == {"text": '{"score": 2}', "finish_reason": "stop", "model": "served"}
    [asker] = [VlmClient(settings)]
    assert asker.recall(asker.body(server.bodies[0]["messages"], attempt=1)) == '{"score": 2}'
    assert asker.recall(asker.body(server.bodies[0]["messages"])) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"text": 3}', "{}"])
def test_a_damaged_entry_is_asked_for_and_replaced(server: Stub, tmp_path: Path, damage: str) -> None:
    settings = reward(server, cache=tmp_path)
    score_of(settings)
    [kept] = tmp_path.rglob("*.json")
    kept.write_text(damage)
    assert (score_of(settings), score_of(settings)) == (3, 3)
    assert len(server.requests) == 2


def test_an_entry_that_cannot_be_written_whole_leaves_nothing(
    server: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(source: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("reward_forcing.rewards.vlm_client.os.replace", fails)
    with pytest.raises(OSError, match="disk full"):
        score_of(reward(server, cache=tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "MY_KEY"])
def test_the_key_is_in_the_header_and_nowhere_else(
    server: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, f" {KEY}\n")
    settings = reward(server, api_key_env=variable, cache=tmp_path)
    rater = settings.load(CPU)
    rate(settings, rater, clips(1), ["p"], 16.0)
    [(path, headers, body)] = server.requests
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in path + json.dumps(body)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 1
    assert KEY not in files[0].read_text() + files[0].name
    assert KEY not in settings.model_dump_json() + repr(settings) + repr(vars(rater)) + repr(vars(VlmClient(settings)))


@pytest.mark.parametrize("status", [200, 400, 401, 404, 503])
def test_a_server_that_repeats_the_key_does_not_bring_it_into_a_message(
    server: Stub, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.default = raw(f"wrong key {KEY}".encode(), status)
    with pytest.raises((VlmError, ValueError), match=r"wrong key \*\*\*") as caught:
        score_of(reward(server, retries=0))
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-two\r\nlines", "sk-été"])
def test_a_key_that_no_header_can_hold_is_not_shown(server: Stub, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match="the key in OPENAI_API_KEY holds characters") as caught:
        score_of(reward(server))
    assert key not in str(caught.value)
    assert server.requests == []


def test_as_many_requests_as_allowed_are_under_way_and_no_more(server: Stub) -> None:
    together, now, peak = threading.Barrier(3), 0, 0

    def meets(handler: Handler) -> None:
        nonlocal now, peak
        with server.lock:
            now += 1
            peak = max(peak, now)
        together.wait(5)  # breaks, and the test with it, unless three are under way at once
        with server.lock:
            now -= 1
        score(4)(handler)

    server.default = meets
    settings = reward(server, max_parallel=3, retries=0)
    assert rate(settings, settings.load(CPU), clips(9), ["p"] * 9, 16.0).tolist() == [4] * 9
    assert peak == 3


def test_the_bound_holds_for_all_threads_that_share_a_client(server: Stub) -> None:
    now, peak = 0, 0

    def counts(handler: Handler) -> None:
        nonlocal now, peak
        with server.lock:
            now += 1
            peak = max(peak, now)
        server.released.wait(0.02)
        with server.lock:
            now -= 1
        score(4)(handler)

    server.default = counts
    asker = client(server, max_parallel=2)
    threads = [threading.Thread(target=ask_all, args=(asker, [HELLO] * 3, str, 1)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 9
    assert peak == 2


def test_failures_in_a_row_stop_the_rest(server: Stub) -> None:
    server.script = [score(3), says("no"), score(3), says("no"), says("no")]
    settings = reward(server, max_parallel=1, parse_retries=0, give_up=2)
    with pytest.raises(VlmError, match="gave up after 2 questions in a row failed; the last: judge-7b gave no usable"):
        rate(settings, settings.load(CPU), clips(20), ["p"] * 20, 16.0)
    assert len(server.requests) == 5


def test_a_failure_stands_among_the_answers_in_its_place(server: Stub) -> None:
    server.script = [says("1"), says("no"), says("3")]
    found = ask_all(client(server, max_parallel=1, parse_retries=0), [HELLO] * 3, int, give_up=2)
    assert (found[0], found[2]) == (1, 3)
    assert isinstance(found[1], VlmError)


def test_a_stop_ends_the_tries(server: Stub) -> None:
    stop = threading.Event()

    def fails(handler: Handler) -> None:
        stop.set()
        handler.reply(500, b"")

    server.default = fails
    asker = client(server, backoff_seconds=1000, max_wait_seconds=1000)
    with pytest.raises(VlmError, match="stopped"):
        asker.answer(asker.body(HELLO), stop)
    assert len(server.requests) == 1


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_server_that_is_not_there_is_told_before_anything_is_rated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    settings = VlmReward(url=f"http://127.0.0.1:{free_port()}/v1", model="m", backoff_seconds=0.001, retries=1)
    with pytest.raises(
        ValueError, match=r"gave no answer in 2 tries; .*refused.*; start the server, or set check_serv"
    ):
        settings.load(CPU)
    unchecked = settings.model_copy(update={"check_server": False})
    with pytest.raises(VlmError, match=r"clip 0: .*refused"):
        score_of(unchecked)


def test_a_model_that_the_server_lacks_is_told_with_the_nearest(server: Stub) -> None:
    with pytest.raises(ValueError, match=r"unknown model 'judge-7'; did you mean 'judge-7b'\? \(judge-7b\)"):
        reward(server, model="judge-7").load(CPU)


@pytest.mark.parametrize("act", [raw(b"", 404), raw(b"", 405), raw(b"ok"), raw(b"[]"), raw(b'{"data": []}')])
def test_a_server_without_a_list_of_models_passes(server: Stub, act: Act) -> None:
    server.models = act
    assert score_of(reward(server)) == 3


def test_a_refused_key_is_told_at_load(server: Stub) -> None:
    server.models = raw(b"", 401)
    with pytest.raises(ValueError, match="refuses the key"):
        reward(server).load(CPU)


def test_extra_adds_fields_and_leaves_ours_out(server: Stub) -> None:
    extra = {"max_tokens": None, "max_completion_tokens": 50, "mm_processor_kwargs": {"fps": 2}}
    score_of(reward(server, extra=extra, seed=None))
    [body] = server.bodies
    assert body["max_completion_tokens"] == 50
    assert body["mm_processor_kwargs"] == {"fps": 2}
    assert not body.keys() & {"max_tokens", "seed"}


@pytest.mark.parametrize(("changes", "message"), [
    ({"url": "localhost:8000/v1"}, "expected a base url such as"),
    ({"url": "http://"}, "expected a base url such as"),
    ({"url": "http://host:port/v1"}, "[Pp]ort"),
    ({"url": "http://me:secret@host/v1"}, "may hold no user"),
    ({"url": "http://host/v1?key=secret"}, "the key belongs in the environment"),
    ({"url": "http://host/v1/chat/completions"}, "expected the base of"),
    ({"question": "moton"}, "unknown question 'moton'; did you mean 'motion'?"),
    ({"scale": [5, 1]}, r"such as \[1, 5\], got \[5.0, 1.0\]"),
    ({"extra": {"stream": True}}, "extra cannot change 'stream'"),
    ({"extra": {"seed": 3}}, "'seed' is a setting of its own"),
    ({"api_key": "secret"}, "unknown setting 'api_key'"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        VlmReward.model_validate({"url": "http://h/v1", "model": "m"} | changes)
    with pytest.raises(ValueError, match=message):
        raise ValueError(describe(caught.value))
    if "secret" in str(changes.get("url")):
        assert "secret" not in describe(caught.value)


def test_an_endpoint_alone_is_enough_for_a_judge(server: Stub) -> None:
    server.default = says("Dynamics: 4")
    endpoint = Endpoint(url=f"{server.url}/", model="judge-7b")
    assert ask(VlmClient(endpoint), HELLO, lambda text: text.split(": ")) == ["Dynamics", "4"]


@pytest.mark.parametrize(("text", "expected"), [("a\n b", "a b"), ("abcdef", "abcdef"), ("abcdefg", "abc...")])
def test_long_answers_are_shortened_to_one_line(text: str, expected: str) -> None:
    assert shortened(text, 6) == expected
