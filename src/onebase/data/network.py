"""Why the Hub can't be asked: a variable of the environment that can't be used, or what failed."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from onebase.language import say

_PROXIES = ("HTTPS_PROXY", "ALL_PROXY", "HTTP_PROXY")
_SCHEMES = ("http", "https", "socks5", "socks5h")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_CACHES = ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")


def environment_fault() -> tuple[str, str] | None:
    """Cause and remedy of a variable with which the Hub's client can't begin; None if there is none."""
    return _proxy_fault() or _endpoint_fault() or _token_fault() or _home_fault()


def failure(problem: BaseException) -> tuple[str, str]:
    """Why asking the Hub failed, as the end of a sentence, and the remedy. `problem` is what its client
    raised.
    """
    denied = next((error for error in _chain(problem) if isinstance(error, PermissionError)), None)
    if denied is not None:
        return (
            f"{denied.strerror or denied}: {denied.filename}",
            say(
                "Set HF_HOME to a folder that can be written to.",
                "请将 HF_HOME 设为可写的目录。",
            ),
        )
    unanswered = _unanswered(problem)
    for name in _CERTIFICATES:
        value = os.environ.get(name)
        if unanswered and value and not Path(value).exists():
            return (
                say(f"{name} names {value}, which is not there", f"{name} 指向不存在的 {value}"),
                say(f"Mend {name}, or unset it.", f"请更正或取消 {name}。"),
            )
    reason = reason_of(problem)
    proxies = [f"{name}={_hidden(value)}" for name, value in _proxies()]
    if unanswered and proxies:
        listed = ", ".join(proxies)
        return (
            say(f"through the proxy {listed}: {reason}", f"经代理 {listed}：{reason}"),
            say(
                "Check that the proxy runs, or unset the variable.",
                "请检查代理是否在运行，或取消该变量。",
            ),
        )
    return (
        reason,
        say(
            "Check the name and the network (HF_ENDPOINT sets a mirror, HF_TOKEN a gated one's key), "
            "or give a local path.",
            "请检查名称和网络（HF_ENDPOINT 可设镜像，HF_TOKEN 用于受限内容），或给出本地路径。",
        ),
    )


def reason_of(problem: BaseException) -> str:
    """The first line of the error that lies deepest and says something, or its kind."""
    texts = [str(error).strip() for error in _chain(problem)]
    said = [text for text in texts if text]
    line = said[-1].splitlines()[0] if said else type(problem).__name__
    return line.rstrip(".")


def _unanswered(problem: BaseException) -> bool:
    """Whether a request found nobody, rather than a refusal, a full disk or the offline mode."""
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
    )

    network = (HTTPError, ConnectionError, TimeoutError)
    answered = (HfHubHTTPError, OfflineModeIsEnabled)
    chain = list(_chain(problem))
    return any(isinstance(error, network) for error in chain) and not any(
        isinstance(error, answered) for error in chain
    )


def _chain(problem: BaseException) -> Iterator[BaseException]:
    """`problem`, and what caused it, and what caused that."""
    error: BaseException | None = problem
    while error is not None:
        yield error
        error = error.__cause__


def _proxies() -> list[tuple[str, str]]:
    """The proxy variables that are heeded, with their values. Lower case goes first."""
    no_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if "*" in (host.strip() for host in no_proxy.split(",")):
        return []
    found = []
    for upper in _PROXIES:
        for name in (upper.lower(), upper):
            if value := os.environ.get(name):
                found.append((name, value))
                break
    return found


def _proxy_fault() -> tuple[str, str] | None:
    for name, value in _proxies():
        scheme, fault = _address(value if "://" in value else f"http://{value}")
        if not fault and scheme not in _SCHEMES:
            fault = say(f"its scheme is {scheme}://", f"其协议为 {scheme}://")
        if fault:
            return (
                say(
                    f"{name}={_hidden(value)} is not a usable proxy: {fault}",
                    f"{name}={_hidden(value)} 不是可用的代理：{fault}",
                ),
                say(
                    f"Write {name} like http://host:port or socks5://host:port, or unset it.",
                    f"请将 {name} 写成 http://主机:端口 或 socks5://主机:端口，或取消它。",
                ),
            )
        if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            return (
                say(
                    f"{name}={_hidden(value)} is a SOCKS proxy, which needs the package socksio",
                    f"{name}={_hidden(value)} 是 SOCKS 代理，需要安装 socksio",
                ),
                say(
                    f"Run pip install socksio, or set {name} to an HTTP proxy.",
                    f"请运行 pip install socksio，或将 {name} 设为 HTTP 代理。",
                ),
            )
    return None


def _endpoint_fault() -> tuple[str, str] | None:
    value = os.environ.get("HF_ENDPOINT")
    if not value:
        return None
    scheme, fault = _address(value)
    if not fault and scheme in ("http", "https"):
        return None
    return (
        say(f"HF_ENDPOINT={value} is no web address", f"HF_ENDPOINT={value} 不是网址"),
        say(
            "Write HF_ENDPOINT with its scheme, like https://hf-mirror.com, or unset it.",
            "请将 HF_ENDPOINT 写成完整网址，例如 https://hf-mirror.com，或取消它。",
        ),
    )


def _token_fault() -> tuple[str, str] | None:
    """A key that no header can carry."""
    for name in _TOKENS:
        value = os.environ.get(name, "").strip()
        if value:
            return None if _is_key(value) else _not_a_key(name)
    from huggingface_hub import constants

    file = Path(constants.HF_TOKEN_PATH)
    try:
        value = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        return _not_a_key(str(file))
    except OSError:
        return None
    return None if _is_key(value) else _not_a_key(str(file))


def _is_key(value: str) -> bool:
    return value.isascii() and value.isprintable()


def _not_a_key(place: str) -> tuple[str, str]:
    return (
        say(
            f"{place} holds characters that no key of the Hub has",
            f"{place} 含有 Hub 密钥中不会出现的字符",
        ),
        say(
            f"Copy the key into {place} again, or remove it.",
            f"请重新将密钥复制到 {place}，或将其删除。",
        ),
    )


def _home_fault() -> tuple[str, str] | None:
    if any(os.environ.get(name) for name in _CACHES):
        return None
    try:
        Path.home()
    except RuntimeError:
        return (
            say(
                "there is no home folder to keep downloads in: HOME is not set",
                "没有用于保存下载内容的主目录：未设置 HOME",
            ),
            say("Set HF_HOME to a folder.", "请将 HF_HOME 设为一个目录。"),
        )
    return None


def _address(value: str) -> tuple[str, str]:
    """The scheme of a web address, and what is wrong with its host or port."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError as error:
        return "", str(error)
    if "://" not in value or not parts.hostname:
        return parts.scheme, say("it names no host", "其中没有主机名")
    return parts.scheme, ""


def _hidden(value: str) -> str:
    """A proxy's address without a name and a password."""
    scheme, separator, rest = value.rpartition("://")
    host = rest.rpartition("@")
    return scheme + separator + (f"***@{host[2]}" if host[1] else rest)
