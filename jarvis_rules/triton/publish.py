"""Publishing a model repository: complete releases, and an atomic `current`.

A release is a folder named by the digest of what it holds, written under another name and renamed
when it is complete; no build ever edits one. `current` is a symbolic link that is swapped.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from jarvis_rules.core.canonical_json import dump_canonical_json
from jarvis_rules.core.digest import Digest, digest_bytes, digest_file
from jarvis_rules.errors import JarvisError, UsageError
from jarvis_rules.execution.delivery import listed_files
from jarvis_rules.execution.workspace import lock_tree
from jarvis_rules.triton.model_folder import read_models

RELATIVE_ENVIRONMENT = "$$TRITON_MODEL_DIRECTORY/../"
MANIFEST_SUFFIX = ".repository.json"
_UNFINISHED = ".unfinished-"


def publish_release(models: Path, destination: Path) -> Path:
    """Copy the repository `models` to `destination/releases/<digest>` and point `current` at it.

    JarvisError where there is nothing to publish, a file is not what its manifest says, or
    `current` is not a symbolic link.
    """
    try:
        with lock_tree(destination):
            for left in destination.glob(f"releases/{_UNFINISHED}*"):
                shutil.rmtree(left)
            return _publish(models, destination)
    except OSError as error:
        raise JarvisError(
            f"cannot be published: {error.strerror or error}",
            slug="publish.io",
            where=str(error.filename or destination),
            hint="check the folder's permissions and the free space of its disk",
        ) from error


def _publish(models: Path, destination: Path) -> Path:
    manifests = sorted(models.glob(f"*{MANIFEST_SUFFIX}"))
    if not manifests:
        raise JarvisError(
            "no pipeline to publish",
            slug="publish.empty",
            where=str(models),
            hint="declare one with `env.Pipeline(…)`",
        )
    _refuse_relative_environments(models)
    listings = {manifest: listed_files(manifest) for manifest in manifests}
    digests = {manifest.name: digest_file(manifest).sha256 for manifest in manifests}
    name = digest_bytes(dump_canonical_json(digests)).sha256[:16]
    releases = destination / "releases"
    releases.mkdir(parents=True, exist_ok=True)
    release = releases / name
    if not release.exists():
        _write_release(models, listings, release)
    _check_complete(release)
    _point(destination / "current", Path("releases") / name)
    return release


def _refuse_relative_environments(models: Path) -> None:
    """Raise UsageError where a model wants its packages from inside of the repository.

    A release holds what its manifests list, and replaces the one before as a whole.
    """
    for model in read_models(models).values():
        path = model.config.parameters["EXECUTION_ENV_PATH"].string_value
        if path.startswith(RELATIVE_ENVIRONMENT):
            raise UsageError(
                f"takes its Python packages from `{path.removeprefix(RELATIVE_ENVIRONMENT)}` in "
                "the repository, and a release has no such file",
                slug="deploy.relative-environment",
                where=f"model `{model.name}`",
                hint="give `execution_env_path` as an absolute path on the server",
            )


def _write_release(
    models: Path, listings: Mapping[Path, Mapping[str, Digest]], release: Path
) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=release.parent))
    try:
        owners: dict[str, str] = {}
        for manifest, files in listings.items():
            for name, digest in files.items():
                if owners.setdefault(name, manifest.name) != manifest.name:
                    raise _changed(f"`{name}` is claimed by {owners[name]} too", manifest)
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                # Copying a device may never end.
                if not (models / name).is_file():
                    raise _changed(f"there is no file `{name}`", manifest)
                shutil.copyfile(models / name, target)
                if digest_file(target) != digest:
                    raise _changed(f"`{name}` is not what the manifest says", manifest)
            shutil.copyfile(manifest, temporary / manifest.name)
        for folder, _, names in os.walk(temporary):
            for name in names:
                _sync(Path(folder, name))
        temporary.chmod(0o755)
        temporary.rename(release)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _changed(message: str, manifest: Path) -> JarvisError:
    return JarvisError(
        message,
        slug="publish.changed",
        where=str(manifest),
        hint="build again: the repository repairs itself",
    )


def _check_complete(release: Path) -> None:
    """Refuse a release from which a file has gone; edits of it are its owner's business."""
    for manifest in sorted(release.glob(f"*{MANIFEST_SUFFIX}")):
        for name in listed_files(manifest):
            if not (release / name).is_file():
                raise JarvisError(
                    f"the release lacks `{name}`",
                    slug="publish.damaged",
                    where=str(release),
                    hint="move the folder away and publish again",
                )


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
        path = models / name
        # A folder of the repository may have become a link to somewhere else since.
        if path.parent.resolve().is_relative_to(models.resolve()) and path.is_file():
            path.unlink()
    for model in {name.partition("/")[0] for name in names if "/" in name}:
        folder = models / model
        left = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        if all("__pycache__" in path.parts for path in left):
            shutil.rmtree(folder, ignore_errors=True)
    manifest.unlink()
