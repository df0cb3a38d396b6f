"""A chat's answer without the white space around it, as it streams."""


class Trimmed:
    """What is given out of the text so far: white space at its end waits for what follows."""

    def __init__(self) -> None:
        self._begun = False
        self._held = ""

    def add(self, text: str) -> str:
        """What can be given out now that `text` has come."""
        text = self._held + text
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        visible = text.rstrip()
        self._held = text[len(visible) :]
        return visible
