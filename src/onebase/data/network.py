"""Why a request to the Hub fails: an invalid environment variable, or the error of the client."""

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
    """Cause and remedy for an environment variable that stops the Hub's client; None if all are valid."""
    return _proxy_fault() or _endpoint_fault() or _token_fault() or _home_fault()


def failure(problem: BaseException) -> tuple[str, str]:
    """The cause of a failed request to the Hub, as the end of a sentence, and the remedy. `problem` is
    the exception of its client.
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
    unanswered = _no_response(problem)
    for name in _CERTIFICATES:
        value = os.environ.get(name)
        if unanswered and value and not Path(value).exists():
            return (
                say(f"{name} is {value}, which does not exist", f"{name} 指向不存在的 {value}"),
                say(f"Correct {name}, or unset it.", f"请更正 {name}，或取消该变量。"),
            )
    reason = reason_of(problem)
    proxies = [f"{name}={_without_credentials(value)}" for name, value in _proxies()]
    if unanswered and proxies:
        listed = ", ".join(proxies)
        return (
            say(f"through the proxy {listed}: {reason}", f"经代理 {listed}：{reason}"),
            say(
                "Check that the proxy is running, or unset the variable.",
                "请检查代理是否在运行，或取消该变量。",
            ),
        )
    return (
        reason,
        say(
            "Check the name and the network (HF_ENDPOINT sets a mirror, HF_TOKEN the token for gated "
            "content), or give a local path.",
            "请检查名称和网络（HF_ENDPOINT 可设镜像，HF_TOKEN 为受限内容的令牌），或给出本地路径。",
        ),
    )


def reason_of(problem: BaseException) -> str:
    """The first line of the innermost exception with a message, or the type of `problem`."""
    texts = [str(error).strip() for error in _chain(problem)]
    messages = [text for text in texts if text]
    line = messages[-1].splitlines()[0] if messages else type(problem).__name__
    return line.rstrip(".")


def _no_response(problem: BaseException) -> bool:
    """Whether a request got no response, rather than an HTTP error, a full disk or the offline mode."""
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
    """`problem` and the chain of its causes."""
    error: BaseException | None = problem
    while error is not None:
        yield error
        error = error.__cause__


def _proxies() -> list[tuple[str, str]]:
    """The proxy variables in effect, with their values. Lower case takes precedence."""
    no_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if "*" in (host.strip() for host in no_proxy.split(",")):
        return []
    proxies = []
    for upper in _PROXIES:
        for name in (upper.lower(), upper):
            if value := os.environ.get(name):
                proxies.append((name, value))
                break
    return proxies


def _proxy_fault() -> tuple[str, str] | None:
    for name, value in _proxies():
        scheme, fault = _address(value if "://" in value else f"http://{value}")
        if not fault and scheme not in _SCHEMES:
            fault = say(f"its scheme is {scheme}://", f"其协议为 {scheme}://")
        if fault:
            return (
                say(
                    f"{name}={_without_credentials(value)} is not a valid proxy: {fault}",
                    f"{name}={_without_credentials(value)} 不是有效的代理：{fault}",
                ),
                say(
                    f"Write {name} like http://host:port or socks5://host:port, or unset it.",
                    f"请将 {name} 写成 http://主机:端口 或 socks5://主机:端口，或取消该变量。",
                ),
            )
        if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            return (
                say(
                    f"{name}={_without_credentials(value)} is a SOCKS proxy, which needs the package socksio",
                    f"{name}={_without_credentials(value)} 是 SOCKS 代理，需要安装 socksio",
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
        say(f"HF_ENDPOINT={value} is not a valid URL", f"HF_ENDPOINT={value} 不是有效的网址"),
        say(
            "Write HF_ENDPOINT with its scheme, like https://hf-mirror.com, or unset it.",
            "请将 HF_ENDPOINT 写成完整网址，例如 https://hf-mirror.com，或取消该变量。",
        ),
    )


def _token_fault() -> tuple[str, str] | None:
    """The fault of a token that can't be sent in an HTTP header."""
    for name in _TOKENS:
        value = os.environ.get(name, "").strip()
        if value:
            return None if _is_valid_token(value) else _invalid_token(name)
    from huggingface_hub import constants

    file = Path(constants.HF_TOKEN_PATH)
    try:
        value = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        return _invalid_token(str(file))
    except OSError:
        return None
    return None if _is_valid_token(value) else _invalid_token(str(file))


def _is_valid_token(value: str) -> bool:
    return value.isascii() and value.isprintable()


def _invalid_token(place: str) -> tuple[str, str]:
    return (
        say(
            f"{place} contains characters that no Hub token has",
            f"{place} 含有 Hub 令牌中不会出现的字符",
        ),
        say(
            f"Copy the token into {place} again, or remove it.",
            f"请重新将令牌复制到 {place}，或将其删除。",
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
                "there is no home folder for downloads: HOME is not set",
                "没有可保存下载内容的主目录：未设置 HOME",
            ),
            say("Set HF_HOME to a folder.", "请将 HF_HOME 设为一个目录。"),
        )
    return None


def _address(value: str) -> tuple[str, str]:
    """The scheme of a URL, and the fault of its host or port; empty if both are valid."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError as error:
        return "", str(error)
    if "://" not in value or not parts.hostname:
        return parts.scheme, say("it has no host", "其中没有主机名")
    return parts.scheme, ""


def _without_credentials(value: str) -> str:
    """A proxy's URL without user name and password."""
    scheme, separator, rest = value.rpartition("://")
    host = rest.rpartition("@")
    return scheme + separator + (f"***@{host[2]}" if host[1] else rest)
