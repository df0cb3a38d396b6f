"""The metrics of an arm, from its losses and answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

from onebase.compare.data import ComparisonData
from onebase.compare.metrics.answer_scores import AnswerScorer
from onebase.compare.metrics.classification import accuracy, macro_f1
from onebase.compare.metrics.user_metric import UserMetric
from onebase.compare.result import Arm, HeldOutRow, Kind, Outcome, mean_loss
from onebase.errors import unknown

_LARGEST = 700.0  # exp overflows above about 709


@dataclass(frozen=True)
class Scoring:
    """Scores arms on one held-out set; `user_metric` joins the metrics of its kind."""

    kind: Kind
    rows: tuple[HeldOutRow, ...]
    user_metric: UserMetric | None = None

    @classmethod
    def of(cls, data: ComparisonData, user_metric: str | None) -> "Scoring":
        """The scoring of a comparison's held-out rows. Raises UsageError for a user's metric that is not
        there.
        """
        metric = None if user_metric is None else UserMetric.load(user_metric)
        return cls(data.kind, data.held_out, metric)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that are measured row by row."""
        own = () if self.user_metric is None else (self.user_metric.name,)
        if self.kind == "classification":
            return ("accuracy", "loss", *own)
        return ("loss", "exact_match", "rouge_l", "bleu_4", "chrf", "length", *own)

    @property
    def lower_is_better(self) -> tuple[str, ...]:
        """The user's own metric, where less of it is better."""
        own = self.user_metric
        return (own.name,) if own is not None and own.better == "lower" else ()

    def deciding(self, chosen: str | None) -> str:
        """The metric that decides: the one that was `chosen`, else accuracy, or the loss of answers.
        Raises UsageError for one that is not measured row by row here.
        """
        valid = [name for name in self.metrics if name != "length"]
        if chosen is None:
            return valid[0]
        if chosen not in valid:
            raise unknown("metric", "指标", chosen, valid)
        return chosen

    def scored(self, arm: Arm) -> Arm:
        """The arm with the scores of its answers, and its metrics over all rows."""
        if not arm.outcomes:
            return arm
        outcomes = tuple(map(self._scored, arm.outcomes, self.rows))
        loss = mean_loss(outcomes)
        metrics = {"loss": loss, "perplexity": math.exp(min(loss, _LARGEST))}
        for name in self.metrics:
            if name != "loss":
                metrics[name] = fmean(outcome.scores[name] for outcome in outcomes)
        return replace(arm, outcomes=outcomes, metrics={**metrics, **self._whole_set(outcomes)})

    def _scored(self, outcome: Outcome, row: HeldOutRow) -> Outcome:
        if self.kind == "classification":
            scores = {"accuracy": accuracy(outcome.answer, row.reference)}
        else:
            scores = self._answers.score(outcome.answer, row.reference)
        if self.user_metric is not None:
            scores[self.user_metric.name] = self.user_metric.score(outcome.answer, row)
        return replace(outcome, scores=scores)

    def _whole_set(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        answers = [outcome.answer for outcome in outcomes]
        if self.kind == "classification":
            return {"macro_f1": macro_f1(answers, [row.reference for row in self.rows])}
        return self._answers.corpus_scores(answers)

    @cached_property
    def _answers(self) -> AnswerScorer:
        return AnswerScorer(tuple(row.reference for row in self.rows))
