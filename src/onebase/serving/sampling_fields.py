"""The sampling fields that all generation requests share, and their conversion to Sampling."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from onebase.engine.sampling import Sampling
from onebase.language import say
from onebase.serving.errors import bad_field
from onebase.serving.text_field import Text

SEEDS = 1 << 63
_MAX_TOP_K = (1 << 31) - 1
StopText = Annotated[Text, Field(min_length=1, max_length=1000)]


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = Field(None, description="Send the token counts in a last chunk.")


class SamplingFields(BaseModel):
    """The fields that all generation requests share. Null is the same as leaving a field out."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: Text = Field(max_length=256, description="A task, task@version, or base.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy; 1 by default.")
    top_p: float | None = Field(
        None, ge=0, le=1, description="Keep the most likely tokens that hold this probability."
    )
    top_k: int | None = Field(
        None, ge=-1, description="Keep this many most likely tokens; 0 and -1 keep all."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Drop tokens less likely than this fraction of the best one."
    )
    repetition_penalty: float | None = Field(
        None, ge=0.01, le=10, description="Above 1, makes tokens of prompt and answer less likely."
    )
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="Subtracted from a logit for each time it was generated."
    )
    presence_penalty: float | None = Field(
        None, ge=-2, le=2, description="Subtracted once from the logit of a generated token."
    )
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)]
        | None
    ) = Field(None, description="Added to the logits, by token id.")
    seed: int | None = Field(
        None, ge=-SEEDS, lt=SEEDS, description="Makes the answer reproducible."
    )
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = Field(
        None, description="Texts that end the answer, which does not include them."
    )
    min_tokens: int | None = Field(
        None, ge=0, description="The answer does not end before this many tokens."
    )
    n: int | None = Field(None, ge=1, le=128, description="How many answers to generate.")
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    stream_options: StreamOptions | None = None
    user: Text | None = Field(None, description="Returned by the responses API; otherwise ignored.")
    metadata: dict[Text, Text] | None = Field(
        None, description="Returned by the responses API; otherwise ignored."
    )

    def sampling(self, max_tokens: int, logprobs: int | None) -> Sampling:
        """The sampling parameters of the first answer. Raises ApiError for an invalid token id."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        top_k = min(max(self.top_k or 0, 0), _MAX_TOP_K)
        top_p = 1.0 if self.top_p is None else self.top_p
        if top_p == 0:  # only the most likely token
            top_k, top_p = 1, 1.0
        return Sampling(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens or 0,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=_bias(self.logit_bias or {}),
            logprobs=logprobs,
            seed=None if self.seed is None else self.seed % SEEDS,
            stop=tuple(stop or ()),
        )


def sampling_of_choice(sampling: Sampling, choice: int) -> Sampling:
    """The sampling parameters of a request's `choice`-th answer, with its own seed."""
    if sampling.seed is None or choice == 0:
        return sampling
    return sampling.model_copy(update={"seed": (sampling.seed + choice) % SEEDS})


def _bias(fields: dict[str, float]) -> dict[int, float]:
    """`logit_bias` by token id. Raises ApiError for an invalid token id."""
    bias = {}
    for text, value in fields.items():
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            raise bad_field(
                "logit_bias",
                say(f"{text!r} is not a token id.", f"{text!r} 不是词元编号。"),
                say("Use token ids as keys.", "请用词元编号作为键。"),
            )
        bias[int(text)] = value
    return bias


class ResponseFormat(BaseModel):
    """The format of an answer: any text, any JSON object, or JSON that conforms to a schema."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = Field(None, description="An object with the `schema`.")
