"""Starting the server of `onebase serve`, and its messages."""

import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence

from onebase.adapters.full import FULL
from onebase.cli.loading import load_base_for_answering
from onebase.cli.session import Session, note
from onebase.engine.engine import Engine
from onebase.engine.task_bases import trained_on, training_precision
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.fetch import DEFAULT_BASE
from onebase.quantity import listed
from onebase.serving.app import create_app
from onebase.serving.keys import VARIABLE, KeyStore
from onebase.serving.request_log import log_to
from onebase.serving.server import Server, bind
from onebase.serving.server_lock import hold_server_lock
from onebase.serving.service import Service
from onebase.serving.settings import ServerSettings


def start_server(
    session: Session, settings: ServerSettings, base: str | None, precision: str, began: float
) -> None:
    """Load the base and serve until Ctrl-C. `began` is time.perf_counter() at the command's start."""
    keys = KeyStore(session.workspace)
    _require_key(settings, keys, session)
    with bind(settings.host, settings.port) as listening, hold_server_lock(session.workspace):
        chosen = base or _choose_base(session, settings.tasks)
        note(say(f"Loading {chosen} …", f"正在加载 {chosen} …"))
        loaded = load_base_for_answering(chosen, precision)
        engine = Engine(loaded, slots=settings.limits.concurrent)
        note(say("Compiling kernels …", "正在编译内核 …"))
        url = f"http://{_bracketed(settings.host)}:{listening.getsockname()[1]}"

        def ready(service: Service) -> None:
            _report_ready(session, service, url, time.perf_counter() - began)

        log_to(logging.StreamHandler(sys.stderr))
        app = create_app(engine, session.store, settings, keys, on_ready=ready)
        Server(app, settings.drain_seconds).serve_until_it_ends(listening)
    note(say("Stopped.", "已停止。"))


def _require_key(settings: ServerSettings, keys: KeyStore, session: Session) -> None:
    """Raise UsageError for a server without keys that other machines can reach."""
    if settings.on_loopback or keys.any:
        return
    command = f"onebase keys new{session.workspace.option}"
    raise UsageError(
        say(
            f"{settings.host} can be reached from other machines, and there is no API key.",
            f"其他机器可以访问 {settings.host}，但尚未设置 API 密钥。",
        ),
        say(
            f"Create one with `{command}`, or set {VARIABLE}.",
            f"请用 `{command}` 创建，或设置 {VARIABLE}。",
        ),
    )


def _choose_base(session: Session, tasks: Sequence[str]) -> str:
    """The base that the tasks to serve were trained on; if there are several, that of most tasks.

    Raises UsageError if the named tasks have different bases.
    """
    store = session.store
    adapters = [store.get(name) for name in tasks]
    adapters = adapters or [item for item in store.list() if item.current]
    # A fully fine-tuned task is its own base and can be served beside any other.
    bases = Counter(trained_on(item) for item in adapters if item.base and item.method != FULL)
    if len(bases) > 1 and tasks:
        raise UsageError(
            say(
                f"These tasks were trained on different bases: {listed(bases)}.",
                f"这些任务的训练基座不同：{listed(bases)}。",
            ),
            say("Serve the tasks of one base.", "请只选择同一基座上的任务。"),
        )
    if not bases:
        return DEFAULT_BASE
    chosen = bases.most_common(1)[0][0]
    if len(bases) > 1:
        others = listed(name for name in bases if name != chosen)
        note(
            say(
                f"Serving {chosen}; tasks of {others} are not available.",
                f"为 {chosen} 上的任务提供服务；{others} 上的任务不可用。",
            )
        )
    return chosen


def _report_ready(session: Session, service: Service, url: str, seconds: float) -> None:
    base = service.engine.base
    offers = [offer for offer in service.catalog.offers() if offer.adapter.current]
    answering = [offer.adapter.task for offer in offers if offer.reason is None]
    note(
        say(
            f"Ready after {seconds:.1f} s: {url} ({base.name}, {base.precision}; "
            f"{len(answering)} tasks). Documentation: {url}/docs. Ctrl-C stops.",
            f"已就绪（{seconds:.1f} 秒）：{url}（{base.name}，{base.precision}；"
            f"{len(answering)} 个任务）。文档：{url}/docs。按 Ctrl-C 停止。",
        )
    )
    for offer in offers:
        trained = training_precision(offer.adapter)
        if offer.reason is None and trained not in (None, base.precision.text):
            note(
                say(
                    f"{offer.name} was trained on its base in {trained}. Use --precision {trained} to "
                    "serve it on the same.",
                    f"{offer.name} 训练时基座精度为 {trained}；要以同样的精度提供服务，请用 --precision {trained}。",
                )
            )
    if session.json:
        ready = {"url": url, "base": base.name, "precision": base.precision.text}
        session.show({**ready, "tasks": answering, "seconds": round(seconds, 2)})
        sys.stdout.flush()


def _bracketed(host: str) -> str:
    """A host as it is written in a URL: an IPv6 address is in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
