"""What is asked again, when, and what is told of it; against a real server that fails as endpoints do."""

from __future__ import annotations

import datetime
import email.utils
import re
import socket
import time
from pathlib import Path

import pytest

from graders.judge_server import Asked, Reply, by_answer, fails, says, serving
from swaa.errors import UserError
from swaa.graders import Grade, Judge, Question
from swaa.graders.judge import API_KEY_ENV

QUESTION = Question("Who?", ("cat",))
RIGHT = Grade(1.0, verdict="correct")
GOOD = says("VERDICT: CORRECT")


@pytest.fixture(autouse=True)
def set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(API_KEY_ENV, "a-key-of-a-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def judge(url: str, **changes: object) -> Judge:
    return Judge(**{"model": "j", "base_url": url, "first_wait": 0.02, "timeout": 5.0, "retries": 2} | changes)  # type: ignore[arg-type]


def about(*texts: str) -> list[tuple[str, Question]]:
    return [(text, QUESTION) for text in texts]


PASSING = {
    "500": fails(500),
    "502 with a page": Reply(b"<html>Bad gateway</html>", 502),
    "408": fails(408),
    "429": fails(429, "slow down"),
    "garbage": Reply(b"\x00\xff garbage"),
    "nothing": Reply(b""),
    "other JSON": Reply(b'{"hello": 1}'),
    "a list": Reply(b"[]"),
    "nested without end": Reply(b"[" * 100_000),
    "no choices": Reply(b'{"choices": []}'),
    "no message": Reply(b'{"choices": [{}]}'),
    "no text": Reply(b'{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}'),
    "blank text": says("  "),
    "half an answer": says("VERDICT: CORRECT", cut=30),
    "hung up": says("VERDICT: CORRECT", cut=0),
    "half of a gzip": Reply(b"\x1f\x8b\x08 no", headers={"Content-Encoding": "gzip"}),
    "too slow": says("VERDICT: CORRECT", delay=0.6),
}
TOLD = {
    "500": r"500 Internal Server Error: no luck",
    "502 with a page": "502 Bad Gateway: <html>Bad gateway</html>",
    "429": "429 Too Many Requests: slow down",
    "garbage": "the reply is no chat completion",
    "no choices": "the reply is no chat completion",
    "no text": r"the reply has no text \(finish_reason: 'length'\)",
    "half an answer": "RemoteProtocolError: peer closed connection",
    "hung up": "RemoteProtocolError|ReadError",
    "too slow": "no reply within 0.3 s",
}


class TestWhatPasses:
    @pytest.mark.parametrize("trouble", PASSING)
    def test_is_asked_again(self, trouble: str) -> None:
        def script(asked: Asked, before: int) -> Reply:
            return PASSING[trouble] if before < 2 else GOOD

        with serving(script) as server:
            assert judge(server.url, timeout=0.3).grade_all(about("a")) == [RIGHT]
        assert len(server.asked) == 3

    @pytest.mark.parametrize("trouble", TOLD)
    def test_at_last_is_an_error_of_that_answer_alone(self, trouble: str) -> None:
        def script(asked: Asked, before: int) -> Reply:
            return PASSING[trouble] if asked.answer == "b" else GOOD

        with serving(script) as server:
            first, second, third = judge(server.url, timeout=0.3).grade_all(about("a", "b", "c"))
        assert first == third == RIGHT
        assert second.score is None
        assert second.verdict is None
        assert second.error is not None
        assert re.fullmatch(f"judge j: ({TOLD[trouble]}).*; given up after 3 requests", second.error)
        assert server.answers.count("b") == 3

    def test_waits_grow_and_are_never_the_same(self) -> None:
        with serving(lambda asked, before: fails(500)) as server:
            judge(server.url, retries=4, first_wait=0.1, max_wait=0.3).grade("a", QUESTION)
        waits = [later.time - asked.time for asked, later in zip(server.asked, server.asked[1:], strict=False)]
        for wait, longest in zip(waits, (0.1, 0.2, 0.3, 0.3), strict=True):
            assert longest / 2 <= wait < longest + 0.15

    def test_a_server_that_stops_in_the_middle(self) -> None:
        """It has answered, so its address is right: the rest are errors, and what came stays."""

        def script(asked: Asked, before: int) -> Reply:
            server.http.shutdown()
            server.http.server_close()
            return says("VERDICT: CORRECT", cut=10_000)  # the connection is closed after it

        with serving(script) as server:
            first, second = judge(server.url, concurrency=1).grade_all(about("a", "b"))
        assert first == RIGHT
        assert second.score is None
        assert second.error is not None
        assert second.error.startswith("judge j: ConnectError: ")


class TestRetryAfter:
    @pytest.mark.parametrize("kind", ["seconds", "date"])
    def test_is_obeyed_by_everybody(self, kind: str) -> None:
        """The first request is told to wait; the one after it was not, and waits as well."""

        def script(asked: Asked, before: int) -> Reply:
            if len(server.asked) > 1:
                return GOOD
            later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2)
            return fails(
                429, Retry_After="0.5" if kind == "seconds" else email.utils.format_datetime(later, usegmt=True)
            )

        with serving(script) as server:
            begin = time.monotonic()
            assert judge(server.url, concurrency=1).grade_all(about("a", "b")) == [RIGHT, RIGHT]
            assert 0.5 <= time.monotonic() - begin < 4
        waits = [asked.time - server.asked[0].time for asked in server.asked[1:]]
        assert all(wait >= 0.49 for wait in waits)

    def test_of_one_stops_the_others(self) -> None:
        def script(asked: Asked, before: int) -> Reply:
            if len(server.asked) == 2:
                return fails(503, Retry_After="0.6")
            return says("VERDICT: CORRECT", delay=0.05)

        with serving(script) as server:
            answers = about(*(str(index) for index in range(8)))
            assert judge(server.url, concurrency=2).grade_all(answers) == [RIGHT] * 8
        told = server.asked[1].time
        assert [asked.time - told for asked in server.asked if 0.03 < asked.time - told < 0.55] == []

    def test_too_long_is_not_waited_for(self) -> None:
        with serving(lambda asked, before: fails(429, "quota", Retry_After="3600")) as server:
            begin = time.monotonic()
            grade = judge(server.url, max_wait=10).grade("a", QUESTION)
            assert time.monotonic() - begin < 3
        assert grade.error == (
            "judge j: 429 Too Many Requests: quota; it asks to wait 3600 s, longer than max_wait (10 s)"
        )
        assert len(server.asked) == 1

    @pytest.mark.parametrize("header", ["soon", "", "-5", "nan", "Thu, 01 Jan 1970 00:00:00 -0000"])
    def test_nonsense_is_no_wait(self, header: str) -> None:
        with serving(lambda asked, before: GOOD if before else fails(429, Retry_After=header)) as server:
            begin = time.monotonic()
            assert judge(server.url).grade("a", QUESTION) == RIGHT
            assert time.monotonic() - begin < 1


class TestWhatDoesNotPass:
    @pytest.mark.parametrize(
        ("status", "message"),
        [
            (
                401,
                "judge: http://.*/v1 refuses the request .401 Unauthorized: no luck.. Put a key .* variable SWAA_",
            ),
            (403, "judge: http://.*/v1 refuses the request .403 Forbidden: no luck.. Put a key"),
            (404, "judge: http://.*/v1 has no such address or model .404 Not Found: no luck.. Mend base_url"),
            (307, "judge: http://.*/v1 has no such address or model .307 Temporary Redirect: no luck.. Mend base_url"),
            (405, "judge: http://.*/v1 has no such address or model .405"),
        ],
    )
    def test_stops_everything_at_once(self, status: int, message: str) -> None:
        with serving(lambda asked, before: fails(status, Location="http://127.0.0.1:1/")) as server:
            begin = time.monotonic()
            with pytest.raises(UserError, match=message):
                judge(server.url, concurrency=4).grade_all(about(*(str(index) for index in range(200))))
            assert time.monotonic() - begin < 2
        assert len(server.asked) <= 4

    def test_what_came_before_is_kept(self) -> None:
        with serving(lambda asked, before: by_answer(asked, before) if asked.answer != "b" else fails(401)) as server:
            with pytest.raises(UserError, match="401"):
                judge(server.url, concurrency=1).grade_all(about("correct", "b", "wrong"))
            assert judge(server.url).grade("correct", QUESTION) == RIGHT
        assert server.answers == ["correct", "b"]

    def test_a_key_is_wanted_and_none_is_sent(self) -> None:
        with (
            serving(lambda asked, before: fails(401)) as server,
            pytest.raises(UserError, match="It wants a key: set api"),
        ):
            judge(server.url, api_key_env=None).grade("a", QUESTION)

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_a_refused_request_is_its_own_error_at_once(self, status: int) -> None:
        def script(asked: Asked, before: int) -> Reply:
            return fails(status, "too long") if asked.answer == "b" else GOOD

        with serving(script) as server:
            first, second, third = judge(server.url).grade_all(about("a", "b", "c"))
        assert first == third == RIGHT
        assert second.error is not None
        assert second.error.startswith(f"judge j: the endpoint refuses the request ({status} ")
        assert second.error.endswith(
            "too long). Look at model, temperature, max_tokens and extra, and at the length of the prompt"
        )
        assert server.answers.count("b") == 1

    def test_nobody_there(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        begin = time.monotonic()
        with pytest.raises(
            UserError, match=f"judge: nothing answers at {url} .ConnectError: .*. Start the server, or mend"
        ):
            judge(url).grade_all(about(*(str(index) for index in range(200))))
        assert time.monotonic() - begin < 2
