"""The request schema of the chat API."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from onebase.data.example import Turn
from onebase.language import say
from onebase.serving.errors import ApiError, bad_field, unsupported
from onebase.serving.sampling_fields import ResponseFormat, SamplingFields
from onebase.serving.text_field import Text


class ContentPart(BaseModel):
    """A part of a message. Only text is supported."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Text
    text: Text | None = None


class ChatMessage(BaseModel):
    """One message. The text parts of a list are joined."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[ContentPart] | None = None


class ChatRequest(SamplingFields):
    """A conversation that ends with a user's message."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, description="The most tokens to generate.")
    max_completion_tokens: int | None = Field(
        None, ge=1, description="As max_tokens, over which it takes precedence."
    )
    logprobs: bool | None = Field(None, description="Report each token's log-probability.")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="Also report those of this many most likely tokens."
    )
    response_format: ResponseFormat | None = None

    @property
    def token_limit(self) -> int | None:
        """The most tokens to generate; None if the request sets no limit."""
        return self.max_completion_tokens or self.max_tokens

    def requested_logprobs(self) -> int | None:
        """How many likely tokens to report with each token; None: no log-probabilities.

        Raises ApiError for `top_logprobs` without `logprobs`.
        """
        if not self.logprobs:
            if self.top_logprobs:
                raise bad_field(
                    "top_logprobs",
                    say("top_logprobs needs logprobs: true.", "top_logprobs 需要 logprobs: true。"),
                    say("Set logprobs to true.", "请将 logprobs 设为 true。"),
                )
            return None
        return self.top_logprobs or 0


def turns_of(messages: list[ChatMessage], field: str = "messages", first: int = 0) -> list[Turn]:
    """The messages as turns. Raises ApiError for tools, images and all other content that is not text.
    The error's `param` is `field.N`, where N counts from `messages[first]`.
    """
    return [
        Turn(_role(message, path), _text(message, path))
        for path, message in (
            (f"{field}.{index - first}", message) for index, message in enumerate(messages)
        )
    ]


def _role(message: ChatMessage, path: str) -> Literal["system", "user", "assistant"]:
    for field in ("tool_calls", "function_call", "audio"):
        if (message.model_extra or {}).get(field):
            raise unsupported(f"{path}.{field}")
    if message.role in ("tool", "function"):
        raise unsupported(f"{path}.role={message.role}")
    return "system" if message.role == "developer" else message.role  # type: ignore[return-value]


def _text(message: ChatMessage, path: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if not message.content:
        raise _empty(path)
    return "".join(
        _part(part, f"{path}.content.{index}") for index, part in enumerate(message.content)
    )


def _part(part: ContentPart, path: str) -> str:
    if part.type not in ("text", "input_text", "output_text"):
        raise unsupported(f"{path}.type={part.type}")
    if part.text is None:
        raise bad_field(
            f"{path}.text",
            say("A text part has no text.", "文本片段没有 text。"),
            say("Add a text.", "请填写 text。"),
        )
    return part.text


def _empty(path: str) -> ApiError:
    return bad_field(
        f"{path}.content",
        say("A message has no content.", "消息没有内容。"),
        say("Add a text.", "请填写文本。"),
    )


# Unsupported fields, besides those of all requests, with the values that have no effect.
OTHER_FIELDS: dict[str, tuple[Any, ...]] = {
    "echo": (False,),
    "add_special_tokens": (False,),
    "suffix": ("",),
    "prompt": (),
}
