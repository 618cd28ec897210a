"""Errors about names, with suggestions."""

import difflib
from collections.abc import Iterable


class UnknownEnvironmentError(ValueError):
    """No environment of this name; the message has suggestions."""


def suggest(name: str, known: Iterable[str]) -> str:
    """A closing sentence that names the closest matches, or nothing."""
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=3, cutoff=0.5)
    names = [repr(by_lower_case[match]) for match in close]
    return f" Did you mean {' or '.join(names)}?" if names else ""
