"""The judge against a real server: verdicts, order, concurrency, the cache, its set-up and its key."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import tracemalloc
from pathlib import Path

import pytest

from graders.judge_server import Asked, Reply, by_answer, fails, says, serving
from swaa.errors import UserError
from swaa.graders import Grade, Judge, Question, parse_grader
from swaa.graders.judge import API_KEY_ENV, BASE_URL_ENV
from swaa.graders.verdicts import ask, read

KEY = "sk-very-secret-0123456789"
QUESTION = Question("Who sat on the mat?", ("the cat", "Tom"))
HERE = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, a cache of the test's own, and no proxy before this machine's own servers."""
    monkeypatch.setenv("SWAA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(API_KEY_ENV, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(BASE_URL_ENV, raising=False)


def judge(url: str, **changes: object) -> Judge:
    """A judge that does not wait long."""
    return Judge(**{"model": "a-judge", "base_url": url, "first_wait": 0.02, "timeout": 5.0, "retries": 3} | changes)  # type: ignore[arg-type]


def about(*texts: str) -> list[tuple[str, Question]]:
    return [(text, QUESTION) for text in texts]


def kept(home: Path) -> list[Path]:
    return sorted(home.rglob("*.json"))


class TestVerdicts:
    def test_right_wrong_and_neither(self) -> None:
        with serving(by_answer) as server:
            right, wrong, neither = judge(server.url).grade_all(about("correct", "wrong", "maybe"))
        assert right == Grade(1.0, verdict="correct")
        assert wrong == Grade(0.0, verdict="wrong")
        assert neither == Grade(None, verdict="unparsed")
        assert not neither.all_correct
        assert judge(server.url).reply("maybe", QUESTION) == "It says so.\nVERDICT: MAYBE"

    @pytest.mark.parametrize(
        ("reply", "verdict"),
        [
            ("VERDICT: CORRECT", "correct"),
            ("It is so.\n\nVERDICT: WRONG\n \n", "wrong"),
            ("**Verdict:** correct", "correct"),
            ("**VERDICT: WRONG**", "wrong"),
            ("`verdict: incorrect`.", "wrong"),
            ("VERDICT: WRONG\nno, rather\nVERDICT: CORRECT", "correct"),
            ("VERDICT: CORRECT\nBut who knows.", "unparsed"),
            ("VERDICT: CORRECT|WRONG", "unparsed"),
            ("VERDICT: not CORRECT", "unparsed"),
            ("The verdict: correct", "unparsed"),
            ("CORRECT", "unparsed"),
            ("VERDICT:", "unparsed"),
            ("", "unparsed"),
            (" \n ", "unparsed"),
        ],
    )
    def test_only_the_last_line_counts(self, reply: str, verdict: str) -> None:
        assert read(reply) == verdict

    def test_what_is_sent(self) -> None:
        with serving(by_answer) as server:
            judge(f"{server.url}/", extra={"seed": 7}, temperature=0).grade("so: correct", QUESTION)
            judge(server.url, max_tokens=None, temperature=None, api_key_env=None).grade("correct", QUESTION)
        first, second = server.asked
        assert first.path == "/v1/chat/completions"
        assert first.headers["Authorization"] == f"Bearer {KEY}"
        assert {key: first.body[key] for key in first.body if key != "messages"} == {
            **{"model": "a-judge", "temperature": 0.0, "max_tokens": 512, "seed": 7}
        }
        for part in ("Who sat on the mat?", "the cat\nTom", "so: correct", "VERDICT: CORRECT"):
            assert part in first.prompt
        assert set(second.body) == {"model", "messages"}
        assert "Authorization" not in second.headers

    def test_what_is_filled_in_is_no_template(self) -> None:
        question = Question("a book", ("{answer}",), {"question": "{references}?"})
        assert (
            ask("{question} {references} {answer} {}", "{question}", question) == "{references}? {answer} {question} {}"
        )

    def test_odd_characters(self) -> None:
        with serving(lambda asked, before: says("\ud800 VERDICT\nVERDICT: CORRECT")) as server:
            assert judge(server.url).grade("lone \ud800, nul \0, \U0001f600", QUESTION).all_correct
            assert judge(server.url).grade("lone \ud800, nul \0, \U0001f600", QUESTION).all_correct
        assert len(server.asked) == 1


class TestManyAtOnce:
    def test_order_is_kept_and_concurrency_is_used_and_bounded(self) -> None:
        """The first five are held until all five are there; the others come as they like."""
        together = threading.Barrier(5)
        held = iter(range(5))
        rng = random.Random(3)

        def script(asked: Asked, before: int) -> Reply:
            if next(held, None) is not None:
                together.wait(timeout=10)
            return says(f"VERDICT: {asked.answer.split()[-1].upper()}", delay=rng.uniform(0, 0.02))

        wanted = [rng.choice(("correct", "wrong")) for _ in range(60)]
        with serving(script) as server:
            answers = about(*(f"number {index}: {verdict}" for index, verdict in enumerate(wanted)))
            grades = judge(server.url, concurrency=5).grade_all(answers)
        assert [grade.verdict for grade in grades] == wanted
        assert server.most_in_flight == 5
        assert len(server.asked) == 60

    def test_one_at_a_time(self) -> None:
        with serving(by_answer) as server:
            judge(server.url, concurrency=1).grade_all(about(*(f"{index} correct" for index in range(6))))
        assert server.most_in_flight == 1
        assert server.answers == [f"{index} correct" for index in range(6)]

    def test_no_answers(self) -> None:
        assert judge("http://127.0.0.1:1").grade_all([]) == []

    def test_inside_a_running_loop(self) -> None:
        async def notebook() -> Grade:
            return judge(server.url).grade("correct", QUESTION)

        with serving(by_answer) as server:
            assert asyncio.run(notebook()).all_correct

    def test_long_prompts_are_never_all_in_memory(self) -> None:
        book = Question("x" * 150_000, ("cat",))
        answers = [(f"{index} correct", book) for index in range(200)]
        with serving(lambda asked, before: says("VERDICT: CORRECT"), remember=False) as server:
            tracemalloc.start()
            try:
                grades = judge(server.url, concurrency=2, cache=False).grade_all(answers)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert all(grade.all_correct for grade in grades)
        assert peak < 10_000_000  # bytes, the server's among them; the prompts together are 30 MB


class TestCache:
    def test_a_kept_reply_sends_no_request(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(by_answer) as server:
            first = judge(server.url).grade_all(about("correct", "maybe"))
            assert len(server.asked) == 2
            again = judge(server.url).grade_all(about("maybe", "correct", "wrong"))
            assert server.answers[2:] == ["wrong"]
        monkeypatch.delenv(API_KEY_ENV)  # nobody is asked, so no key is needed
        assert judge(server.url).grade_all(about("correct", "maybe")) == first == [again[1], again[0]]
        assert len(kept(tmp_path / "home" / "judge")) == 3

    @pytest.mark.parametrize(
        "changes",
        [
            *({"model": "other"}, {"temperature": 1.0}, {"max_tokens": 9}, {"extra": {"seed": 1}}),
            {"template": "<answer>\n{answer}\n</answer>"},
        ],
    )
    def test_another_question_is_asked_anew(self, changes: dict[str, object]) -> None:
        with serving(by_answer) as server, serving(by_answer) as other:
            judge(server.url).grade("correct", QUESTION)
            judge(server.url, concurrency=2, retries=0, timeout=9).grade("correct", QUESTION)
            assert len(server.asked) == 1
            judge(server.url, **changes).grade("correct", QUESTION)
            assert len(server.asked) == 2
            judge(other.url).grade("correct", QUESTION)
            assert len(other.asked) == 1

    def test_none_is_kept_if_so_told(self, tmp_path: Path) -> None:
        with serving(by_answer) as server:
            for _ in range(2):
                judge(server.url, cache=False).grade("correct", QUESTION)
        assert len(server.asked) == 2
        assert kept(tmp_path) == []

    @pytest.mark.parametrize("content", [b"", b'{"reply": "VERD', b"[]", b'{"reply": 3}', b"\xff"])
    def test_a_damaged_file_is_written_anew(self, tmp_path: Path, content: bytes) -> None:
        with serving(by_answer) as server:
            judge(server.url).grade("correct", QUESTION)
            (path,) = kept(tmp_path)
            path.write_bytes(content)
            assert judge(server.url).grade("correct", QUESTION).all_correct
            assert len(server.asked) == 2
            assert judge(server.url).grade("correct", QUESTION).all_correct
            assert len(server.asked) == 2

    def test_failures_are_not_kept(self, tmp_path: Path) -> None:
        with serving(lambda asked, before: fails(500) if before < 2 else by_answer(asked, before)) as server:
            assert judge(server.url, retries=1).grade("correct", QUESTION).error
            assert kept(tmp_path) == []
            assert judge(server.url, retries=1).grade("correct", QUESTION).all_correct

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "home").write_text("a file")
        with (
            serving(by_answer) as server,
            pytest.raises(UserError, match=r"cannot (read|write) the judge's replies in .*"),
        ):
            judge(server.url).grade("correct", QUESTION)

    def test_a_disk_that_is_full_leaves_the_former_reply_whole(self) -> None:
        program = textwrap.dedent("""
            import resource, signal
            from swaa.errors import UserError
            from swaa.graders.replies import ReplyShelf
            shelf, body = ReplyShelf("http://h"), {"model": "m"}
            shelf.put(body, "the first")
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            try:
                shelf.put(body, "x" * 100_000)
            except UserError as error:
                print(error)
            print(shelf.get(body), [path.name for path in shelf.path(body).parent.iterdir() if "new" in path.name])
        """)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("cannot write the judge's replies in ")
        assert done.stdout.endswith("\nthe first []\n")

    @pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
    def test_a_process_that_dies_leaves_what_it_had(self, tmp_path: Path, blow: signal.Signals) -> None:
        """It dies with three replies in flight. What it left can be read, and only the rest is asked again."""
        program = textwrap.dedent("""
            import signal, sys
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
            from swaa.graders import Judge, Question
            judge = Judge("a-judge", base_url=sys.argv[1], concurrency=3)
            judge.grade_all([(f"{index} correct", Question("Who?", ("cat",))) for index in range(30)])
        """)
        enough = threading.Event()

        def script(asked: Asked, before: int) -> Reply:
            if len(server.asked) > 12:
                enough.set()
                return says("VERDICT: CORRECT", delay=2)
            return by_answer(asked, before)

        with serving(script) as server:
            process = subprocess.Popen([sys.executable, "-c", program, server.url], stderr=subprocess.PIPE)
            assert enough.wait(timeout=30)
            begin = time.monotonic()
            process.send_signal(blow)
            assert process.wait(timeout=30) != 0
            assert time.monotonic() - begin < 1.5  # it does not wait for what is under way
            assert (b"KeyboardInterrupt" in process.communicate()[1]) == (blow == signal.SIGINT)
            left = [json.loads(path.read_bytes())["reply"] for path in kept(tmp_path)]
            assert 8 <= len(left) <= 12
            assert set(left) == {"It says so.\nVERDICT: CORRECT"}
            server.script, asked = by_answer, len(server.asked)
            answers = [(f"{index} correct", Question("Who?", ("cat",))) for index in range(30)]
            assert all(grade.all_correct for grade in judge(server.url).grade_all(answers))
            assert len(server.asked) - asked == 30 - len(left)


class TestSetUp:
    def test_check_sends_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(by_answer) as server:
            judge(server.url).check()
            monkeypatch.setenv(BASE_URL_ENV, f"{server.url}/")
            Judge("a-judge").check()
            assert server.asked == []
            assert Judge("a-judge").grade("correct", QUESTION).all_correct

    def test_no_endpoint(self) -> None:
        for call in (Judge("a").check, lambda: Judge("a").grade("x", QUESTION)):
            with pytest.raises(
                UserError, match=f"judge: no endpoint is configured. Set base_url, or .* {BASE_URL_ENV}"
            ):
                call()

    @pytest.mark.parametrize("key", [None, "", "  "])
    def test_no_key(self, monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
        monkeypatch.delenv(API_KEY_ENV) if key is None else monkeypatch.setenv(API_KEY_ENV, key)
        with pytest.raises(
            UserError, match=f"judge: there is no key .* variable {API_KEY_ENV}, or write api_key_env: null"
        ):
            judge("http://127.0.0.1:1").check()
        with pytest.raises(UserError, match="environment variable MINE"):
            judge("http://127.0.0.1:1", api_key_env="MINE").check()
        judge("http://127.0.0.1:1", api_key_env=None).check()

    def test_a_key_that_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(API_KEY_ENV, f"{KEY}\nmore")
        with pytest.raises(UserError, match=f"judge: what {API_KEY_ENV} holds is no key: it has blanks") as caught:
            judge("http://127.0.0.1:1").check()
        assert KEY not in str(caught.value)

    def test_plain_values_and_back(self) -> None:
        one = judge("http://127.0.0.1:1/v1", extra={"seed": 1})
        assert parse_grader(json.loads(json.dumps(one.to_dict()))) == one
        assert hash(one) == hash(judge("http://127.0.0.1:1/v1/", extra={"seed": 1}))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"model": None}, "judge.model: expected a non-empty string"),
            ({"base_url": "https://:80"}, "judge.base_url: expected an address such as http://localhost:8000/v1, got"),
            ({"base_url": "http://h:99999"}, "judge.base_url: expected an address"),
            (
                {"base_url": "http://h/v1/chat/completions"},
                "judge.base_url: .* Write what stands before /chat/completions.",
            ),
            ({"base_url": 3}, "judge.base_url: expected an address"),
            ({"template": "no place"}, "judge.template: expected a text with {answer}, got 'no place'. Say where the"),
            (
                {"template": "{answer} {refrences}"},
                "judge.template: unknown field 'refrences'. Did you mean 'references'?",
            ),
            ({"temperature": -1}, r"judge.temperature: expected a number in \[0, 2\]"),
            ({"max_tokens": 0}, "judge.max_tokens: expected an int >= 1"),
            ({"extra": [1]}, "judge.extra: expected a mapping"),
            ({"timeout": 0}, "judge.timeout: expected a number in"),
            ({"concurrency": 0}, "judge.concurrency: expected an int >= 1"),
            ({"retries": -1}, "judge.retries: expected an int >= 0"),
            ({"first_wait": -1}, "judge.first_wait: expected a number"),
            ({"max_wait": "1"}, "judge.max_wait: expected a number"),
            ({"cache": "no"}, "judge.cache: expected true or false, got 'no'."),
            ({"api_key": "x"}, "unknown field 'judge.api_key'. Did you mean 'judge.api_key_env'?"),
        ],
    )
    def test_mistakes(self, values: dict[str, object], message: str) -> None:
        with pytest.raises(UserError, match=message):
            parse_grader({"name": "judge", "model": "m", **values})

    @pytest.mark.parametrize(
        "values",
        [
            {"api_key_env": KEY},
            {"api_key_env": f"Bearer {KEY}"},
            {"base_url": f"https://user:{KEY}@host/v1"},
            {"base_url": f"https://host/v1?key={KEY}"},
            {"base_url": KEY},
        ],
    )
    def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(self, values: dict[str, object]) -> None:
        with pytest.raises(UserError, match="Keep keys out of it|never the key") as caught:
            parse_grader({"name": "judge", "model": "m", **values})
        assert KEY not in "".join(traceback.format_exception(caught.value))


class TestTheKeyNeverLeaks:
    @pytest.mark.parametrize(
        "reply",
        [
            says(f"Your key is {KEY}.\nVERDICT: CORRECT"),
            says(f"{KEY}"),
            fails(500, f"{KEY} again"),
            fails(400, "x" * 270 + KEY),
            fails(401, f"Incorrect API key provided: {KEY}."),
            fails(404, KEY),
            Reply(f"<html>{KEY}</html>".encode(), 503),
            Reply(f"{KEY}".encode()),
            says("VERDICT: CORRECT", cut=20),
        ],
        ids=lambda reply: f"{reply.status}",
    )
    def test_by_searching_everything(self, tmp_path: Path, caplog: pytest.LogCaptureFixture, reply: Reply) -> None:
        """The endpoint sends the key back wherever it can, and every logger is wide open."""
        caplog.set_level(logging.DEBUG)
        told = ""
        with serving(lambda asked, before: reply) as server:
            one = judge(server.url, retries=1)
            try:
                told += repr(one.grade_all(about("the cat")))
            except UserError as error:
                told += "".join(traceback.format_exception(error))
            told += repr(one.reply("the cat", QUESTION))
            assert server.asked[0].headers["Authorization"] == f"Bearer {KEY}"
        told += repr(one) + json.dumps(one.to_dict()) + repr(one._endpoint()) + caplog.text
        told += "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
        told += "".join(str(path) for path in tmp_path.rglob("*"))
        assert caplog.records  # the client's own log was read
        assert KEY[:10] not in told
