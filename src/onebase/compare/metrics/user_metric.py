"""The user's own metric: a function from answer, reference and input to a number."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from onebase.align.user_function import call_function, load_function
from onebase.compare.metrics.metric import METRICS, Better
from onebase.compare.result import HeldOutRow
from onebase.errors import OnebaseError, UsageError
from onebase.language import say

MetricFunction = Callable[[str, str, str], float]
_ARGUMENTS = ("answer", "reference", "input")


class MetricError(OnebaseError, RuntimeError):
    """A metric of the user's that failed or returned no finite number."""

    code = "metric"


@dataclass(frozen=True)
class UserMetric:
    """A metric of the user's, called as `function(answer, reference, input)`.

    `source` is `module:function` or `path/to/file.py:function`. `name` stands in tables and records: the
    function's, or the source where a metric of `METRICS` has that name. Higher is better unless the
    function has an attribute `higher_is_better = False`.
    """

    source: str
    name: str
    better: Better
    function: MetricFunction

    @classmethod
    def load(cls, source: str) -> "UserMetric":
        """The metric with that source. Raises UsageError where it is not there, takes other
        arguments, or has a `higher_is_better` that is neither True nor False.
        """
        takes = say("answer, reference and input", "回答、参考答案和输入")
        function = load_function(source, say("metric", "指标"), takes)
        _require_arguments(function, source)
        higher = getattr(function, "higher_is_better", True)
        if higher not in (True, False):
            raise UsageError(
                say(
                    f"{source} has higher_is_better = {higher!r}.",
                    f"{source} 的 higher_is_better 为 {higher!r}。",
                ),
                say("Set it to True or False.", "请设为 True 或 False。"),
            )
        name = source.rpartition(":")[2]
        return cls(
            source,
            source if name in METRICS else name,
            "higher" if higher else "lower",
            function,
        )

    def score(self, answer: str, row: HeldOutRow) -> float:
        """The number of one answer. Raises MetricError, naming the row, where the function fails or returns
        no finite number.
        """
        return call_function(
            self.function,
            (answer, row.reference, row.input),
            name=say(f"metric {self.source}", f"指标 {self.source}"),
            where=f"{row.file}:{row.line}",
            answer=answer,
            error=MetricError,
        )


def _require_arguments(function: MetricFunction, source: str) -> None:
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # written in C
        return
    try:
        signature.bind(*_ARGUMENTS)
    except TypeError:
        fits = False
    else:
        # A function of (reference, answer, …) would be scored the wrong way round without a word.
        names = list(signature.parameters)
        fits = all(names.index(name) == at for at, name in enumerate(_ARGUMENTS) if name in names)
    if not fits:
        written = f"{source.rpartition(':')[2]}{signature}"
        raise UsageError(
            say(
                f"The metric {source} takes other arguments: {written}.",
                f"指标 {source} 的参数不符：{written}。",
            ),
            say(
                "It is called as function(answer, reference, input), and returns a number.",
                "它按 函数(answer, reference, input) 调用，返回一个数值。",
            ),
        )
