"""Answers as rows of the one pass, and what a pass says of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onebase.data.template import Rendered
from onebase.engine.forward import PassOutput
from onebase.engine.rows import PackedRows, TokenRow, even_groups


@dataclass(frozen=True)
class Answered:
    """The tokens of a prompt, and of its answer with its end token where it came to an end."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All of its tokens."""
        return self.prompt + self.answer

    def written_by(self, adapter: str | None) -> TokenRow:
        """A row that asks for the log-probability of every token of the answer."""
        learned = (False,) * len(self.prompt) + (True,) * len(self.answer)
        return TokenRow(adapter, self.ids, learned)

    def valued_by(self, adapter: str) -> TokenRow:
        """A row that asks for the state before every token of the answer, without the policy's own
        virtual tokens inside the prompt.
        """
        prompt = tuple(token for token in self.prompt if token >= 0)
        ids, begin = prompt + self.answer, len(prompt) - 1
        spots = tuple(range(begin, begin + len(self.answer)))
        return TokenRow(adapter, ids, (False,) * len(ids), spots)

    def scored_by(self, adapter: str) -> TokenRow:
        """A row that asks for the state of the last token."""
        return TokenRow(adapter, self.ids, (False,) * len(self.ids), (len(self.ids) - 1,))


def answered(rendered: Rendered) -> Answered:
    """The last answer of an example, and all that stands before it as its prompt."""
    return Answered(rendered.ids[: rendered.begin], rendered.ids[rendered.begin :])


def by_row(output: PassOutput, placed: PackedRows, rows: int) -> Tensor:
    """The log-probability of each row's labels, summed, [rows]."""
    total = torch.zeros(rows, device=output.losses.device)
    return total.index_add(0, placed.row.to(total.device), -output.losses)


def tokens_by_row(values: Tensor, row_of: Tensor, rows: Sequence[int]) -> Tensor:
    """Values of single tokens, `row_of` saying whose each is, as [rows, longest], padded with 0."""
    own = row_of.to(values.device)
    return pad_sequence([values[own == row] for row in rows], batch_first=True)


def mask_of(answers: Sequence[Answered], device: torch.device) -> Tensor:
    """Where each answer has a token, [answers, longest]."""
    ones = [torch.ones(len(item.answer), dtype=torch.bool) for item in answers]
    return pad_sequence(ones, batch_first=True).to(device)


def packs(units: Sequence[Sequence[TokenRow]], tokens: int) -> Iterator[range]:
    """Units of rows that must be in one pass, in their order: the indices of those in each pass, of
    about `tokens` tokens, as `even_groups` has them.
    """
    return even_groups([sum(len(row.ids) for row in unit) for unit in units], tokens)
