"""What judges replied, kept on disk: a file a reply, named by the digest of all that was asked.

A file is there whole or not at all, whoever dies while writing it, and any number of processes may share the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from swaa.errors import UserError
from swaa.home import cache_home


class ReplyShelf:
    """The replies of one endpoint, in ``SWAA_HOME/judge``, or in the platform's cache folder for swaa.

    Args:
        base_url: of the endpoint; the key is no part of what a reply is known by, nor stands anywhere here.
    """

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._folder = cache_home() / "judge"

    def path(self, body: Mapping[str, object]) -> Path:
        """Where the reply to this request is kept, if it is."""
        asked = json.dumps({"base_url": self._base_url, "body": body}, sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()
        return self._folder / digest[:2] / f"{digest}.json"

    def get(self, body: Mapping[str, object]) -> str | None:
        """The reply to this request; None if there is none, or its file was damaged."""
        try:
            kept = json.loads(self.path(body).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            raise self._useless("read", error) from error
        reply = kept.get("reply") if isinstance(kept, dict) else None
        return reply if isinstance(reply, str) else None

    def put(self, body: Mapping[str, object], reply: str) -> None:
        """Keep a reply.

        Raises:
            UserError: the folder cannot be written to.
        """
        path = self.path(body)
        draft = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.new")
        content = json.dumps({"base_url": self._base_url, "model": body["model"], "reply": reply})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(content, encoding="ascii")
            draft.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):  # the folder itself may be what is wrong
                draft.unlink()
            raise self._useless("write", error) from error

    def _useless(self, verb: str, error: OSError) -> UserError:
        mend = "Make room there, set SWAA_HOME to a folder that you can write to, or write cache: false."
        return UserError(f"cannot {verb} the judge's replies in {self._folder}: {error.strerror}. {mend}")
