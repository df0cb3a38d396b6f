"""Answers as rows of a pass, and the numbers of a pass by answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onebase.data.template import Rendered
from onebase.engine.forward import PassOutput
from onebase.engine.rows import PackedRows, TokenRow, even_groups


@dataclass(frozen=True)
class PromptAnswer:
    """The tokens of a prompt, and of an answer to it, with the end token where the answer ended."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens."""
        return self.prompt + self.answer

    def logprob_row(self, adapter: str | None) -> TokenRow:
        """A row that asks for the log-probability of every token of the answer under `adapter`."""
        loss_mask = (False,) * len(self.prompt) + (True,) * len(self.answer)
        return TokenRow(adapter, self.ids, loss_mask)

    def value_row(self, adapter: str) -> TokenRow:
        """A row that asks for the hidden state before every token of the answer, without the policy's
        virtual tokens inside the prompt.
        """
        prompt = tuple(token for token in self.prompt if token >= 0)
        ids, begin = prompt + self.answer, len(prompt) - 1
        positions = tuple(range(begin, begin + len(self.answer)))
        return TokenRow(adapter, ids, (False,) * len(ids), positions)

    def score_row(self, adapter: str) -> TokenRow:
        """A row that asks for the hidden state of the last token."""
        return TokenRow(adapter, self.ids, (False,) * len(self.ids), (len(self.ids) - 1,))


def prompt_answer(rendered: Rendered) -> PromptAnswer:
    """The last answer of an example; everything before it is its prompt."""
    return PromptAnswer(rendered.ids[: rendered.begin], rendered.ids[rendered.begin :])


def sum_by_row(output: PassOutput, placed: PackedRows, rows: int) -> Tensor:
    """The log-probability of each row's labels, summed, [rows]."""
    total = torch.zeros(rows, device=output.losses.device)
    return total.index_add(0, placed.row.to(total.device), -output.losses)


def pad_by_row(values: Tensor, row_of: Tensor, rows: Sequence[int]) -> Tensor:
    """Values of single tokens, of the rows `row_of`, as [rows, longest], padded with 0."""
    row_of = row_of.to(values.device)
    return pad_sequence([values[row_of == row] for row in rows], batch_first=True)


def answer_mask(answers: Sequence[PromptAnswer], device: torch.device) -> Tensor:
    """True where an answer has a token, [answers, longest]."""
    ones = [torch.ones(len(item.answer), dtype=torch.bool) for item in answers]
    return pad_sequence(ones, batch_first=True).to(device)


def packs(units: Sequence[Sequence[TokenRow]], tokens: int) -> Iterator[range]:
    """Indices of the units in each pass of about `tokens` tokens, in their order; the rows of a unit must
    be in one pass (see `even_groups`).
    """
    return even_groups([sum(len(row.ids) for row in unit) for unit in units], tokens)
