"""How an answer is drawn: what a request may choose."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from onebase.engine.constraint import Constraint


class Sampling(BaseModel):
    """How an answer is drawn.

    An answer ends before any of the `stop` texts, at an end token, or after `max_tokens`; no end
    token is drawn before `min_tokens`. `temperature` 0 is greedy. Of the distribution at the
    temperature, `min_p` drops the tokens less likely than that share of the best one, then `top_k`
    keeps the best so many, then `top_p` the fewest that hold that share of the rest (vLLM's order);
    0, 0 and 1 drop nothing. A `seed` makes a request's draws its own, whatever else is in the batch.

    `logit_bias` is added to the logits of the tokens named. `repetition_penalty` divides the
    positive logits of tokens in prompt and answer and multiplies the negative ones (Keskar et al.
    2019); `frequency_penalty` is subtracted for each time a token is in the answer,
    `presence_penalty` once for a token that is there (OpenAI's definition).

    With `logprobs` a token comes with its log-probability and those of the best so many tokens, of
    the model's own distribution: before temperature, penalties and bias. `constraint` is a form that
    the answer must have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_tokens: int = Field(128, ge=1)
    min_tokens: int = Field(0, ge=0)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, lt=1 << 31)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] = {}
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    logprobs: int | None = Field(None, ge=0, le=20)
    constraint: Constraint | None = None

    @property
    def penalized(self) -> bool:
        """Whether what was said changes what comes."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1, 0, 0)
