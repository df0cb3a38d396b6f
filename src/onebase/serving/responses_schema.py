"""A request of the responses API, for plain text."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from onebase.serving.chat_schema import ChatMessage, ContentPart
from onebase.serving.errors import unsupported
from onebase.serving.sampling_fields import ResponseFormat, SamplingFields
from onebase.serving.text_field import Text


class InputItem(BaseModel):
    """One message of the input. Items of any other type are refused."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Text = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Text | list[ContentPart] | None = None


class TextFormat(BaseModel):
    """The format of the answer. A schema's fields stand beside the type here."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Text | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    description: Text | None = None


class TextOptions(BaseModel):
    """`format` of the answer."""

    model_config = ConfigDict(extra="allow", strict=True)

    format: TextFormat | None = None


class ResponsesRequest(SamplingFields):
    """`input` is a text or messages; `instructions` a system message before them."""

    input: Text | list[InputItem]
    instructions: Text | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextOptions | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    store: bool | None = None

    def messages(self) -> list[ChatMessage]:
        """The input as a chat's messages. Raises ApiError for an item that is not a message."""
        first = [ChatMessage(role="system", content=self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return [*first, ChatMessage(role="user", content=self.input)]
        for place, item in enumerate(self.input):
            if item.type != "message" or item.role is None:
                raise unsupported(f"input.{place}.type={item.type}")
        rest = [
            ChatMessage.model_validate({"role": item.role, "content": item.content})
            for item in self.input
        ]
        return [*first, *rest]

    def response_format(self) -> ResponseFormat | None:
        """The answer's format as a chat would say it. Raises ApiError for what is not supported."""
        if self.text is None:
            return None
        for name, value in (self.text.model_extra or {}).items():
            if value not in (None, "medium"):
                raise unsupported(f"text.{name}")
        form = self.text.format
        if form is None:
            return None
        for name, value in (form.model_extra or {}).items():
            if value is not None:
                raise unsupported(f"text.format.{name}")
        schema = {"name": form.name, "schema": form.json_schema, "strict": form.strict}
        return ResponseFormat(
            type=form.type, json_schema=schema if form.type == "json_schema" else None
        )


def other_fields() -> dict[str, tuple[Any, ...]]:
    """Fields that a response may refuse beside those that every request may."""
    return {
        "prompt": (),
        "messages": ([],),
        "max_tokens": (),
        "max_completion_tokens": (),
        "response_format": ({"type": "text"},),
        "echo": (False,),
    }
