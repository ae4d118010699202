"""`factory eval --certify`: whether a drafter leaves the target's output as it is, by every check there is, and kept.

Greedy parity in float64 on many prompts in ragged batches, by every reader; near-ties audited as
served; sampled texts tested against the exact law. Each artifact's certificate is stored as soon as
it is complete: an interruption costs one artifact's work, and its older certificate stays until then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.lossless.certificate import LEVEL, SCHEMA_VERSION, law_rows, verdict
from eval.lossless.witness import Scale, Witness
from eval.plan import EvalPlan
from eval.suites import load_suite, suite_from_file
from eval.timing.arms import Entry, entries
from eval.timing.placing import require_devices
from eval.timing.threads import threads
from factory.artifact import CERTIFICATE, Artifact
from factory.errors import ArtifactError, RecipeError
from factory.files.atomic import write_atomically
from factory.files.disk import disk_errors
from factory.models.loading import resolve_device
from factory.processes import ALONE
from factory.progress import Progress
from factory.provenance import git_sha, hardware, versions


def certify(
    artifacts: Sequence[Artifact],
    plan: EvalPlan,
    *,
    target: str | None,
    prompts_file: Path | None,
    progress: Progress,
    scale: Scale | None = None,
) -> list[dict[str, Any]]:
    """Certify artifacts at the plan's k, suites, seed, device, dtype and readers; returns what each certificate holds.

    Every certificate is written into its artifact, whose card is drawn again. `target` names another
    copy of the target; `prompts_file` replaces the plan's suites. Raises ArtifactError, DataError,
    DiskError, ModelError and UnsupportedModel, each before the long work begins where that can be known.
    """
    if plan.tensor_parallel:
        raise RecipeError(f"{plan.place('tensor_parallel')}: certifying is one process's work: leave it out")
    require_devices(plan, ALONE)
    asked = {artifact.folder.resolve() for artifact in artifacts}
    found = [(entry, entry.artifact) for entry in entries(artifacts, plan) if entry.artifact is not None]
    field = [(entry, artifact) for entry, artifact in found if artifact.folder.resolve() in asked]
    for _, artifact in field:
        _require_writable(artifact)
    suites = [suite_from_file(prompts_file)] if prompts_file else [load_suite(name) for name in plan.suites]
    with threads(plan.threads):
        witness = Witness([entry for entry, _ in field], plan, suites, target, progress, scale or Scale())
        return [_certified(witness, entry, artifact) for entry, artifact in field]


def _certified(witness: Witness, entry: Entry, artifact: Artifact) -> dict[str, Any]:
    """One artifact's certificate, made and stored."""
    begun_s = time.monotonic()
    plan = witness.plan
    found = {
        "schema_version": SCHEMA_VERSION,
        "artifact": artifact.name,
        "ks": [arm.k for arm in entry.arms],
        "target": {
            **{key: artifact.manifest["target"].get(key) for key in ("model", "revision", "identity")},
            "parameters": witness.parameters,
        },
        "suites": [
            {"name": suite.name, "version": suite.version, "sha256": suite.sha256, "prompts": len(suite.prompts)}
            for suite in witness.suites
        ],
        "prompts": witness.prompt_facts(),
        "float64": witness.in_float64(entry),
        "served": witness.as_served(entry),
        "sampling": {
            **witness.sampling_facts(),
            "level": LEVEL,
            "rows": law_rows(witness.sampled(entry)),
        },
        "seed": plan.seed,
        "plan": plan.model_dump(mode="json"),
        "hardware": hardware(resolve_device(plan.device)),
        "versions": versions(),
        "git": git_sha(),
    }
    witness.require_unchanged()
    certificate = {**found, "seconds": time.monotonic() - begun_s, "verdict": verdict(found)}
    artifact.write_certificate(certificate)
    return certificate


def _require_writable(artifact: Artifact) -> None:
    """Raises DiskError or ArtifactError now rather than after minutes of work."""
    place = artifact.folder / CERTIFICATE
    if place.is_dir():
        raise ArtifactError(f"{place}: is a folder, so no certificate can be written there; move it away")
    with disk_errors(artifact.folder):
        write_atomically(artifact.folder / ".writable", "")
        (artifact.folder / ".writable").unlink()
