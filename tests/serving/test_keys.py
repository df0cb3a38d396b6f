"""API keys: made, found, revoked, never kept in the clear."""

import hashlib
import re
import stat
from pathlib import Path

import pytest

from onebase.adapters.workspace import Workspace
from onebase.errors import CorruptFileError, OnebaseError, UsageError
from onebase.serving.keys import KeyStore


def keys_in(folder: Path, **environment: str) -> KeyStore:
    return KeyStore(Workspace(folder / "ws"), environment)


def test_a_key_is_found_by_its_token_alone(tmp_path: Path) -> None:
    keys = keys_in(tmp_path)
    assert not keys.any
    first, token = keys.new("use", "laptop")
    second, other = keys.new("admin")
    assert keys.any
    assert keys.find(token) == first
    assert keys.find(other) == second
    assert (first.scope, first.name, second.scope) == ("use", "laptop", "admin")
    for wrong in ("", token[:-1], token + "x", token.upper(), first.id, first.sha256):
        assert keys.find(wrong) is None
    for key, own in ((first, token), (second, other)):
        # 256 bits in base64 are 43 characters.
        assert re.fullmatch(rf"ob-{key.id}-[\w-]{{43}}", own)
        assert re.fullmatch("[0-9a-f]{8}", key.id)
        assert key.sha256 == hashlib.sha256(own.encode()).hexdigest()
    assert token[-43:] != other[-43:]


def test_no_token_is_kept(tmp_path: Path) -> None:
    keys = keys_in(tmp_path)
    _, token = keys.new("use")
    file = tmp_path / "ws" / "keys.json"
    assert token.rsplit("-", 1)[1] not in file.read_text(encoding="utf-8")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_another_process_revokes(tmp_path: Path) -> None:
    keys = keys_in(tmp_path)
    key, token = keys.new("use")
    assert keys.find(token) == key
    keys_in(tmp_path).revoke(key.id)
    assert keys.find(token) is None
    assert not keys.any
    with pytest.raises(UsageError, match="Unknown key"):
        keys.revoke(key.id)


def test_revoking_where_there_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no keys"):
        keys_in(tmp_path).revoke("x")


def test_an_unknown_scope_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="root"):
        keys_in(tmp_path).new("root")  # type: ignore[arg-type]


def test_the_environments_key_has_the_scope_use(tmp_path: Path) -> None:
    keys = keys_in(tmp_path, ONEBASE_API_KEY="secret words")
    key = keys.find("secret words")
    assert key is not None
    assert key.scope == "use"
    assert keys.any
    assert keys.all() == []
    assert not keys_in(tmp_path, ONEBASE_API_KEY=" ").any


def test_a_file_of_another_user_lets_nobody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = keys_in(tmp_path)
    _, token = keys.new("use")

    def forbidden(_: Path) -> bytes:
        raise PermissionError

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(OnebaseError, match="may not read") as refused:
        keys.find(token)
    assert "Delete" not in refused.value.remedy


def test_a_damaged_file_lets_nobody_in(tmp_path: Path) -> None:
    keys = keys_in(tmp_path)
    _, token = keys.new("use")
    (tmp_path / "ws" / "keys.json").write_text("{", encoding="utf-8")
    with pytest.raises(CorruptFileError, match=r"keys\.json"):
        keys.find(token)
