"""What a line that begins with a slash means."""

from __future__ import annotations

from difflib import get_close_matches

from factory.chat import settings
from factory.chat.settings import LOOKUP, Settings
from factory.errors import DataError

HELP = """\
/k N|auto            guesses a round; auto chooses as it goes, down to none
/temp T              temperature; 0 is greedy
/drafter on|off      the artifact's model, or the target alone
/drafter lookup      copy from the text so far instead; /lookup is the same
/more                go on with the last answer
/compare             write the last answer again, by the target alone and drafted, and say how fast each was
/clear               forget what was said
/quit                leave; so do Ctrl-D, and Ctrl-C at the prompt
Ctrl-C stops an answer and keeps what was written; a second one does not wait for the round to end.
A line that ends in a backslash goes on in the next line."""

_TAKES = {
    "/k": "N, or auto",
    "/temp": "T",
    "/drafter": "on, lookup or off",
    "/lookup": "",
    "/more": "",
    "/compare": "",
    "/clear": "",
    "/help": "",
    "/quit": "",
}


def split(line: str) -> tuple[str, str]:
    """A command's name and what it is given. Raises DataError where either is wrong."""
    name, argument = [*line.split(maxsplit=1), ""][:2]
    argument = argument.strip()
    if name not in _TAKES:
        near = get_close_matches(name, _TAKES, n=1)
        raise DataError(f"{name}: no such command; " + (f"did you mean {near[0]}?" if near else "/help lists them"))
    if bool(argument) != bool(_TAKES[name]):
        raise DataError(f"{name}: write {name} {_TAKES[name]}" if _TAKES[name] else f"{name}: takes no {argument!r}")
    return name, argument


def change(current: Settings, name: str, argument: str, *, has_model: bool) -> None:
    """Carry out a command that changes settings. Raises DataError, and changes nothing then."""
    if name == "/k":
        current.k = settings.guesses(argument, name)
    elif name == "/temp":
        current.temperature = settings.temperature(argument, name)
    elif name == "/lookup":
        current.drafter = LOOKUP
    else:
        current.drafter = settings.drafter(argument, name, has_model=has_model)
