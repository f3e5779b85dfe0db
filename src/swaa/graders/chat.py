"""Asking an OpenAI-compatible endpoint for chat completions: many requests at once, each tried until it is hopeless.

The client is ``httpx2``, not ``openai``: one POST is all that is needed, and what is retried, when, and what is told
of it are then rules of this file, which tests can hold to the letter. It comes with huggingface-hub anyway.

What passes is tried again: 408, 425, 429, 5xx, time-outs, connections that fail or break, replies that are no chat
completion. The waits grow as 1, 2, 4, … times ``first_wait``, each cut at random by up to a half, and ``Retry-After``
is obeyed by all requests to come. What cannot pass is not tried again: a wrong key or address stops everything with a
UserError, and any other refusal is the failure of its own request.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import importlib.util
import json
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from swaa.errors import UserError

if TYPE_CHECKING:
    import ssl

    import httpx2

Body = Mapping[str, object]
_REFUSED_KEY, _WRONG_ADDRESS = {401, 403}, {301, 302, 303, 307, 308, 404, 405}
_PASSING = {408, 425, 429}
_MAX_DETAIL = 300
_NOT_IN_IT = (ValueError, LookupError, TypeError, RecursionError)
"""What looking for a field in whatever an endpoint sends can raise."""


class NoReply(Exception):  # it is no mistake of the program's
    """One request got no reply; the message says why, for the record."""


class _Trouble(Exception):
    """One attempt failed."""

    def __init__(self, why: str, *, passes: bool = True, connected: bool = True, retry_after: float = 0.0) -> None:
        super().__init__(why)
        self.passes = passes
        self.connected = connected
        self.retry_after = retry_after


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    Attributes:
        base_url: the address before ``/chat/completions``.
        key: sent as the bearer token; None sends none. It is in no repr, and is blotted out of what the endpoint says.
        key_name: where the user keeps the key.
        timeout: seconds for one attempt, from connecting to the last byte.
        concurrency: so many requests are under way at most.
        retries: so many attempts after the first.
        first_wait: seconds before the second attempt, at most.
        max_wait: no wait is longer, in seconds; an endpoint that asks for a longer one is not asked again.
    """

    base_url: str
    key: str | None = field(repr=False)
    key_name: str | None
    timeout: float
    concurrency: int
    retries: int
    first_wait: float
    max_wait: float

    def blot(self, text: str) -> str:
        """``text`` without the key, should it be there; what is shorter than 8 characters is no secret."""
        return text.replace(self.key, "***") if self.key and len(self.key) >= 8 else text


def ask_all(endpoint: Endpoint, bodies: Iterator[tuple[int, Body]], took: Callable[[int, str | NoReply], None]) -> None:
    """Ask everything, ``endpoint.concurrency`` at a time; ``took(number, reply)`` is called as each ends.

    ``bodies`` is drawn from as requests begin, so that the prompts of a long list are never all in memory.

    Raises:
        UserError: the endpoint refuses the key, does not know the address or the model, or nothing is there. What was
            under way is dropped.
    """
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = Future()

    async def whole() -> None:
        task = asyncio.current_task()
        assert task is not None  # this is one
        begun.set_result((asyncio.get_running_loop(), task))
        await _ask_all(endpoint, bodies, took)

    # In a thread of its own: the caller may be in a loop already, as notebooks are, and a signal reaches the caller's
    # thread, where it is never lost in a callback of the loop's.
    with ThreadPoolExecutor(1, thread_name_prefix="judge") as pool:
        ended = pool.submit(lambda: asyncio.run(whole()))
        try:
            ended.result()
        except BaseException:
            loop, task = begun.result()
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(task.cancel)
            raise


async def _ask_all(
    endpoint: Endpoint, bodies: Iterator[tuple[int, Body]], took: Callable[[int, str | NoReply], None]
) -> None:
    async with _client(endpoint) as client:
        asker = _Asker(endpoint, client)

        async def work() -> None:
            for number, body in bodies:  # shared by the workers
                try:
                    reply: str | NoReply = await asker.ask(body)
                except NoReply as failure:
                    reply = failure
                took(number, reply)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(endpoint.concurrency):
                    group.create_task(work())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None


def check_library() -> None:
    """Refuse to begin without the library."""
    if importlib.util.find_spec("httpx2") is None:
        raise UserError("the judge needs the library httpx2. Install it: pip install 'swaa[judge]'")


def _client(endpoint: Endpoint) -> httpx2.AsyncClient:
    import httpx2

    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    return httpx2.AsyncClient(
        headers=headers,
        timeout=httpx2.Timeout(None, connect=min(10.0, endpoint.timeout / 2)),  # the whole is timed by _Asker
        limits=httpx2.Limits(max_connections=endpoint.concurrency),
        verify=_certificates(),
    )


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """Read once: it takes a tenth of a second, and a run asks once a batch."""
    import httpx2

    return httpx2.create_ssl_context()


class _Asker:
    """Asks one endpoint, and remembers what it said about waiting."""

    def __init__(self, endpoint: Endpoint, client: httpx2.AsyncClient) -> None:
        self._endpoint = endpoint
        self._client = client
        self._quiet_until = 0.0  # seconds of the loop's clock
        self._reached = False
        self._random = random.Random()  # the global stream may be somebody's seed

    async def ask(self, body: Body) -> str:
        """The reply's text."""
        content = json.dumps(body).encode()
        attempt = 0
        while True:
            await self._keep_quiet()
            try:
                return self._endpoint.blot(await self._try(content))
            except _Trouble as trouble:
                self._give_up_if_hopeless(trouble, attempt)
                wait = max(trouble.retry_after, self._backoff(attempt))
            attempt += 1
            await asyncio.sleep(wait)

    def _give_up_if_hopeless(self, trouble: _Trouble, attempt: int) -> None:
        endpoint = self._endpoint
        if not trouble.passes:
            raise NoReply(str(trouble)) from None
        if trouble.retry_after > endpoint.max_wait:
            asked = f"it asks to wait {trouble.retry_after:g} s, longer than max_wait ({endpoint.max_wait:g} s)"
            raise NoReply(f"{trouble}; {asked}") from None
        if attempt == endpoint.retries:
            if not trouble.connected and not self._reached:
                mend = "Start the server, or mend base_url."
                raise UserError(f"judge: nothing answers at {endpoint.base_url} ({trouble}). {mend}") from None
            raise NoReply(f"{trouble}; given up after {attempt + 1} requests") from None

    def _backoff(self, attempt: int) -> float:
        """Seconds before the next attempt."""
        longest = min(self._endpoint.first_wait * 2.0**attempt, self._endpoint.max_wait)
        return longest * self._random.uniform(0.5, 1.0)

    async def _keep_quiet(self) -> None:
        clock = asyncio.get_running_loop().time
        while (wait := self._quiet_until - clock()) > 0:
            await asyncio.sleep(wait)

    async def _try(self, content: bytes) -> str:
        import httpx2

        seconds = self._endpoint.timeout
        try:
            async with asyncio.timeout(seconds):
                response = await self._client.post(f"{self._endpoint.base_url}/chat/completions", content=content)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _Trouble(self._told(error), connected=False) from None
        except TimeoutError:
            raise _Trouble(f"no reply within {seconds:g} s") from None
        except httpx2.RequestError as error:  # such as a connection that closes in the middle of a reply
            raise _Trouble(self._told(error)) from None
        self._reached = True
        if response.status_code != 200:
            self._refused(response)
        return _text_of(response)

    def _told(self, error: Exception) -> str:
        return self._endpoint.blot(f"{type(error).__name__}: {error}")[:_MAX_DETAIL]

    def _refused(self, response: httpx2.Response) -> None:
        """Raises what a status other than 200 means."""
        endpoint, status = self._endpoint, response.status_code
        told = endpoint.blot(f"{status} {response.reason_phrase}: {_detail(response)}".rstrip(": "))[:_MAX_DETAIL]
        if status in _REFUSED_KEY:
            if endpoint.key:
                mend = f"Put a key that it takes into the environment variable {endpoint.key_name}."
            else:
                mend = "It wants a key: set api_key_env to the name of the environment variable that holds it."
            raise UserError(f"judge: {endpoint.base_url} refuses the request ({told}). {mend}")
        if status in _WRONG_ADDRESS:
            mend = "Mend base_url (it is what stands before /chat/completions, often ending in /v1) or model."
            raise UserError(f"judge: {endpoint.base_url} has no such address or model ({told}). {mend}")
        if status not in _PASSING and status < 500:
            mend = "Look at model, temperature, max_tokens and extra, and at the length of the prompt"
            raise _Trouble(f"the endpoint refuses the request ({told}). {mend}", passes=False)
        retry_after = _seconds(response.headers.get("Retry-After", ""))
        if retry_after <= endpoint.max_wait:
            self._quiet_until = max(self._quiet_until, asyncio.get_running_loop().time() + retry_after)
        raise _Trouble(told, retry_after=retry_after)


def _text_of(response: httpx2.Response) -> str:
    """The text of the first choice of a chat completion."""
    try:
        choice = response.json()["choices"][0]
        text = choice["message"]["content"]
    except _NOT_IN_IT:
        raise _Trouble("the reply is no chat completion") from None
    if not isinstance(text, str) or not text.strip():
        raise _Trouble(f"the reply has no text (finish_reason: {choice.get('finish_reason')!r:.40})")
    return text


def _detail(response: httpx2.Response) -> str:
    """What the endpoint says of an error: OpenAI's field for it, or the page as it is."""
    try:
        return str(response.json()["error"]["message"])
    except _NOT_IN_IT:
        return " ".join(response.text.split())


def _seconds(retry_after: str) -> float:
    """Of a header ``Retry-After``: seconds, or a date; what is neither, or past, is 0."""
    with contextlib.suppress(ValueError):
        seconds = float(retry_after)
        return seconds if seconds > 0 else 0.0  # nan is 0 too
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    date = date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
    return max((date - datetime.datetime.now(datetime.UTC)).total_seconds(), 0.0)
