"""A conversation with a task, for `onebase chat`."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from onebase.cli.loading import TaskLoader
from onebase.cli.session import Session, note
from onebase.data.example import Turn
from onebase.engine.engine import Engine
from onebase.engine.sampling import Sampling
from onebase.errors import OnebaseError, error_as_values
from onebase.language import say
from onebase.serving.streaming_strip import StreamingStrip

# Failures of one answer, after which the chat continues. torch raises RuntimeError.
_FAILED = (OnebaseError, RuntimeError, MemoryError)
# Failures to load a task, whose files may be missing or whose record may have been edited by hand.
_NOT_LOADED = (*_FAILED, OSError, ValueError, TypeError, KeyError, AttributeError)


class Chat:
    """A conversation with one task at a time. If an answer or a switch fails, the error is printed and
    the conversation is unchanged.

    `exchanges` holds every line of the user with its answer or its `error`.
    """

    def __init__(self, session: Session, loader: TaskLoader, task: str, sampling: Sampling) -> None:
        self.exchanges: list[dict[str, Any]] = []
        self._session = session
        self._loader = loader
        self._task = task
        self._sampling = sampling
        self._turns: list[Turn] = []

    def run(self, lines: Iterator[str]) -> None:
        """Answer each line or run its command, until /quit or the end of `lines`."""
        for line in lines:
            command, _, argument = line.partition(" ")
            if not line.startswith("/"):
                self._answer(line)
            elif command == "/quit":
                break
            elif command == "/reset":
                self._turns = []
            elif command == "/task":
                self._switch(argument.strip())
            else:
                note(say("Commands: /task NAME, /reset, /quit", "命令：/task 名称、/reset、/quit"))

    def show(self) -> None:
        """With --json, print the conversation. Without, the answers were printed as they were generated."""
        if self._session.json:
            self._session.show({"answers": self.exchanges})

    def _switch(self, name: str) -> None:
        try:
            self._loader.load([name])
        except _NOT_LOADED as error:
            summary = say(f"{name} can't be loaded", f"无法加载 {name}")
            _note_error(_as_onebase_error(error, summary))
            return
        self._task, self._turns = name, []
        note(say(f"Now: {name}", f"当前任务：{name}"))

    def _answer(self, line: str) -> None:
        engine = self._loader.engine
        turns = [*self._turns, Turn("user", line)]
        exchange = {"task": engine.tasks[self._task].task, "prompt": line, "text": ""}
        self.exchanges.append(exchange)
        try:
            for part in streamed(engine, self._task, turns, self._sampling):
                exchange["text"] += part
                if not self._session.json:
                    print(part, end="", flush=True)
        except _FAILED as error:
            if exchange["text"] and not self._session.json:
                print(flush=True)
            summary = say("The forward pass failed", "模型的前向计算失败")
            failure = _as_onebase_error(error, summary)
            self.exchanges[-1] = {**exchange, "error": error_as_values(failure)}
            _note_error(failure)
            if self._turns:
                note(say("/reset clears the conversation.", "/reset 清空对话。"))
            return
        if not self._session.json:
            print(flush=True)
        self._turns = [*turns, Turn("assistant", exchange["text"] or " ")]


def _note_error(error: OnebaseError) -> None:
    note(f"{error.message} {error.remedy}")


def _as_onebase_error(error: BaseException, summary: str) -> OnebaseError:
    if isinstance(error, OnebaseError):
        return error
    cause = str(error) or type(error).__name__
    return OnebaseError(
        say(f"{summary}: {cause}", f"{summary}：{cause}"),
        say("Try again, or exit with /quit.", "请重试，或用 /quit 退出。"),
    )


def streamed(engine: Engine, task: str, turns: Sequence[Turn], sampling: Sampling) -> Iterator[str]:
    """Yield an answer in parts as they are generated, without white space around the whole answer.

    Raises OnebaseError if the answer fails.
    """
    request = engine.add_request(task, turns, sampling)
    strip = StreamingStrip()
    try:
        while request.finish_reason is None:
            for event in engine.step():
                # An answer that failed earlier may still have events.
                if event.request is request and (part := strip.add(event.text)):
                    yield part
    finally:
        engine.abort(request)
    if request.finish_reason == "error":
        raise request.failure()


def lines_of_stdin() -> Iterator[str]:
    """The non-blank lines of stdin as they arrive, with a prompt on a terminal."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
