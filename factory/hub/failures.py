"""Each way in which the Hub fails, in words: what was wanted, what is wrong, how to mend it.

huggingface_hub's own words are kept out: they speak to its callers, and some repeat what was sent. A token never
stands in a message. Kinds are told apart by the names of their classes, since the client has changed the HTTP library
below it (httpx, httpx2) and its names stayed.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from factory.errors import FactoryError, ModelError
from factory.files.disk import FULL, DiskError
from factory.files.nearby import meant
from factory.hub.names import Asked

_NOT_FOUND_HERE = {"LocalEntryNotFoundError", "RevisionResolutionError"}  # what is wrong is their cause
_UNREACHED = {"ConnectError", "ConnectTimeout", "PoolTimeout"}
_BROKEN_OFF = {"NetworkError", "TimeoutException", "RemoteProtocolError", "ConnectionError", "TimeoutError"}
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


@contextmanager
def hub_errors(asked: Asked, raises: type[FactoryError] = ModelError) -> Iterator[None]:
    """Whatever fails inside is told as a failure of what was asked. Raises `raises`, or DiskError for a full disk."""
    try:
        yield
    except FactoryError:
        raise
    except Exception as error:  # the client raises three dozen kinds, and what lies below it more
        # What the client raised may hold what was sent, so it is not kept as a cause either.
        raise failure(error, asked, raises) from None


def failure(error: Exception, asked: Asked, raises: type[FactoryError] = ModelError) -> FactoryError:
    """What to raise in its place: of the kind `raises`, or a DiskError for a full disk."""
    full = next((one for one in chain(error) if isinstance(one, OSError) and one.errno in FULL), None)
    if full is not None:
        return DiskError(f"{asked.head}: {_full(full)}")
    return raises(without_token(f"{asked.head}: {told(error, asked)}"))


def told(error: BaseException, asked: Asked) -> str:
    """What is wrong, and how to mend it: the end of a message that `asked.head` begins."""
    causes = chain(error)
    for one in causes:
        found = _words(one, {kind.__name__ for kind in type(one).__mro__}, asked)
        if found:
            return found
    if any(type(one).__name__ == "OfflineModeIsEnabled" for one in causes):
        return _offline(asked)
    if {kind.__name__ for one in causes for kind in type(one).__mro__} & _NOT_FOUND_HERE:
        return f"it is not {'wholly ' if asked.partly else ''}in this machine's cache, and the Hub was not asked"
    return f"{type(error).__name__}: {first_line(error)}"


def chain(error: BaseException) -> list[BaseException]:
    """The error, what caused it, and so on."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__ or one.__context__
    return found


def first_line(error: BaseException) -> str:
    """The beginning of what an error says of itself."""
    return str(error).strip().splitlines()[0] if str(error).strip() else "no more is known"


def without_token(text: str) -> str:
    """The text without the token that requests are made with, and without whatever looks like one."""
    with suppress(Exception):  # a token that cannot be read is in no text
        token = _token()
        text = text.replace(token, "<token>") if token else text
    return _TOKEN.sub("<token>", text)


def _words(error: BaseException, kinds: set[str], asked: Asked) -> str:
    """Of an error whose kind says what is wrong; else nothing."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    page = _page(asked)
    if "OfflineModeIsEnabled" in kinds:
        return _offline(asked)
    if kinds & _NOT_FOUND_HERE:
        return ""
    if "HFValidationError" in kinds:
        return "no name that the Hub could have: it is user/name, in letters, digits, `-`, `_` and `.`"
    if "GatedRepoError" in kinds:
        return _gated(asked, page)
    if "DisabledRepoError" in kinds:
        return f"it was disabled on the Hub, so nobody can have it; see {page}"
    if "RevisionNotFoundError" in kinds:
        return f"it has no such revision; {page}/commits/main lists them, or leave the revision out for the newest"
    if "RepositoryNotFoundError" in kinds:
        return _wrong_token() if _is_refused(error) else _missing(asked)
    if "RemoteEntryNotFoundError" in kinds:
        name = str(getattr(getattr(error, "response", None), "url", "")).rpartition("/")[2].partition("?")[0]
        return f"it holds no {name or 'such file'}; {page}/tree/main shows what it holds"
    if "FileMetadataError" in kinds:
        return f"{_endpoint()} does not answer as a Hub does; check HF_ENDPOINT, proxies and firewalls"
    if kinds & {"LocalTokenNotFoundError", "OIDCError"}:
        return f"no token was found; {_LOG_IN}"
    if "DeviceCodeError" in kinds:
        return "the stored login has run out; log in again with `hf auth login`"
    if status is not None:
        return _answered(int(status), error, asked)
    return _network(error, kinds, asked)


def _network(error: BaseException, kinds: set[str], asked: Asked) -> str:
    if "LocalProtocolError" in kinds or "UnicodeEncodeError" in kinds:  # of a header, and ours has the token in it
        return f"the token of {_source()} holds characters that no token has; {_LOG_IN}"
    if kinds & {"InvalidURL", "UnsupportedProtocol"}:
        return f"HF_ENDPOINT is {_endpoint()}, which is no address; unset it, or write https:// before it"
    if "ProxyError" in kinds:
        return f"the proxy refuses ({first_line(error)}); mend HTTPS_PROXY, or unset it"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (
            f"the certificate of {_endpoint()} cannot be verified; let SSL_CERT_FILE name your network's own "
            "certificates, or mend the clock"
        )
    broken = "IncompleteRead" in kinds or "Consistency check failed" in str(error)
    if asked.reached and (broken or kinds & (_UNREACHED | _BROKEN_OFF)):
        kept = "run the same command again, which goes on: files that are whole are kept"
        return f"the connection broke off on the way ({type(error).__name__}); {kept}"
    if broken or kinds & (_UNREACHED | _BROKEN_OFF):
        late = "Timeout" in type(error).__name__
        why = "no answer in time" if late else first_line(error)
        return f"{_endpoint()} cannot be reached ({why}); {_unreached(asked)}"
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        place = getattr(error, "filename", None) or "the Hub's cache"
        return (
            f"{place}: {os.strerror(getattr(error, 'errno', None) or errno.EACCES)}; let HF_HOME name a folder of yours"
        )
    return ""


def _offline(asked: Asked) -> str:
    name = next((name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)), "HF_HUB_OFFLINE")
    if asked.writes:
        return f"{name} is set, so nothing is sent; unset it"
    part = "only a part of it is" if asked.partly else "it is not"
    return (
        f"{name} is set, and {part} in this machine's cache; unset it, or download it where there is a network: "
        f"`{asked.command}`{meant(asked.repository)}"
    )


def _unreached(asked: Asked) -> str:
    mend = "check the network"
    mend += ", and HF_ENDPOINT, which is set" if os.environ.get("HF_ENDPOINT") else ""
    if asked.writes:
        return mend
    part = "only a part of it is" if asked.partly else "it is not"
    download = f"or download it where there is one: `{asked.command}`"
    return f"{part} in this machine's cache: {mend}, {download}{meant(asked.repository)}"


def _gated(asked: Asked, page: str) -> str:
    if not _token():
        return (
            "it is gated: only those who accepted its terms may have it, and no token is set; "
            f"accept them at {page}, then {_LOG_IN}"
        )
    return (
        f"it is gated, and the account of the token of {_source()} has no access; ask for it at {page} with that "
        "account, and let a fine-grained token read gated repositories"
    )


def _missing(asked: Asked) -> str:
    if asked.writes:
        return "no such repository, or one that your token does not reach; check its name, and what the token may do"
    reach = f"the token of {_source()} does not reach it" if _token() else f"no token is set ({_LOG_IN})"
    return (
        f"no such {asked.kind} on the Hub, or a private one and {reach}; check the name at {_endpoint()}"
        f"{meant(asked.repository) or ', or give a folder that exists'}"
    )


def _is_refused(error: BaseException) -> bool:
    """Whether it seems to be missing only because the token is wrong: to a right one the Hub says 404."""
    return getattr(getattr(error, "response", None), "status_code", 0) == 401 and bool(_token())


def _wrong_token() -> str:
    return (
        f"the Hub does not accept the token of {_source()}; make one at {_endpoint()}/settings/tokens and {_LOG_IN}; "
        "what is public needs none"
    )


def _answered(status: int, error: BaseException, asked: Asked) -> str:
    if status == 401:
        return _wrong_token() if _token() else f"the Hub wants to know who asks; {_LOG_IN}"
    if status == 403 and not _token():
        return f"it is not for everyone; {_LOG_IN}"
    if status == 403:
        right = "write to it" if asked.writes else "read it"
        return f"the token of {_source()} may not {right}; give it that right at {_endpoint()}/settings/tokens"
    if status == 429:
        after = _header(getattr(error, "response", None), "Retry-After")
        return f"too many requests; wait {f'{after} s' if after else 'some minutes'}, or log in, which allows more"
    if status >= 500:
        return f"the Hub answers {status}, which is its own trouble; try again in some minutes"
    said = str(getattr(error, "server_message", None) or "").strip().splitlines()
    return f"the Hub answers {status}{f' ({said[0]})' if said else ''}; see {_page(asked)}"


def _full(error: OSError) -> str:
    reason = error.strerror or os.strerror(error.errno or errno.ENOSPC)
    return (
        f"{error.filename or _cache()}: {reason}; make room there, or let HF_HOME name a folder on a larger disk, and "
        "run the same command again: files that are whole are kept"
    )


_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def _source() -> str:
    """Where the token comes from, in the order in which the client looks."""
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    return next((name for name in names if os.environ.get(name)), "`hf auth login`")


def _token() -> str | None:
    from huggingface_hub import get_token

    with suppress(Exception):  # it may have to be asked for over the network
        return get_token()
    return None


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _page(asked: Asked) -> str:
    return f"{_endpoint()}/{'datasets/' if asked.kind == 'dataset' else ''}{asked.repository}"


def _header(response: Any, name: str) -> str:
    return str(response.headers.get(name) or "") if response is not None else ""
