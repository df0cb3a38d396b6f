"""The type of text fields in requests."""

from typing import Annotated

from pydantic import AfterValidator

from onebase.language import say


def _without_surrogates(text: str) -> str:
    """`text`. Raises ValueError for a lone surrogate: JSON can express one (`\\ud800`), UTF-8 cannot."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                say("the text has a lone surrogate", "文本中有不成对的代理项")
            ) from error
    return text


Text = Annotated[str, AfterValidator(_without_surrogates)]
