"""Faults that stop requests to the Hub are reported with the environment variable."""

from pathlib import Path

import httpx2
import pytest

from onebase.data import network
from onebase.data.network import environment_fault, failure, reason_of
from onebase.data.rows import read_rows
from onebase.errors import DataError

VARIABLES = (
    *(name for upper in network._PROXIES for name in (upper, upper.lower())),
    *("NO_PROXY", "no_proxy", "HF_ENDPOINT"),
    *network._TOKENS,
    *network._CERTIFICATES,
)


@pytest.fixture(autouse=True)
def _plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable set, no key on this machine."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:7891"),
        ("all_proxy", "socks4://127.0.0.1:7891"),
        ("HTTPS_PROXY", "http://[::1"),
        ("https_proxy", "http://127.0.0.1:x"),
        ("HTTP_PROXY", "http://"),
        ("HTTPS_PROXY", "ftp://proxy:21"),
        ("HF_ENDPOINT", "hf-mirror.com"),
        ("HF_ENDPOINT", "https://"),
        ("HF_TOKEN", "hf_密"),
        ("HUGGING_FACE_HUB_TOKEN", "hf_a\nb"),
    ],
)
def test_a_variable_that_can_not_be_used_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    fault = environment_fault()
    assert fault is not None
    assert name in fault[0]
    assert name in fault[1]
    with pytest.raises(DataError, match=name) as caught:
        read_rows("no-such-owner/no-such-set")
    assert name in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "http://user:secret@127.0.0.1:9"),
        ("https_proxy", "127.0.0.1:7890"),
        ("HF_ENDPOINT", "https://hf-mirror.com"),
        ("HF_TOKEN", "hf_abc"),
    ],
)
def test_a_sound_variable_is_no_fault(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert environment_fault() is None


def test_a_proxy_that_is_not_heeded_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "localhost, *")
    assert environment_fault() is None


def test_a_socks_proxy_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    fault = environment_fault()
    assert fault is not None
    assert "ALL_PROXY" in fault[0]
    assert "pip install socksio" in fault[1]


def test_a_stored_key_that_no_header_can_carry_is_named_by_its_file(
    tmp_path: Path,
) -> None:
    file = tmp_path / "token"
    for content in ("hf_密".encode(), b"\xff\xfe"):
        file.write_bytes(content)
        fault = environment_fault()
        assert fault is not None
        assert str(file) in fault[0]


def test_without_a_home_folder_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in network._CACHES:
        monkeypatch.delenv(name, raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    fault = environment_fault()
    assert fault is not None
    assert "HOME" in fault[0]
    assert "HF_HOME" in fault[1]


def refused() -> Exception:
    error = RuntimeError("Got: ConnectError")
    error.__cause__ = httpx2.ConnectError("[Errno 111] Connection refused")
    return error


def test_a_proxy_that_does_not_answer_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:9")
    reason, remedy = failure(refused())
    assert "HTTPS_PROXY=http://***@127.0.0.1:9" in reason
    assert "Connection refused" in reason
    assert "secret" not in reason
    assert "proxy" in remedy


def test_a_proxy_is_not_blamed_for_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    reason, _ = failure(OSError(28, "No space left on device"))
    assert "HTTPS_PROXY" not in reason


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR"])
def test_missing_certificates_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/no/such/place")
    reason, remedy = failure(refused())
    assert name in reason
    assert "/no/such/place" in reason
    assert name in remedy


def test_a_folder_that_can_not_be_written_to_is_named() -> None:
    reason, remedy = failure(PermissionError(13, "Permission denied", "/nonexistent/hub"))
    assert "/nonexistent/hub" in reason
    assert "HF_HOME" in remedy


def test_a_reason_is_no_name_of_a_class() -> None:
    assert reason_of(refused()) == "[Errno 111] Connection refused"
    assert reason_of(ValueError()) == "ValueError"
