"""What a user can mend: every such mistake raises a `MetarecError` whose text is one clear line."""

from collections.abc import Iterable
from difflib import get_close_matches

_MOST_NAMES = 20


class MetarecError(Exception):
    """A mistake in what metarec was given: one line that says what, where, found and expected."""


class DataError(MetarecError):
    """A data set, a file of it, or a newcomer's ratings and attributes do not fit."""


class ConfigError(MetarecError):
    """A configuration, an option or a name in it is unknown or out of range."""


class PluginError(MetarecError):
    """A plugin cannot be loaded, or two of them claim one name."""


class TrainingError(MetarecError):
    """A fit cannot go on: it diverged, or its checkpoint is damaged or of something else."""


class ArtifactError(MetarecError):
    """A saved recommender cannot be written, or is damaged, foreign or too new."""


def unknown_name(what: str, found: str, known: Iterable[str]) -> str:
    """Say that `found` is no known `what`, with the nearest right name or those that there are.

    >>> unknown_name("algorithm", "bayesain", ["bayesian", "bias"])
    "unknown algorithm 'bayesain': did you mean 'bayesian'?"
    """
    names = sorted(known)
    in_lower_case = {name.casefold(): name for name in names}
    close = get_close_matches(found.casefold(), in_lower_case, n=1)
    if close:
        return f"unknown {what} {found!r}: did you mean {in_lower_case[close[0]]!r}?"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"unknown {what} {found!r}: expected one of {', '.join(names[:_MOST_NAMES]) or '(none)'}{more}"
