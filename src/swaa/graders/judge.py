"""A language model as a judge: any endpoint that speaks OpenAI's chat completions.

A verdict has three values: ``correct``, ``wrong``, and ``unparsed`` where the judge replied and said neither. An
endpoint that fails gives an error and no score: a judge that was not there says nothing about the answer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar
from urllib.parse import urlsplit

from swaa.errors import UserError, invalid
from swaa.graders.base import Grade, Grader, Question
from swaa.graders.chat import Endpoint, NoReply, ask_all, check_library
from swaa.graders.registry import register_grader
from swaa.graders.replies import ReplyShelf
from swaa.graders.verdicts import CORRECT, TEMPLATE, UNPARSED, ask, check_template, read
from swaa.reading import check_mapping, check_number, check_text, check_whole

BASE_URL_ENV = "SWAA_JUDGE_BASE_URL"
API_KEY_ENV = "SWAA_JUDGE_API_KEY"


@register_grader
@dataclass(frozen=True)
class Judge(Grader):
    """1 if a language model calls the answer correct, 0 if wrong; no score if it says neither or cannot be asked.

    The key is never a parameter: it is read from the environment when the judge is asked, and stands in no record,
    cache, message or repr.

    Attributes:
        model: as the endpoint calls it.
        base_url: what stands before ``/chat/completions``; None reads ``SWAA_JUDGE_BASE_URL``.
        api_key_env: name of the environment variable that holds the key; None for an endpoint that wants none.
        template: the prompt, with ``{question}``, ``{references}`` and ``{answer}``; its reply must end with a line
            ``VERDICT: CORRECT`` or ``VERDICT: WRONG``.
        temperature: None leaves it to the endpoint, as some models take no other than their own.
        max_tokens: of a reply; None sets no limit.
        extra: more fields of the request, such as ``{"max_completion_tokens": 2000}``.
        timeout: seconds for one request.
        concurrency: so many requests are under way at most.
        retries: so many attempts after the first, for what may pass: rate limits, server errors, time-outs.
        first_wait: seconds before the second attempt, at most; each further wait is twice as long.
        max_wait: seconds; the longest wait.
        cache: whether replies are kept on disk, and asked for once.
    """

    name: ClassVar[str] = "judge"
    model: str
    base_url: str | None = None
    api_key_env: str | None = API_KEY_ENV
    template: str = TEMPLATE
    temperature: float | None = 0.0
    max_tokens: int | None = 512
    extra: Mapping[str, object] = field(default_factory=dict, hash=False)
    timeout: float = 60.0
    concurrency: int = 8
    retries: int = 5
    first_wait: float = 1.0
    max_wait: float = 60.0
    cache: bool = True

    def __post_init__(self) -> None:
        check_text("Judge.model", self.model)
        if self.base_url is not None:
            object.__setattr__(self, "base_url", _check_url("Judge.base_url", self.base_url))
        _check_name("Judge.api_key_env", self.api_key_env)
        check_template("Judge.template", self.template)
        if self.temperature is not None:
            temperature = check_number("Judge.temperature", self.temperature, low=0, high=2)
            object.__setattr__(self, "temperature", temperature)  # 0 and 0.0 are one value, so one request
        if self.max_tokens is not None:
            check_whole("Judge.max_tokens", self.max_tokens, minimum=1)
        check_mapping("Judge.extra", self.extra)
        check_number("Judge.timeout", self.timeout, low=0, high=86400, open_low=True)
        check_whole("Judge.concurrency", self.concurrency, minimum=1)
        check_whole("Judge.retries", self.retries, minimum=0)
        check_number("Judge.first_wait", self.first_wait, low=0, high=3600)
        check_number("Judge.max_wait", self.max_wait, low=0, high=86400)
        if not isinstance(self.cache, bool):
            raise invalid("Judge.cache", accepted="true or false", got=self.cache, mend="Write it without quotes.")

    def check(self) -> None:
        """Whether an endpoint and its key are configured; nothing is sent.

        Raises:
            UserError: one is not; the environment variable is named.
        """
        self._endpoint()
        check_library()

    def grade(self, text: str, question: Question) -> Grade:
        """The grade of one answer; many at once are graded at once by :meth:`grade_all`."""
        return self.grade_all([(text, question)])[0]

    def grade_all(self, answers: Sequence[tuple[str, Question]]) -> list[Grade]:
        """The grades, in the answers' order; requests run concurrently, and none is sent for a reply that is kept.

        Raises:
            UserError: the endpoint is not configured, refuses the key, does not know the model, or is not there: what
                no other answer would be spared. Replies that came before are kept.
        """
        shelf = ReplyShelf(self._url())
        grades = [_grade_of(shelf.get(self._body(*answer)) if self.cache else None) for answer in answers]
        open_ones = [index for index, grade in enumerate(grades) if grade is _NONE_YET]

        def take(index: int, reply: str | NoReply) -> None:
            if isinstance(reply, str):
                if self.cache:
                    shelf.put(self._body(*answers[index]), reply)
                grades[index] = _grade_of(reply)
            else:
                grades[index] = Grade(None, error=f"judge {self.model}: {reply}")

        if open_ones:
            ask_all(self._endpoint(), ((index, self._body(*answers[index])) for index in open_ones), take)
        return grades

    def reply(self, text: str, question: Question) -> str | None:
        """What the judge said of this answer, if that is kept on disk: the way to see what was ``unparsed``."""
        return ReplyShelf(self._url()).get(self._body(text, question))

    def _body(self, text: str, question: Question) -> dict[str, object]:
        body: dict[str, object] = {
            "model": self.model,
            "messages": [{"role": "user", "content": ask(self.template, text, question)}],
        }
        limits = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return body | {key: value for key, value in limits.items() if value is not None} | dict(self.extra)

    def _url(self) -> str:
        url = self.base_url or os.environ.get(BASE_URL_ENV)
        if not url:
            mend = f"Set base_url, or the environment variable {BASE_URL_ENV}, such as http://localhost:8000/v1."
            raise UserError(f"judge: no endpoint is configured. {mend}")
        return _check_url(f"environment variable {BASE_URL_ENV}", url)

    def _endpoint(self) -> Endpoint:
        return Endpoint(
            self._url(),
            self._key(),
            self.api_key_env,
            timeout=self.timeout,
            concurrency=self.concurrency,
            retries=self.retries,
            first_wait=self.first_wait,
            max_wait=self.max_wait,
        )

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            mend = f"Set the environment variable {self.api_key_env}, or write api_key_env: null if it wants none."
            raise UserError(f"judge: there is no key for the endpoint. {mend}")
        if not key.isascii() or not key.isprintable() or " " in key:
            mend = "Set it to the key alone."
            raise UserError(f"judge: what {self.api_key_env} holds is no key: it has blanks or odd characters. {mend}")
        return key


_NONE_YET = Grade(None)


def _grade_of(reply: str | None) -> Grade:
    """The grade by a reply; ``_NONE_YET`` where there is no reply."""
    if reply is None:
        return _NONE_YET
    verdict = read(reply)
    return Grade(None if verdict == UNPARSED else float(verdict == CORRECT), verdict=verdict)


def _check_url(field: str, value: object) -> str:
    """The address without a slash at its end. One that may hold a secret is refused, and not repeated."""
    accepted, mend = "an address such as http://localhost:8000/v1", "Write what stands before /chat/completions."
    text = value.strip().rstrip("/") if isinstance(value, str) else ""
    if set("@?#") & set(text) or (text and not text.startswith(("http://", "https://"))):
        raise UserError(f"{field}: expected {accepted}, without user, password or query. {mend} Keep keys out of it.")
    try:
        parts = urlsplit(text)
        valid = bool(parts.hostname) and (parts.port or 1) > 0 and not text.endswith("/chat/completions")
    except ValueError:
        valid = False
    if not valid or not text.isascii() or not text.isprintable():
        raise invalid(field, accepted=accepted, got=value, mend=mend)
    return text


def _check_name(field: str, value: object) -> None:
    """Refuse what is no name of a variable; it may be the key itself, so it is not repeated."""
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value)):
        mend = f"Put the key into a variable and write its name here, such as {API_KEY_ENV}; never the key."
        raise UserError(f"{field}: expected the name of an environment variable. {mend}")
