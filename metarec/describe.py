"""What plugins say of themselves, for people: their docstrings in NumPy style, in parts."""

from __future__ import annotations

import inspect
import re
from itertools import pairwise

from metarec.options import groups_of


def summary(thing: object) -> str:
    """The first sentence of its docstring, in one line."""
    paragraph = " ".join(plain(_own_doc(thing)).split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def sections(thing: object) -> dict[str, str]:
    """The parts of its docstring by heading, in order; what stands before the first heading has the heading ""."""
    lines = plain(_own_doc(thing)).split("\n")
    starts = [
        i for i, (line, under) in enumerate(pairwise(lines)) if line.strip() and re.fullmatch(r"-{3,}", under)
    ]
    bounds = [*starts, len(lines)]
    parts = {"": "\n".join(lines[: bounds[0]]).strip()}
    return parts | {lines[a]: "\n".join(lines[a + 2 : b]).strip("\n") for a, b in pairwise(bounds)}


def parameters(thing: object) -> dict[str, str]:
    """What its docstring, or that of a base, says of each parameter, in one line each; those of a group by its own."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for described in reversed(thing.__mro__ if isinstance(thing, type) else (thing,)):
        for line in sections(described).get("Parameters", "").split("\n"):
            if line.startswith(" "):
                for name in names:
                    found[name].append(line.strip())
            else:
                names = [name.strip() for name in line.partition(":")[0].split(",")]
                found |= {name: [] for name in names}
    meanings = {name: " ".join(lines) for name, lines in found.items()}
    for name, group in groups_of(thing).items() if isinstance(thing, type) else ():
        meanings |= {f"{name}.{part}": meaning for part, meaning in parameters(group).items()}
    return meanings


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text: prose in one line each, to fit any width; tables, lists and formulas as they are."""
    fixed = re.compile(r"^(\s|[-*] |={3})", re.MULTILINE)
    return [part if fixed.search(part) else " ".join(part.split()) for part in text.split("\n\n")]


def plain(text: str) -> str:
    """Docstring markup as people read it: without backticks, stars, roles and the directive above a formula."""
    text = re.sub(r"^\.\. math::\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\*\*(.+?)\*\*", r"\1", text)
    return re.sub(r":(?:math|class|func|meth):(?=`)", "", text).replace("`", "")


def _own_doc(thing: object) -> str:
    """Its own docstring, not one that it inherits."""
    return (
        inspect.cleandoc(vars(thing).get("__doc__") or "")
        if isinstance(thing, type)
        else inspect.getdoc(thing) or ""
    )
