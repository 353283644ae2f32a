"""Words of users against the words we know."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable

from scisparse.errors import OptionError

__all__ = ["check_name", "choice", "stands_for"]


def check_name(argument: str, given: object) -> None:
    """Raise :class:`OptionError` unless `given` is a word, as names of variables are."""
    if not isinstance(given, str):
        raise OptionError(f"`{argument}` is {given!r}; it must be the name of one variable")


def choice(argument: str, given: object, known: Iterable[str]) -> str:
    """Write an error for a word that is not known, with the nearest one that is.

    Examples
    --------
    >>> choice("method", "rigel", ["set", "rigl"])
    "`method` is 'rigel'; did you mean 'rigl'? The choices are 'set', 'rigl'"
    """
    words = list(known)
    near = difflib.get_close_matches(str(given), words, n=1, cutoff=0.5)
    hint = f" did you mean {near[0]!r}?" if near else ""
    start = f"`{argument}` is {given!r};{hint}"
    listed = ", ".join(map(repr, words)) if words else "none"
    return f"{start} {'The' if hint else 'the'} choices are {listed}"


def stands_for(word: str, name: str) -> bool:
    """Whether a word with ``*``, ``?`` and ``[...]`` stands for a name; the name itself does.

    Examples
    --------
    >>> stands_for("*.weight", "first.weight"), stands_for("t2m [K]", "t2m [K]")
    (True, True)
    """
    return word == name or fnmatch.fnmatchcase(name, word)
