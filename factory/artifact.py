"""An artifact: a folder that holds one drafter and everything needed to trust it.

    <name>/recipe.yaml     the source, byte for byte
           resolved.yaml   what ran: overrides applied, paths as they were typed, the target's revision
           model/          plain Hugging Face folder with the target's tokenizer
           stages/*.json   what each stage reported
           manifest.json   written last and atomically: its existence means complete; sha256 of all the former
           evals/*.json    each with the digest of the manifest it measured
           certificate.json  of losslessness: with its own digest and that of the manifest it is about
           local.json      of one whose target is a folder: where that lies on this machine; never published
           pulled.json     of one that was published: from which repository and commit, with which evaluations
           README.md       the card, always regenerated

Opening checks that the folder is complete; `verify` reads every byte. Nothing here knows how a
drafter is made or measured. An evaluation that is kept changes one thing in model/: generation_config.json
gets the k that was measured to be best, which `verify` looks past.
"""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory import assisted
from factory.card import draw
from factory.errors import ArtifactError
from factory.evidence import Row, best_row
from factory.files.atomic import write_atomically
from factory.files.disk import disk_errors
from factory.files.json_reading import NotJsonError, read_json
from factory.files.nearby import meant
from factory.models.placement import WHOLE, Placement
from factory.progress import Progress, bytes_shown, silent, step
from factory.provenance import sha256_file, sha256_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SCHEMA_VERSION = 2
CERTIFICATE = "certificate.json"
PULLED = "pulled.json"
LOCAL = "local.json"
# What of a manifest every reader relies on, and its kind.
_FACTS: dict[str, type | tuple[type, ...]] = {
    **{"name": str, "raw": bool, "dtype": str, "parameters": int, "bytes_on_disk": int},
    **{"target": dict, "target_shape": dict, "shape": dict, "facts": list, "files": dict},
}


class Artifact:
    """One complete artifact folder."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: str | Path) -> Artifact:
        """The artifact in a folder. Raises ArtifactError naming what is missing."""
        folder = Path(folder)
        path = folder / "manifest.json"
        if folder.is_file():
            raise ArtifactError(f"{folder}: a file; name the drafter's folder, which `factory ls` lists")
        if not folder.is_dir():
            raise ArtifactError(f"{folder}: no such folder{meant(folder)}; `factory ls` lists artifacts")
        if not path.is_file():
            if within := sorted(folder.glob("*/manifest.json")):
                names = ", ".join(str(one.parent) for one in within[:4])
                raise ArtifactError(f"{folder}: holds artifacts and is none itself; name one: {names}")
            raise ArtifactError(
                f"{folder}: no manifest.json, so not a finished artifact; run its `factory build` again"
            )
        try:
            manifest = read_json(path)
        except NotJsonError as error:
            raise ArtifactError(f"{path}: damaged ({error}); run its `factory build` again") from error
        if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
            raise ArtifactError(f"{path}: not a manifest of version {SCHEMA_VERSION}; build it again with this version")
        if without := lacking(manifest):
            raise ArtifactError(f"{path}: damaged (without {', '.join(without)}); run its `factory build` again")
        return cls(folder, manifest)

    @property
    def name(self) -> str:
        """The drafter's name."""
        return str(self.manifest["name"])

    @property
    def model_folder(self) -> Path:
        """The Hugging Face folder."""
        return self.folder / "model"

    def verify(self, progress: Progress = silent) -> None:
        """Compare every file with the manifest. Raises ArtifactError naming all that differ."""
        faults = self.faults(progress)
        if faults:
            before = self.pulled()
            again = f"`factory pull {before['repository']}`" if before else "its `factory build`"
            raise ArtifactError("\n".join([*faults, f"remove {self.folder} and run {again} again"]))

    def faults(self, progress: Progress = silent) -> list[str]:
        """Every file that is not what the manifest says."""
        there = [path for name in self.manifest["files"] if (path := self.folder / name).is_file()]
        more = bytes_shown(progress, f"checking {self.name}", sum(path.stat().st_size for path in there))
        faults = []
        for relative, digest in self.manifest["files"].items():
            path = self.folder / relative
            if not path.is_file():
                faults.append(f"{path}: missing")
            elif sha256_file(path, more) != digest and not _same_but_k(path, digest):
                faults.append(f"{path}: damaged (its sha256 is not the manifest's)")
        return faults

    def pulled(self) -> dict[str, Any] | None:
        """`repository`, `commit`, the target's name there (`base_model`) and `evals`, the names of the evaluations that
        came with it; None where it was built here."""
        try:
            record = json.loads((self.folder / PULLED).read_text(encoding="utf-8"))
            known = {key: record[key] for key in ("repository", "commit", "base_model", "evals")}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return known if isinstance(known["evals"], list) else None

    def target_folder(self) -> Path | None:
        """Where the folder that it was made from lay on this machine; None for a target of the Hub, or a pulled one."""
        try:
            return Path(json.loads((self.folder / LOCAL).read_text(encoding="utf-8"))["target"])
        except (OSError, ValueError, KeyError, TypeError):
            named = self.manifest["target"].get("path")  # where builds of earlier versions wrote it
            return Path(named) if named else None

    def write_target_folder(self, folder: Path) -> None:
        """Keep that place beside the manifest, not in it: a manifest is published, and what it pins cannot change."""
        write_atomically(self.folder / LOCAL, json.dumps({"target": str(folder)}) + "\n")

    def load_model(self, dtype: torch.dtype, device: str) -> PreTrainedModel:
        """The drafter."""
        from factory.models.loading import load_model

        return load_model(self.model_folder, dtype=dtype, device=device)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The target's tokenizer, as saved with the drafter."""
        from factory.models.loading import load_tokenizer

        return load_tokenizer(self.model_folder)

    def load_target(
        self,
        override: str | None,
        dtype: torch.dtype,
        device: str,
        placement: Placement = WHOLE,
        progress: Progress = silent,
    ) -> PreTrainedModel:
        """The target it was made from. Raises ArtifactError where the weights are not the same."""
        from factory.models.loading import load_model, require_finite
        from factory.models.located import locate, model_identity

        made_from = self.manifest["target"]
        folder = None if made_from["revision"] else self.target_folder()
        source = override or (made_from["model"] if made_from["revision"] else folder and str(folder))
        if override is None and not made_from["revision"] and not (folder and folder.is_dir()):
            source = (self.pulled() or {}).get("base_model")  # what its publisher says is the same model on the Hub
        if not source:
            gone = folder or made_from["model"]
            raise ArtifactError(f"{self.folder}: its target, the folder {gone}, is not here; name it with --target")
        located = locate(source, None if override else made_from["revision"], progress)
        known = self.folder.parent / ".cache" / "identity.json"
        if model_identity(located.folder, known, progress) != made_from["identity"]:
            raise ArtifactError(
                f"{self.folder}: made from {made_from['model']}, but weights, config or tokenizer in {located.folder} "
                "are not the same; name the right target with --target, or build the drafter again"
            )
        with step(progress, "loading the target"):
            target = load_model(located.folder, dtype=dtype, device=device, placement=placement)
            require_finite(target)
        return target

    def evals(self) -> list[dict[str, Any]]:
        """Every evaluation of this very manifest, oldest first; those that were pulled before any made here."""
        return list(self.eval_files().values())

    def best_row(self) -> Row | None:
        """The row of the last evaluation that speaks for this drafter; None where there is none with a fixed k."""
        evals = self.evals()
        return best_row(evals[-1], self.name) if evals else None

    def eval_files(self) -> dict[Path, dict[str, Any]]:
        """Those evaluations by the files that hold them, in that order: what was measured here has the last word."""
        files, found = list((self.folder / "evals").glob("*.json")), {}
        digest = self.manifest_digest() if files else ""
        for path in files:
            with contextlib.suppress(NotJsonError):  # a damaged record is no measurement
                result = read_json(path)
                if isinstance(result, dict) and result.get("manifest_sha256") == digest:
                    found[path] = result
        came = (self.pulled() or {"evals": []})["evals"]  # a publisher's clock decides nothing here
        # Records of earlier versions do not say when they were kept; and where one was copied, its file does not.
        kept = {
            path: (path.name not in came, str(result.get("kept_at") or ""), path.stat().st_mtime_ns)
            for path, result in found.items()
        }
        return {path: found[path] for path in sorted(found, key=kept.__getitem__)}

    def manifest_digest(self) -> str:
        """sha256 of manifest.json: pins all that an evaluation measured."""
        return sha256_file(self.folder / "manifest.json")

    def write_eval(self, results: dict[str, Any]) -> Path:
        """Keep an evaluation under its own digest, let the generation settings carry its k, and draw the card again."""
        kept_at = datetime.now(UTC).isoformat(timespec="microseconds")
        record = {**results, "manifest_sha256": self.manifest_digest(), "kept_at": kept_at}
        text = json.dumps(record, indent=1, sort_keys=True)
        path = self.folder / "evals" / f"{sha256_text(text)[:12]}.json"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, text)
        settings = self.generation_settings()
        if settings is not None:
            write_atomically(self.model_folder / assisted.NAME, settings)
        self.write_card()
        return path

    def generation_settings(self) -> str | None:
        """generation_config.json with the best k of the last evaluation.

        None where there is no such k, or where the settings are so written that `verify` could not look past it.
        """
        row = self.best_row()
        path = self.model_folder / assisted.NAME
        digest = self.manifest["files"].get(f"model/{assisted.NAME}")
        if row is None or (digest is not None and not _same_but_k(path, digest)):
            return None
        try:
            config = json.loads((self.model_folder / "config.json").read_text(encoding="utf-8"))
            return assisted.with_k(path.read_text(encoding="utf-8") if digest else None, row["k"], config)
        except (OSError, ValueError):
            return None

    def certificate(self) -> dict[str, Any] | None:
        """The certificate as it was written, and in `current` whether it is about this very manifest.

        None where there is none, or where its bytes are not those that its digest is of.
        """
        try:
            record = read_json(self.folder / CERTIFICATE)
            digest = record.pop("digest")
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        if digest != _certificate_digest(record):
            return None
        return {**record, "digest": digest, "current": record["manifest_sha256"] == self.manifest_digest()}

    def write_certificate(self, certificate: dict[str, Any]) -> Path:
        """Keep a certificate of this manifest in place of an older one, and draw the card again.

        Raises DiskError where the folder cannot be written.
        """
        record = {"manifest_sha256": self.manifest_digest(), **certificate}
        path = self.folder / CERTIFICATE
        with disk_errors(self.folder):
            record = json.loads(json.dumps(record, allow_nan=False))  # tuples become the lists that reading gives
            write_atomically(path, json.dumps({"digest": _certificate_digest(record), **record}, indent=1) + "\n")
            self.write_card()
        return path

    def write_card(self, named: Path | None = None) -> None:
        """README.md: what it is, how it was made, what was measured and certified. `named`: where it will lie.

        Raises ArtifactError where an evaluation of it cannot be told.
        """
        recipe = (self.folder / "resolved.yaml").read_text(encoding="utf-8")
        evals = self.evals()
        try:
            card = draw(self.manifest, evals, recipe, named or self.folder, self.certificate())
        except (KeyError, TypeError) as error:
            if not evals:
                raise
            raise ArtifactError(
                f"{self.folder / 'evals'}: not all of it is what `factory eval` of this version writes; "
                "move it away, and judge the drafter again"
            ) from error
        write_atomically(self.folder / "README.md", card)


def lacking(manifest: dict[str, Any]) -> list[str]:
    """What every manifest holds, and this one does not, or as something else."""
    return [key for key, kind in _FACTS.items() if not isinstance(manifest.get(key), kind)]


def _same_but_k(path: Path, digest: str) -> bool:
    """Whether these are the generation settings that the digest is of, but for the k that an evaluation wrote there."""
    if path.name != assisted.NAME:
        return False
    try:
        return sha256_text(assisted.without_k(path.read_text(encoding="utf-8"))) == digest
    except (OSError, ValueError):
        return False


def _certificate_digest(record: dict[str, Any]) -> str:
    return sha256_text(json.dumps(record, sort_keys=True))


def write_manifest(folder: Path, facts: dict[str, Any]) -> Artifact:
    """Complete an artifact folder: checksum every file in it, then write the manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
    manifest = {"schema_version": SCHEMA_VERSION, **facts, "files": sums}
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1))
    return Artifact(folder, manifest)


def artifact_folders(folder: str | Path) -> list[Path]:
    """Folders with a manifest in a folder, by name; the folder itself where it has one. Raises ArtifactError."""
    folder = Path(folder)
    if folder.is_file():
        raise ArtifactError(f"{folder}: a file; name a drafter's folder, or one that holds some")
    if not folder.is_dir():
        made = meant(folder) or f"; `factory build RECIPE --out {folder}` makes one"
        raise ArtifactError(f"{folder}: no such folder{made}")
    if (folder / "manifest.json").is_file():
        return [folder]
    return [path.parent for path in sorted(folder.glob("*/manifest.json"))]


def list_artifacts(folder: str | Path) -> list[Artifact]:
    """The artifacts of those folders. Raises ArtifactError where one is damaged."""
    return [Artifact.open(place) for place in artifact_folders(folder)]
