"""Each way in which the Hub refuses what is written to it, in words; all else as `failures.py` says it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from factory.errors import FactoryError
from factory.hub.failures import chain, hub_errors, without_token
from factory.hub.names import Asked

_METADATA = "Invalid metadata in README.md."  # as the client begins


@contextmanager
def write_errors(asked: Asked, account: str, raises: type[FactoryError]) -> Iterator[None]:
    """Whatever fails inside is told as a failure of what was asked, for the account that asks. Raises `raises`."""
    with hub_errors(asked, raises):
        try:
            yield
        except FactoryError:
            raise
        except Exception as error:  # those that only writing meets; hub_errors knows the others
            refused = _refused(error, asked, account)
            if refused:
                raise raises(without_token(f"{asked.head}: {refused}")) from None
            raise


def _refused(error: Exception, asked: Asked, account: str) -> str:
    """What is wrong, and how to mend it; nothing for what is no refusal to write."""
    found = str(error)
    if found.startswith(_METADATA):
        return f"the Hub refuses the card's metadata: {' '.join(found.removeprefix(_METADATA).split())}"
    answered = next((one for one in chain(error) if getattr(one, "response", None) is not None), None)
    if answered is None:
        return ""
    status = answered.response.status_code  # type: ignore[attr-defined]
    reason = _reason(answered)
    if status == 403:
        return (
            f"{account} may not do that{reason}; let the token write (fine-grained ones name what they may), publish "
            f"under {account}/, or propose it with --pr"
        )
    if status == 402:
        return f"the account's plan does not allow it{reason}"
    if status == 409:
        return f"something of that name is in the way{reason}; give another name"
    if status == 412:
        return "it was changed by somebody meanwhile; run the same command again, which compares anew"
    if status == 413:
        return f"too large for the Hub{reason}"
    return f"the Hub refuses it{reason}" if status in (400, 422) else ""


def _reason(error: BaseException) -> str:
    """The first line of what the Hub itself says, in parentheses."""
    said = str(getattr(error, "server_message", None) or "").strip().splitlines()
    return f" ({said[0].rstrip('.')})" if said else ""
