"""The request schema of the completions API, which continues a prompt without a template."""

from typing import Annotated, Any

from pydantic import Field

from onebase.serving.sampling_fields import SamplingFields
from onebase.serving.text_field import Text

TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]

DEFAULT_TOKENS = 16  # OpenAI's


class CompletionRequest(SamplingFields):
    """A prompt, or several, to continue."""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=2048)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=2048)]
    ) = Field(description="A text, a list of texts, token ids, or a list of lists of token ids.")
    max_tokens: int | None = Field(
        None, ge=0, description="The most tokens to generate; 0 generates nothing."
    )
    logprobs: int | None = Field(
        None, ge=0, le=20, description="Report log-probabilities, and this many most likely tokens."
    )
    echo: bool | None = Field(
        None, description="Put the prompt before the answer, also in the log-probabilities."
    )

    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


def other_fields(body: CompletionRequest) -> dict[str, tuple[Any, ...]]:
    """Unsupported fields, besides those of all requests, with the values that have no effect."""
    return {
        "best_of": (1, body.n or 1),
        "add_special_tokens": (True,),
        "messages": ([],),
        "response_format": ({"type": "text"},),
        "max_completion_tokens": (),
    }
