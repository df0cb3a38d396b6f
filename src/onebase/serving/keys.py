"""API keys, which are stored as hashes in the workspace.

A key consists of its id and 256 random bits: `ob-<id>-<secret>`. That many random bits cannot be
recovered from a SHA-256, so no slow hash is needed.
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
    """One stored key. The scope `use` allows generation; `admin` also allows changes to adapters.
    `created` is in ISO 8601, UTC.
    """

    id: str
    name: str
    scope: KeyScope
    sha256: str
    created: str


class KeyStore:
    """The keys of a workspace, and the key in ONEBASE_API_KEY, which has the scope `use`.

    Changes by other processes take effect at the next call.
    """

    def __init__(self, workspace: Workspace, environment: Mapping[str, str] = os.environ) -> None:
        self._file = workspace.root / "keys.json"
        self._create_command = f"onebase keys new{workspace.option}"
        self._state: tuple[int, int, int] | None = None
        self._keys: list[ApiKey] = []
        token = environment.get(VARIABLE, "").strip()
        self._environment_key = (
            ApiKey(_ENVIRONMENT_ID, VARIABLE, "use", _digest(token), "") if token else None
        )

    def all(self) -> list[ApiKey]:
        """The keys of the workspace, oldest first. Raises CorruptFileError for a damaged file, and
        OnebaseError for a file that this user may not read.
        """
        state = _state(self._file)
        if state != self._state:
            self._keys = [] if state is None else self._read()
            self._state = state
        return [*self._keys]

    @property
    def any(self) -> bool:
        """Whether there are any keys."""
        return self._environment_key is not None or bool(self.all())

    def find(self, token: str) -> ApiKey | None:
        """The key with this token, or None. Takes the same time in both cases."""
        digest = _digest(token)
        matching = None
        for key in [*self.all(), *([self._environment_key] if self._environment_key else [])]:
            if hmac.compare_digest(key.sha256, digest):
                matching = key
        return matching

    def new(self, scope: KeyScope, name: str = "") -> tuple[ApiKey, str]:
        """Create a key; returns it with its token, which is not stored."""
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
        """Delete a key; servers refuse it from the next request on. Raises UsageError."""
        if not self._file.exists():
            raise UsageError(
                say("There are no keys.", "没有任何密钥。"),
                say(f"Create one: {self._create_command}", f"创建一个：{self._create_command}"),
            )
        with self._lock():
            keys = self._read()
            revoked = next((key for key in keys if key.id == key_id), None)
            if revoked is None:
                raise unknown("key", "密钥", key_id, [key.id for key in keys])
            self._write([key for key in keys if key is not revoked])
        return revoked

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
                    "Run all commands of this workspace as the user who created it.",
                    "请以创建该工作区的用户身份运行所有命令。",
                ),
            ) from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CorruptFileError(
                say(f"{self._file} is damaged: {error}.", f"{self._file} 已损坏：{error}。"),
                say(
                    f"Delete it and create new keys: {self._create_command}",
                    f"请删除该文件，再创建新的密钥：{self._create_command}",
                ),
            ) from error

    def _write(self, keys: list[ApiKey]) -> None:
        rows = [asdict(key) for key in keys]
        text = json.dumps({"keys": rows}, ensure_ascii=False, indent=2) + "\n"
        previous = os.umask(0o077)  # other users must not read the hashes
        try:
            write_whole(self._file, text)
        finally:
            os.umask(previous)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", errors="replace")).hexdigest()


def _state(file: Path) -> tuple[int, int, int] | None:
    """The time, size and inode of a file, which change when it is replaced."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
