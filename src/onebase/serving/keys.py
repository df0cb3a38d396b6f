"""API keys: made here, kept as hashes in the workspace.

A key is 256 random bits behind its id: `ob-<id>-<secret>`. So random a text can't be found from its
SHA-256, and needs no slow hash.
"""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from onebase.adapters.workspace import Workspace, write_whole
from onebase.errors import CorruptFileError, OnebaseError, UsageError, unknown
from onebase.language import say

KeyScope = Literal["use", "admin"]
VARIABLE = "ONEBASE_API_KEY"
_ENVIRONMENT_ID = "environment"


@dataclass(frozen=True)
class ApiKey:
    """One key as it is kept. `scope` use: answers; admin: adapters too. `created`: ISO 8601, UTC."""

    id: str
    name: str
    scope: KeyScope
    sha256: str
    created: str


class KeyStore:
    """The keys of a workspace, and the one in ONEBASE_API_KEY, which has the scope use.

    A change by another process is seen at the next question.
    """

    def __init__(self, workspace: Workspace, environment: Mapping[str, str] = os.environ) -> None:
        self._file = workspace.root / "keys.json"
        self._state: tuple[int, int, int] | None = None
        self._keys: list[ApiKey] = []
        given = environment.get(VARIABLE, "").strip()
        self._given = (
            ApiKey(_ENVIRONMENT_ID, VARIABLE, "use", _digest(given), "") if given else None
        )

    def all(self) -> list[ApiKey]:
        """The keys of the workspace, oldest first. Raises CorruptFileError for a damaged file,
        OnebaseError for one that this user may not read."""
        state = _state(self._file)
        if state != self._state:
            self._keys = [] if state is None else self._read()
            self._state = state
        return [*self._keys]

    @property
    def any(self) -> bool:
        """Whether there is a key at all."""
        return self._given is not None or bool(self.all())

    def find(self, token: str) -> ApiKey | None:
        """The key that `token` is. Takes the same time whichever it is, and where it is none."""
        digest = _digest(token)
        found = None
        for key in [*self.all(), *([self._given] if self._given else [])]:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def new(self, scope: KeyScope, name: str = "") -> tuple[ApiKey, str]:
        """Make a key; its token is shown this once."""
        if scope not in ("use", "admin"):
            raise unknown("scope", "权限", scope, ("use", "admin"))
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            key_id = secrets.token_hex(4)
            token = f"ob-{key_id}-{secrets.token_urlsafe(32)}"
            created = datetime.now(UTC).isoformat(timespec="seconds")
            key = ApiKey(key_id, name, scope, _digest(token), created)
            self._write([*self._read(), key])
        return key, token

    def revoke(self, key_id: str) -> ApiKey:
        """Forget a key: it is refused from the next request on. Raises UsageError."""
        if not self._file.exists():
            raise UsageError(
                say("There are no keys.", "没有任何密钥。"),
                say("Make one with: onebase keys new.", "请用 onebase keys new 创建。"),
            )
        with self._lock():
            keys = self._read()
            gone = next((key for key in keys if key.id == key_id), None)
            if gone is None:
                raise unknown("key", "密钥", key_id, [key.id for key in keys])
            self._write([key for key in keys if key is not gone])
        return gone

    def _lock(self) -> FileLock:
        return FileLock(self._file.with_name(".keys.lock"))

    def _read(self) -> list[ApiKey]:
        try:
            rows: Any = json.loads(self._file.read_bytes())["keys"]
            return [ApiKey(**row) for row in rows]
        except FileNotFoundError:
            return []
        except PermissionError as error:
            raise OnebaseError(
                say(f"This user may not read {self._file}.", f"当前用户无权读取 {self._file}。"),
                say(
                    "Run every command of this workspace as the user who made it.",
                    "请以创建该工作区的用户身份运行所有命令。",
                ),
            ) from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CorruptFileError(
                say(f"{self._file} is damaged: {error}.", f"{self._file} 已损坏：{error}。"),
                say(
                    "Delete it and make new keys with: onebase keys new.",
                    "请删除该文件，再用 onebase keys new 创建密钥。",
                ),
            ) from error

    def _write(self, keys: list[ApiKey]) -> None:
        rows = [asdict(key) for key in keys]
        text = json.dumps({"keys": rows}, ensure_ascii=False, indent=2) + "\n"
        before = os.umask(0o077)  # nobody else reads the hashes
        try:
            write_whole(self._file, text)
        finally:
            os.umask(before)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", errors="replace")).hexdigest()


def _state(file: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
