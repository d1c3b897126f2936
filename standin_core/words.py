"""Parts of sentences that people read."""
from __future__ import annotations

LONGEST = 256  # characters of a foreign text in a sentence


def counted(count: int, what: str) -> str:
    """A number with its word, as in "1 step" and "2 steps".

    what: in the singular, of a word whose plural ends in s.
    """
    return f"{count} {what}{'' if count == 1 else 's'}"


def shown(text: object) -> str:
    """A foreign text as a part of a sentence: printable, and cut off after LONGEST characters."""
    words = str(text)
    return printable(words if len(words) <= LONGEST else f"{words[:LONGEST]}...")


def printable(text: str) -> str:
    """The text in one line that UTF-8 can hold; a file name may hold anything, bytes that are not UTF-8 too."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
