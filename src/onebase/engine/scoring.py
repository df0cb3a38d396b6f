"""Log-probabilities of the tokens of a prompt."""

import math

import numpy as np
from torch import Tensor

from onebase.engine.distribution import Floats, best, best_two, spread
from onebase.engine.request import Request, Token


def score_prompt(request: Request, logits: Tensor, first: int) -> bool:
    """Add to `request.prompt_logprobs` the prompt's tokens from index `first` on, each predicted by
    its row of `logits`, [tokens, vocabulary]: with `sampling.logprobs` alternatives. False where the
    logits are not finite.
    """
    rows: Floats = logits.float().cpu().contiguous().numpy()
    count = request.sampling.logprobs or 0
    greedy, values = np.empty(len(rows), np.int64), np.empty((len(rows), 2), np.float32)
    best_two(rows, greedy, values)
    tokens, tops = np.empty(count, np.int64), np.empty(count, np.float32)
    for at, row in enumerate(rows):
        highest = float(values[at, 0])
        if greedy[at] < 0 or not math.isfinite(highest):
            return False
        total = highest + spread(row, highest, 1.0)[0]
        token = request.prompt[first + at]
        found = best(row, count, tokens, tops) if count else 0
        top = zip(tokens[:found].tolist(), (tops[:found] - total).tolist(), strict=True)
        logprob = float(row[token]) - total if token >= 0 else None
        request.prompt_logprobs.append(Token(token, logprob, tuple(top)))
    return True
