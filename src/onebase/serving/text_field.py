"""A text in a request."""

from typing import Annotated

from pydantic import AfterValidator

from onebase.language import say


def _whole(text: str) -> str:
    """`text`, unless it has half of a character: JSON can spell one (`\\ud800`), UTF-8 can't."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                say("the text has half of a surrogate pair", "文本中含有不成对的代理项")
            ) from error
    return text


Text = Annotated[str, AfterValidator(_whole)]
