"""The sampling parameters of a request."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from onebase.engine.constraint import Constraint


class Sampling(BaseModel):
    """The sampling parameters of a request, applied in vLLM's order: constraint, bias, penalties,
    temperature, min_p, top_k, top_p.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_tokens: int = Field(128, ge=1, description="the most tokens to generate")
    min_tokens: int = Field(0, ge=0, description="no end token is sampled before this many tokens")
    temperature: float = Field(0.0, ge=0, description="divides the logits; 0 is greedy")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="after top_k, keeps the fewest most likely tokens that hold this share of the "
        "probability; 1 keeps all",
    )
    top_k: int = Field(
        0,
        ge=0,
        lt=1 << 31,
        description="after min_p, keeps this many most likely tokens; 0 keeps all",
    )
    min_p: float = Field(
        0.0,
        ge=0,
        le=1,
        description="drops tokens less likely than this fraction of the most likely one; 0 drops none",
    )
    repetition_penalty: float = Field(
        1.0,
        ge=0.01,
        le=100,
        description="for tokens of the prompt and the answer, divides positive logits and multiplies "
        "negative ones (Keskar et al. 2019)",
    )
    frequency_penalty: float = Field(
        0.0,
        ge=-2,
        le=2,
        description="subtracted from a token's logit for each time it is in the answer (OpenAI)",
    )
    presence_penalty: float = Field(
        0.0,
        ge=-2,
        le=2,
        description="subtracted once from the logit of a token that is in the answer (OpenAI)",
    )
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] = Field(
        default={}, description="added to the logits, by token id"
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=1 << 63,
        description="makes the samples reproducible, whatever else is in the batch",
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="texts that end the answer, which does not include them"
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="report each token's log-probability and those of this many most likely tokens, "
        "under the model's own distribution (before bias, penalties and temperature)",
    )
    constraint: Constraint | None = Field(
        None, description="the format that the answer must have: JSON, or a value of a JSON schema"
    )

    @property
    def penalized(self) -> bool:
        """Whether any penalty is in use."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1, 0, 0)
