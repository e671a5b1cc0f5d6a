"""`scan_file`: what a file would have executed or tried, and everything else that is wrong."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from jarvis_rules.core.digest import CHUNK, DigestWriter
from jarvis_rules.errors import IntegrityError, UsageError
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.archive_manifest import MAC, MANIFEST
from jarvis_rules.formats.checkpoint import read_checkpoint
from jarvis_rules.formats.input_file import missing, open_regular, unreadable
from jarvis_rules.formats.jmir import read_pipeline
from jarvis_rules.formats.nemo import CONFIG, WEIGHTS, load_config, open_nemo
from jarvis_rules.formats.tar import GZIP_MAGIC, TarMember, quoted
from jarvis_rules.scanning.configurations import MAX_SIZE, scan_configuration
from jarvis_rules.scanning.contents import ContentScan
from jarvis_rules.scanning.report import Findings, ScanReport
from jarvis_rules.scanning.tars import TolerantListing, inflate

MAX_READ = 256 << 20  # of a member of an archive that the reader is asked for


def scan_file(path: Path) -> ScanReport:
    """Look through a checkpoint or an archive; nothing in it is executed or unpacked.

    All findings are listed, of each rule a bounded number, where the readers stop at the first.
    What the readers themselves say comes last. UsageError where the file cannot be read or has
    a suffix of another format.
    """
    kind = path.suffix.lower().removeprefix(".")
    if not path.exists():
        raise missing(path)
    if kind not in _READERS:
        raise UsageError(
            f"the suffix `{path.suffix}` is of no format that can be scanned",
            slug="file.suffix",
            where=str(path),
            hint=f"known: {', '.join(f'.{name}' for name in _READERS)}",
        )
    findings = Findings()
    size = 0
    try:
        with open_regular(path) as source:
            size = source.seek(0, 2)
            if size:
                _scan(path, kind, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ), findings)
    except OSError as error:
        raise unreadable(path, error) from error
    _ask_reader(path, findings)
    return findings.report(str(path), kind, size)


def _scan(path: Path, kind: str, data: mmap.mmap, findings: Findings) -> None:
    contents = ContentScan(findings)
    if kind in _CHECKPOINTS:
        contents.checkpoint(memoryview(data), "")
    elif data[: len(GZIP_MAGIC)] == GZIP_MAGIC:
        with closing(inflate(data, findings)) as plain:
            if plain.seek(0, 2):
                mapped = mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ)
                _scan_tar(path, kind, mapped, contents)
    else:
        _scan_tar(path, kind, data, contents)


def _scan_tar(path: Path, kind: str, data: mmap.mmap, contents: ContentScan) -> None:
    findings = contents.findings
    members = list(TolerantListing(data, path, findings))
    view = memoryview(data)
    if not members:  # it may be what belongs into the tar
        contents.content(view, "", "")
    if kind in _ARCHIVES:
        _scan_manifest(members, view, findings)
    for member in members:
        content = view[member.offset : member.offset + member.size]
        where = quoted(member.name, 1024)[1:-1]
        if kind in _ARCHIVES:
            if member.name != MANIFEST:
                contents.content(content, member.name, where)
        elif member.name == CONFIG:
            scan_configuration(bytes(content[: MAX_SIZE + 1]), where, findings)
        elif member.name == WEIGHTS:
            contents.checkpoint(content, where)
        else:
            contents.content(content, member.name, where)


def _scan_manifest(members: list[TarMember], view: memoryview, findings: Findings) -> None:
    """Compare the members with what the manifest lists; its form is the reader's to judge."""
    there = {member.name: member for member in members}
    if MANIFEST not in there:
        return
    manifest = there.pop(MANIFEST)
    data = bytes(view[manifest.offset : manifest.offset + min(manifest.size, MAX_SIZE + 1)])
    if not scan_configuration(data, MANIFEST, findings):
        return
    try:
        document = load_config(data, MANIFEST)
    except IntegrityError:
        return
    listed = document.get("files")
    files = listed if isinstance(listed, dict) else {}
    metadata = document.get("metadata")
    if isinstance(metadata, dict) and metadata.get("encryption"):
        there.pop(MAC, None)  # authenticates the manifest, which cannot list it
    for name in files.keys() - there.keys():
        message = f"the manifest lists {quoted(str(name))}, which is not there"
        findings.add("manifest.missing-member", MANIFEST, message)
    for name in sorted(there.keys() - files.keys()):
        message = f"the member {quoted(name)} is not in the manifest"
        findings.add("manifest.unlisted-member", MANIFEST, message)
    for name, member in sorted(there.items()):
        if isinstance(files.get(name), dict):
            _compare(member, files[name], view, findings)


def _compare(
    member: TarMember, listed: Mapping[str, Any], view: memoryview, findings: Findings
) -> None:
    where = quoted(member.name, 1024)[1:-1]
    if listed.get("encrypted"):
        message = "encrypted: nothing is known of its content"
        findings.add("manifest.encrypted", where, message)
        return
    if listed.get("size", member.size) != member.size:
        message = f"it has {member.size} bytes, the manifest says {quoted(str(listed.get('size')))}"
        findings.add("manifest.size", where, message)
    if "sha256" not in listed:  # NVIDIA's have none
        return
    writer = DigestWriter()
    for at in range(member.offset, member.offset + member.size, CHUNK):
        writer.write(bytes(view[at : min(at + CHUNK, member.offset + member.size)]))
    if (digest := writer.digest().sha256) != listed["sha256"]:
        message = f"its SHA-256 is {digest}, the manifest says {quoted(str(listed['sha256']))}"
        findings.add("manifest.digest", where, message)


def _ask_reader(path: Path, findings: Findings) -> None:
    """Add what the reader of this format refuses the file for."""
    try:
        read_whole(path)
    except IntegrityError as fault:
        where = (fault.where or "").removeprefix(str(path)).removeprefix("!")
        findings.add("reader.refuses", where, f"{fault.slug}: {fault.message}")


def read_whole(path: Path) -> None:
    """Read a file with the reader of its format; IntegrityError where that refuses it."""
    _READERS[path.suffix.lower().removeprefix(".")](path)


def _read_checkpoint(path: Path) -> None:
    with open_regular(path) as source:
        empty = not source.seek(0, 2)
        data = b"" if empty else mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
        read_checkpoint(memoryview(data), str(path))


def _read_nemo(path: Path) -> None:
    with open_nemo(path) as archive:
        archive.state_dict()


def _read_archive(path: Path) -> None:
    kind = path.suffix.lower().removeprefix(".")
    with open_archive(path, kind) as archive:
        if archive.manifest.encryption:
            return  # without the key there is no more to read
        for name, properties in archive.manifest.files.items():
            if properties["size"] <= MAX_READ:
                archive.read(name)
        if kind == "jmir":
            read_pipeline(archive)


_CHECKPOINTS = ("ckpt", "pt", "pth")
_ARCHIVES = ("ejrvs", "jmir")
_READERS: dict[str, Callable[[Path], None]] = {
    **dict.fromkeys(("nemo", "tlt"), _read_nemo),
    **dict.fromkeys(_CHECKPOINTS, _read_checkpoint),
    **dict.fromkeys(_ARCHIVES, _read_archive),
}
