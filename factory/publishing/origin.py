"""Where a drafter comes from, as the Hub knows it: the target's name there, and the licence that its card names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.artifact import Artifact
from factory.hub import Asked, hub_errors, require_hub_name
from factory.publishing.gate import PublishError

_LICENSE = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Origin:
    """The target as a card's metadata names it."""

    base_model: str | None  # its name on the Hub; None for a folder that nobody else has
    revision: str | None
    license: dict[str, Any]  # license, and where that is "other" its name and link; empty where it is yet to be read


def origin(artifact: Artifact, license_name: str | None, base_model: str | None, *, network: bool) -> Origin:
    """The target's name and licence: given, or of the card beside its weights, or of its card on the Hub.

    Without `network` a card that is not on this machine leaves the licence open. Raises PublishError where there is
    none to carry over, or where the card cannot be read.
    """
    made_from = artifact.manifest["target"]
    on_hub = made_from["revision"] is not None
    if base_model is not None:
        require_hub_name(base_model, PublishError, "target")
    name = base_model or (made_from["model"] if on_hub else (artifact.pulled() or {}).get("base_model"))
    revision = made_from["revision"] if name == made_from["model"] else None
    if license_name is not None and not license_name.strip():
        raise PublishError("--license: wants an identifier, such as apache-2.0; leave it out for the target's own")
    if license_name is not None:
        return Origin(name, revision, {"license": license_name.strip().lower()})
    found: dict[str, Any] = {}
    folder = artifact.target_folder()
    if folder is not None:
        found = _license_of(folder / "README.md")
    if not found and name is not None:
        card = _card_of(name, revision, network)
        if card is None and not network:
            return Origin(name, revision, {})
        found = _license_of(card, name) if card is not None else {}
    if not found:
        where = folder or name or made_from["model"]
        raise PublishError(f"no card of the target {where} names a licence; give --license, such as apache-2.0")
    return Origin(name, revision, found)


def _card_of(name: str, revision: str | None, network: bool) -> Path | None:
    """The target's card in the cache, or fetched; None where it has none, or where it is not here."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    cached = try_to_load_from_cache(name, "README.md", revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    if not network:
        return None
    with hub_errors(Asked(name, deed="read the card of", revision=revision), PublishError):
        try:
            return Path(hf_hub_download(name, "README.md", revision=revision))
        except RemoteEntryNotFoundError:  # and not one of this machine's cache: there the Hub was not asked
            return None


def _license_of(card: Path, name: str | None = None) -> dict[str, Any]:
    """What the metadata of a card says of the licence; a link into the target's own repository becomes a whole one."""
    from huggingface_hub import ModelCard, constants
    from yaml import YAMLError

    try:
        data: Any = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (OSError, ValueError, YAMLError):
        return {}
    found = {key: data[key] for key in _LICENSE if data.get(key)}
    link = found.get("license_link")
    if isinstance(link, str) and "://" not in link:
        found.pop("license_link")
        if name is not None:
            found["license_link"] = f"{constants.HUGGINGFACE_CO_URL_HOME}{name}/blob/main/{link}"
    return found if "license" in found else {}
