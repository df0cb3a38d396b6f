"""str.strip() for a text that arrives in parts."""


class StreamingStrip:
    """Removes the white space around a streamed text. White space at the end of the text so far is
    held back until other text follows.
    """

    def __init__(self) -> None:
        self._has_text = False
        self._held = ""

    def add(self, text: str) -> str:
        """Add the next part; returns what becomes visible."""
        text = self._held + text
        if not self._has_text:
            text = text.lstrip()
            self._has_text = bool(text)
        visible = text.rstrip()
        self._held = text[len(visible) :]
        return visible
