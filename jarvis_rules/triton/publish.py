"""Publishing a model repository: complete releases, and an atomic `current`.

A release is a folder named by the digest of what it holds, written under another name and renamed
when it is complete; no build ever edits one. `current` is a symbolic link that is swapped.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from jarvis_rules.core.canonical_json import dump_canonical_json
from jarvis_rules.core.digest import digest_bytes, digest_file
from jarvis_rules.errors import JarvisError
from jarvis_rules.execution.delivery import listed_files

MANIFEST_SUFFIX = ".repository.json"


def publish_release(models: Path, destination: Path) -> Path:
    """Copy the repository `models` to `destination/releases/<digest>` and point `current` at it.

    JarvisError where there is nothing to publish or `current` is not a symbolic link.
    """
    manifests = sorted(models.glob(f"*{MANIFEST_SUFFIX}"))
    if not manifests:
        raise JarvisError(
            "no pipeline to publish",
            slug="publish.empty",
            where=str(models),
            hint="declare one with `env.Pipeline(…)`",
        )
    digests = {manifest.name: digest_file(manifest).sha256 for manifest in manifests}
    name = digest_bytes(dump_canonical_json(digests)).sha256[:16]
    releases = destination / "releases"
    releases.mkdir(parents=True, exist_ok=True)
    release = releases / name
    if not release.exists():
        _write_release(models, manifests, release)
    _point(destination / "current", Path("releases") / name)
    return release


def _write_release(models: Path, manifests: list[Path], release: Path) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=release.parent))
    try:
        for manifest in manifests:
            for name, digest in listed_files(manifest).items():
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(models / name, target)
                if digest_file(target) != digest:
                    raise JarvisError(
                        f"`{name}` is not what {manifest.name} says",
                        slug="publish.changed",
                        where=str(models),
                        hint="build again: the repository repairs itself",
                    )
            shutil.copyfile(manifest, temporary / manifest.name)
        for folder, _, files in os.walk(temporary):
            for name in files:
                _sync(Path(folder, name))
        temporary.chmod(0o755)
        temporary.rename(release)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _point(link: Path, target: Path) -> None:
    if link.exists() and not link.is_symlink():
        raise JarvisError(
            "is not a symbolic link, so it was not made by a release",
            slug="publish.current",
            where=str(link),
            hint="move it away, or publish to another folder",
        )
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def remove_pipeline(models: Path, pipeline: str) -> None:
    """Remove a pipeline's models from a repository: what its manifest lists, nothing else."""
    manifest = models / f"{pipeline}{MANIFEST_SUFFIX}"
    names = listed_files(manifest)
    for name in names:
        (models / name).unlink(missing_ok=True)
    for model in {name.partition("/")[0] for name in names if "/" in name}:
        folder = models / model
        if not any(path.is_file() for path in folder.rglob("*") if "__pycache__" not in path.parts):
            shutil.rmtree(folder, ignore_errors=True)
    manifest.unlink()
