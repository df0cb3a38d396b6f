"""Training a reward model: an adapter with a scalar head that scores answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onebase.adapters.option import option
from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align.answers import packs
from onebase.align.job import AlignJob
from onebase.align.losses import bradley_terry
from onebase.align.preference_data import PreferenceData, PreferenceRow
from onebase.align.preference_training import PreferenceOptions, PreferenceTraining, set_up
from onebase.align.reward_metrics import ScoreReport, pairs_of, report
from onebase.engine.rows import read_rows
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.observer import Observer
from onebase.training.loop import pack_tokens

DEFAULT_METHOD = "lora"
SCORE = "reward"  # the one adapter in these passes


class RewardOptions(PreferenceOptions):
    """How a reward model is trained on pairs or rated answers."""

    epochs: int = option(2, "Passes over the training rows.", "训练数据的遍数。", ge=1, le=1000)
    batch_size: int = option(16, "Rows a step.", "每步的行数。", ge=1)
    learning_rate: float | None = option(
        None,
        "Peak learning rate; by default the method's own.",
        "学习率峰值；默认为方法自身的学习率。",
        gt=0,
    )
    head_rate: float = option(
        1e-3, "Learning rate of the scalar head.", "标量输出头的学习率。", gt=0
    )
    max_tokens: int = option(
        256,
        "Tokens of the longest row; longer rows are cut.",
        "每行的最大词元数，超出部分被截断。",
        ge=8,
    )
    margin: float = option(
        1.0,
        "Smallest difference of two held-out ratings that count as a pair.",
        "两个留出评分至少相差多少才算一个偏好对。",
        gt=0,
    )


def train_reward(
    job: AlignJob,
    *,
    base: Base,
    workspace: Workspace | None = None,
    observer: Observer | None = None,
    restart: bool = False,
    run_id: str | None = None,
) -> StoredAdapter:
    """Train on pairs (Bradley-Terry loss) or ratings (squared error of standardised ratings), and store
    the model as the task's next version.

    An interrupted run of the same job continues, unless `restart`; with a `run_id` it must be that run.
    Raises UsageError or DataError before the first step, Interrupted after Ctrl-C.
    """
    workspace = workspace or Workspace()
    job = replace(job, method=job.method or DEFAULT_METHOD)
    job.check_settings(str(job.method), RewardOptions)
    setup = set_up(
        "reward",
        job,
        RewardOptions,
        ("pairs", "ratings"),
        base,
        workspace,
        restart=restart,
        run_id=run_id,
        scored=True,
    )
    training = PreferenceTraining(base, setup, rate=1.0, head_rate=setup.options.head_rate)
    scale = RatingScale.of(setup.data)
    reports: dict[int, ScoreReport] = {}  # by step

    def evaluate_rows(rows: list[PreferenceRow]) -> dict[str, float]:
        record, reports[training.step] = evaluate(training, scale, rows)
        return record

    with setup.session(base, workspace, observer) as run:
        training.train(
            run,
            str(job.method),
            lambda batch: _step(training, scale, [setup.data.train[index] for index in batch]),
            evaluate_rows,
            evaluate_first=False,
        )
        scores = reports.get(int(training.best.get("step", -1)))
        if scores is None:  # the best state is that of an earlier session
            training.trainable.load_best()
            _, scores = evaluate(training, scale, setup.data.held_out)
        record = {
            "head": SCORE,
            "metrics": {
                "base_eval_loss": None,
                "pair_accuracy": scores.accuracy,
                "pairs": scores.pairs,
                "calibration_error": scores.calibration_error,
                "score_mean": scores.mean,
                "score_deviation": scores.std,
                "rating_mean": scale.mean,
                "rating_deviation": scale.std,
            },
        }
        stored = training.store(run, workspace, record)
        run.summary = {"adapters": [stored.name], **scores.to_dict()}
    return stored


@dataclass(frozen=True)
class RatingScale:
    """The mean and standard deviation by which ratings are standardised."""

    mean: float
    std: float

    @classmethod
    def of(cls, data: PreferenceData) -> "RatingScale":
        """That of the training rows."""
        ratings = torch.tensor([row.rating for row in data.train], dtype=torch.float64)
        std = float(ratings.std(correction=0))
        if data.source.kind == "ratings" and not std > 0:
            raise UsageError(
                say(
                    f"Every rating in {data.source.path} is {ratings[0]:g}.",
                    f"{data.source.path} 中的评分全部为 {ratings[0]:g}。",
                ),
                say("Add answers with other ratings.", "请提供评分不同的回答。"),
            )
        return cls(float(ratings.mean()), std or 1.0)


def _step(
    training: PreferenceTraining[RewardOptions], scale: RatingScale, rows: list[PreferenceRow]
) -> dict[str, float]:
    """Accumulate the gradients of a batch; returns its mean loss."""
    training.trainable.adapter.train()
    total = 0.0
    for scores, group in _scores(training, rows, pack_tokens(training.base.device)):
        loss = _losses(scores, group, scale).sum() / len(rows)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return {"loss": total}


def _losses(scores: Tensor, rows: Sequence[PreferenceRow], scale: RatingScale) -> Tensor:
    """The loss of every row from the scores of its answers, in order."""
    if len(rows[0].answers) == 2:
        return bradley_terry(scores[0::2], scores[1::2])
    ratings = torch.tensor([(row.rating - scale.mean) / scale.std for row in rows])
    return (scores - ratings.to(scores)).square()


def _scores(
    training: PreferenceTraining[RewardOptions], rows: Sequence[PreferenceRow], tokens: int
) -> Iterator[tuple[Tensor, list[PreferenceRow]]]:
    """For every pass: the scores of its answers in order, and its rows."""
    trainable = training.trainable
    units = [[answer.score_row(SCORE) for answer in row.answers] for row in rows]
    for group in packs(units, tokens):
        token_rows = [row for index in group for row in units[index]]
        output, _ = read_rows(training.base, token_rows, {SCORE: trainable.contribution()})
        yield trainable.head(output.states), [rows[index] for index in group]


def evaluate(
    training: PreferenceTraining[RewardOptions], scale: RatingScale, rows: list[PreferenceRow]
) -> tuple[dict[str, float], ScoreReport]:
    """The held-out loss and pair accuracy of the present state, and the report on its scores."""
    training.trainable.adapter.eval()
    with torch.no_grad():
        passes = list(_scores(training, rows, 2 * pack_tokens(training.base.device)))
        losses = torch.cat([_losses(scores, group, scale) for scores, group in passes])
    scores = torch.cat([scores for scores, _ in passes])
    if training.data.source.kind == "pairs":
        better, worse = list(range(0, 2 * len(rows), 2)), list(range(1, 2 * len(rows), 2))
    else:
        better, worse = pairs_of([row.rating for row in rows], training.options.margin)
    result = report(scores, better, worse)
    return {"eval_loss": float(losses.mean()), "pair_accuracy": result.accuracy}, result
