"""Log-probabilities of the tokens of a prompt."""

import math

import numpy as np
from torch import Tensor

from onebase.engine.distribution import Floats, log_sum_exp_and_mean, top_tokens, top_two
from onebase.engine.request import Request, Token


def score_prompt(request: Request, logits: Tensor, first: int) -> bool:
    """Append the prompt's tokens from index `first` on to `request.prompt_logprobs`, each with
    `sampling.logprobs` alternatives. Row i of `logits`, [tokens, vocabulary], predicts token
    `first` + i. Returns False if logits are not finite.
    """
    rows: Floats = logits.float().cpu().contiguous().numpy()
    count = request.sampling.logprobs or 0
    greedy, values = np.empty(len(rows), np.int64), np.empty((len(rows), 2), np.float32)
    top_two(rows, greedy, values)
    tokens, tops = np.empty(count, np.int64), np.empty(count, np.float32)
    for index, row in enumerate(rows):
        highest = float(values[index, 0])
        if greedy[index] < 0 or not math.isfinite(highest):
            return False
        normalizer = highest + log_sum_exp_and_mean(row, highest, 1.0)[0]
        token = request.prompt[first + index]
        size = top_tokens(row, count, tokens, tops) if count else 0
        top = zip(tokens[:size].tolist(), (tops[:size] - normalizer).tolist(), strict=True)
        logprob = float(row[token]) - normalizer if token >= 0 else None
        request.prompt_logprobs.append(Token(token, logprob, tuple(top)))
    return True
