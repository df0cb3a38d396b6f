"""The fields by which a request says how its answer is drawn, and the Sampling that they mean."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from onebase.engine.sampling import Sampling
from onebase.language import say
from onebase.serving.errors import bad_field
from onebase.serving.text_field import Text

SEEDS = 1 << 63
_MOST = (1 << 31) - 1
StopText = Annotated[Text, Field(min_length=1, max_length=1000)]


class StreamOptions(BaseModel):
    """What a stream holds besides the text. `include_usage`: token counts, in a last chunk."""

    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None


class SamplingFields(BaseModel):
    """What chats and completions have in common. Null is as good as leaving a field out."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: Text = Field(max_length=256, description="A task, task@version, or base.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy; 1 by default.")
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="0 and -1 cut nothing.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)]
        | None
    ) = None
    seed: int | None = Field(None, ge=-SEEDS, lt=SEEDS)
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    min_tokens: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = None
    metadata: dict[Text, Text] | None = None

    def sampling(self, max_tokens: int, logprobs: int | None) -> Sampling:
        """How the first of the answers is drawn. Raises ApiError for a text that is not a token id."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        top_k = min(max(self.top_k or 0, 0), _MOST)
        top_p = 1.0 if self.top_p is None else self.top_p
        if top_p == 0:  # nothing but the most likely token is left
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


def seeded(sampling: Sampling, choice: int) -> Sampling:
    """The sampling of a request's `choice`-th answer: each has draws of its own."""
    if sampling.seed is None or choice == 0:
        return sampling
    return sampling.model_copy(update={"seed": (sampling.seed + choice) % SEEDS})


def _bias(given: dict[str, float]) -> dict[int, float]:
    biased = {}
    for text, value in given.items():
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            raise bad_field(
                "logit_bias",
                say(f"{text!r} is not a token id.", f"{text!r} 不是词元编号。"),
                say("Give token ids as keys.", "请以词元编号为键。"),
            )
        biased[int(text)] = value
    return biased


class ResponseFormat(BaseModel):
    """What an answer must look like: any text, any JSON object, or JSON that a schema allows."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None
