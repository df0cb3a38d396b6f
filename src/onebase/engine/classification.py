"""Classification: the log-probability of each label's text after a prompt."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from onebase.adapters.contribution import NOTHING, merged
from onebase.engine.pool import LoadedTask
from onebase.engine.prompt import Ids
from onebase.engine.request import Request
from onebase.engine.rows import TokenRow, by_budget, token_losses
from onebase.engine.sampling import Sampling

SCORING_TOKENS = 2048


@dataclass(frozen=True)
class LabelScore:
    """A label's log-probability (nats, with the end token) and its probability among the labels."""

    label: str
    logprob: float
    probability: float


def ranked(labels: Sequence[str], logprobs: Sequence[float]) -> list[LabelScore]:
    """The labels with their scores, best first."""
    probabilities = torch.tensor(logprobs, dtype=torch.float64).softmax(0).tolist()
    scores = [LabelScore(*row) for row in zip(labels, logprobs, probabilities, strict=True)]
    return sorted(scores, key=lambda score: score.logprob, reverse=True)


def scoring_packs(
    tasks: Sequence[LoadedTask], prompts: Sequence[Ids], answers: Sequence[Ids]
) -> Iterator[Callable[[], list[float]]]:
    """Passes through the transformers modules, each of which returns the log-probabilities of some
    answers: all answers after the first prompt, then all after the second, and so on. The common
    prefix of a pass's texts is computed once.
    """
    contribution = merged([task.contribution for task in tasks])
    adapter = None if contribution is NOTHING else "adapter"
    rows = [
        TokenRow(adapter, prompt + answer, (False,) * len(prompt) + (True,) * len(answer))
        for prompt in prompts
        for answer in answers
    ]

    def score(group: list[TokenRow]) -> list[float]:
        with torch.inference_mode():
            losses, row_of = token_losses(tasks[0].base, group, {"adapter": contribution})
            total = torch.zeros(len(group), device=losses.device)
            logprobs: list[float] = (-total.index_add_(0, row_of, losses)).tolist()
            return logprobs

    for group in by_budget(rows, SCORING_TOKENS):
        yield lambda group=group: score(group)  # type: ignore[misc]


def scoring_requests(
    tasks: tuple[LoadedTask, ...], prompt: Ids, answers: Sequence[Ids]
) -> list[Request]:
    """Requests that score each answer after a prompt."""
    return [
        Request(
            tasks,
            prompt + answer,
            Sampling(),
            limit=0,
            score_from=len(prompt),
            streamed=False,
            emit_events=False,
        )
        for answer in answers
    ]


def logprob(request: Request) -> float:
    """The log-probability of the tokens that a request scored."""
    return sum(token.logprob or 0.0 for token in request.prompt_logprobs)
