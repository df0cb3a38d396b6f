"""The engine: one base in memory answering for every loaded task, mixed in any batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from onebase.adapters.full import FULL
from onebase.adapters.peft_format import load_adapter
from onebase.adapters.store import StoredAdapter
from onebase.data.example import Turn
from onebase.data.template import Template
from onebase.engine.generation import Batch, FinishReason, Stream
from onebase.engine.pool import BASE_TASK, AdapterPool, LoadedTask
from onebase.engine.rows import TokenRow, by_budget, token_losses
from onebase.engine.sampling import Sampling
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base

Prompt = str | Sequence[Turn]
SCORING_TOKENS = 2048


@dataclass(frozen=True)
class Answer:
    """One answer. `prompt` is the text the model saw, `tokens` the answer's length; `margin` the
    smallest distance between the two best logits on the way, 0 where one token led by nothing.
    """

    task: str
    version: int
    prompt: str
    text: str
    tokens: int
    finish_reason: FinishReason
    margin: float


@dataclass(frozen=True)
class LabelScore:
    """A label's log-probability (nats, the end token included) and its share among the labels."""

    label: str
    logprob: float
    probability: float


class Engine:
    """Answers for the tasks of `adapters`, and for `base`. A task of full fine-tuning brings a
    base of its own into memory.

    Raises UsageError when an adapter was trained on another base, CorruptFileError when its
    files are damaged.
    """

    def __init__(
        self, base: Base, adapters: Iterable[StoredAdapter] = (), *, slots: int = 64
    ) -> None:
        self.base = base
        self.tasks = AdapterPool(base)
        self._slots = slots
        for adapter in adapters:
            self.load(adapter)

    def load(self, adapter: StoredAdapter, *, name: str | None = None) -> LoadedTask:
        """Load a stored adapter into the running engine under its task's name, or `name`."""
        record = adapter.record
        trained_on = record.get("base_fingerprint")
        if adapter.method != FULL and trained_on and trained_on != self.base.fingerprint:
            raise UsageError(
                say(
                    f"{adapter.task}@{adapter.version} was trained on {record.get('base')}, "
                    f"not on {self.base.name}.",
                    f"{adapter.task}@{adapter.version} 是在 {record.get('base')} 上训练的，"
                    f"而不是 {self.base.name}。",
                ),
                say(
                    f"Load it with --base {record.get('base')}, or train the task on this base.",
                    f"请用 --base {record.get('base')} 加载，或在该基座上重新训练。",
                ),
            )
        if record.get("head"):
            raise UsageError(
                say(
                    f"{adapter.name} is a reward model: it scores answers and gives none.",
                    f"{adapter.name} 是奖励模型：它为回答打分，不生成回答。",
                ),
                say(
                    f"Score answers with: onebase align score --task {adapter.task}.",
                    f"请用它打分：onebase align score --task {adapter.task}。",
                ),
            )
        template = Template.from_config(self.base.tokenizer, record.get("template") or {})
        labels = tuple(record.get("labels") or ())
        if adapter.method == FULL:
            own = self.base
            if own.path != adapter.path:
                own = Base.load(str(adapter.path), device=str(self.base.device))
            return self.tasks.load_full(
                name or adapter.task, own, template, version=adapter.version, labels=labels
            )
        return self.tasks.load(
            name or adapter.task,
            load_adapter(Path(adapter.path), self.base),
            template,
            version=adapter.version,
            labels=labels,
            folder=Path(adapter.path),
        )

    def generate(
        self,
        requests: Sequence[tuple[str, Prompt]],
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """Answer (task, prompt) pairs in one mixed batch, in the order asked.

        A request's draws depend on `sampling.seed` and its place in the list alone.
        Raises UsageError for an unknown task or an empty prompt.
        """
        sampling = sampling or Sampling()
        loaded = [self.tasks[task] for task, _ in requests]
        streams = []
        batches: dict[Base, Batch] = {}
        for index, ((name, prompt), task) in enumerate(zip(requests, loaded, strict=True)):
            own = (
                sampling
                if sampling.seed is None
                else sampling.model_copy(update={"seed": sampling.seed + index})
            )
            ids = tuple(task.template.prompt(_checked(prompt)))
            own = self._within_context(task, len(ids), own)
            stream = Stream(None if name == BASE_TASK else name, ids, own)
            streams.append(stream)
            if task.base not in batches:
                batches[task.base] = Batch(task.base, self.tasks.contributions(), slots=self._slots)
            batches[task.base].submit(stream)
        for batch in batches.values():
            while not batch.idle:
                batch.step()
        return [
            Answer(
                task=task.task,
                version=task.version,
                prompt=task.template.prompt_text(prompt),
                text=stream.text.strip(),
                tokens=len(stream.tokens),
                finish_reason=stream.finish_reason or "length",
                margin=min(stream.margins, default=0.0),
            )
            for stream, task, (_, prompt) in zip(streams, loaded, requests, strict=True)
        ]

    def _within_context(self, task: LoadedTask, tokens: int, sampling: Sampling) -> Sampling:
        """`sampling` with no more tokens than the base's context has room for after a prompt."""
        context = self.base.context
        room = sampling.max_tokens
        if context is not None:
            room = context - task.contribution.prefix_tokens - tokens
        if room < 1:
            raise UsageError(
                say(
                    f"The prompt has {tokens} tokens, more than {self.base.context_text} leaves room "
                    "for.",
                    f"提示有 {tokens} 个词元，超出 {self.base.context_text}。",
                ),
                say("Shorten the prompt.", "请缩短提示。"),
            )
        return sampling.model_copy(update={"max_tokens": min(sampling.max_tokens, room)})

    def classify(
        self, task: str, texts: Sequence[str], labels: Sequence[str] | None = None
    ) -> list[list[LabelScore]]:
        """Every label's log-probability for each text, best first; nothing is sampled.

        `labels` defaults to those the task was trained with. Raises UsageError where there are
        none.
        """
        loaded = self.tasks[task]
        names = tuple(labels or loaded.labels)
        if not names:
            raise UsageError(
                say(f"The task {task!r} has no labels.", f"任务 {task!r} 没有标签。"),
                say(
                    "Train it on rows with text and label, or name labels.",
                    "请用含 text 与 label 的数据训练，或给出标签。",
                ),
            )
        adapter = None if task == BASE_TASK else task
        rows = []
        for text in texts:
            prompt = tuple(loaded.template.prompt(_checked(text)))
            for label in names:
                answer = tuple(loaded.template.answer_ids(label))
                learned = (False,) * len(prompt) + (True,) * len(answer)
                rows.append(TokenRow(adapter, prompt + answer, learned))
        sums = self._sums(loaded.base, rows)
        return [
            _ranked(names, sums[at : at + len(names)]) for at in range(0, len(sums), len(names))
        ]

    def _sums(self, base: Base, rows: Sequence[TokenRow]) -> list[float]:
        """The log-probability of each row's labelled tokens."""
        contributions = self.tasks.contributions()
        sums: list[float] = []
        for group in by_budget(rows, SCORING_TOKENS):
            with torch.inference_mode():
                losses, row_of = token_losses(base, group, contributions)
                total = torch.zeros(len(group), device=losses.device)
                sums += (-total.index_add_(0, row_of, losses)).tolist()
        return sums


def _checked(prompt: Prompt) -> Prompt:
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise UsageError(
            say("The prompt is empty.", "提示内容为空。"),
            say("Give a text to answer.", "请给出要回答的文本。"),
        )
    return prompt


def _ranked(labels: Sequence[str], sums: Sequence[float]) -> list[LabelScore]:
    shares = torch.tensor(sums, dtype=torch.float64).softmax(0).tolist()
    scores = [
        LabelScore(label, logprob, share)
        for label, logprob, share in zip(labels, sums, shares, strict=True)
    ]
    return sorted(scores, key=lambda score: score.logprob, reverse=True)
