"""A request of the completions API: text goes on from a prompt, with no template around it."""

from typing import Annotated, Any

from pydantic import Field

from onebase.serving.sampling_fields import SamplingFields
from onebase.serving.text_field import Text

TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]

DEFAULT_TOKENS = 16  # OpenAI's


class CompletionRequest(SamplingFields):
    """`prompt` is a text, a list of texts, token ids, or a list of lists of them.

    With `echo` the prompt stands before the answer, in its log-probabilities too; with `max_tokens`
    0 nothing is generated.
    """

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=2048)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=2048)]
    )
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


def other_fields(body: CompletionRequest) -> dict[str, tuple[Any, ...]]:
    """Fields that a completion may refuse beside those that every request may."""
    return {
        "best_of": (1, body.n or 1),
        "add_special_tokens": (True,),
        "messages": ([],),
        "response_format": ({"type": "text"},),
        "max_completion_tokens": (),
    }
