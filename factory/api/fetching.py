"""`factory.pull`: a published drafter, in one call."""

from __future__ import annotations

from pathlib import Path

from factory.artifact import Artifact
from factory.progress import Progress, silent


def pull(
    repository: str,
    *,
    out: str | Path = "artifacts",
    revision: str | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """The drafter that was published as user/name, in out/name, every file compared with its manifest.

    Again, it brings what was measured meanwhile, or does nothing. `revision`: a branch, a tag or a commit. `progress`:
    called with (done, total, what). Raises ModelError for what the Hub refuses or cannot be asked; ArtifactError for
    what is no drafter, is not what its manifest says, or would write over another folder; DiskError.
    """
    from factory.publishing.pull import pull as pulled

    return pulled(repository, Path(out), progress or silent, revision).artifact
