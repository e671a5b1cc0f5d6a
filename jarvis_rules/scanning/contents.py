"""Tells content by its first bytes and looks into it: checkpoints, pickles, arrays, programs."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import numpy as np

from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.checkpoint import read_checkpoint
from jarvis_rules.formats.tar import quoted, release_pages
from jarvis_rules.scanning.pickles import Budget, may_be_pickle, note_rebuilds, walk_pickles
from jarvis_rules.scanning.report import Findings, inside
from jarvis_rules.scanning.zips import ZipEntry, ZipScan

MAX_DEPTH = 3  # zips in zips

_CODE_SUFFIXES = {
    *(".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".ps1", ".js"),
}
_CODE_MAGICS = (b"\x7fELF", b"MZ", b"#!", b"\xfe\xed\xfa", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
_TORCH_ENTRY = re.compile(
    r"[^/]+/(data\.pkl|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id|data/[^/]+)"
)


class ContentScan:
    """Looks into the contents of one file: all share one budget of steps."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.budget = Budget()

    def checkpoint(self, data: memoryview, where: str) -> None:
        """Look into a checkpoint of torch, zip or legacy, and at the values of its tensors."""
        if bytes(data[:4]) == b"PK\3\4":
            self.zip(data, where)
        else:
            end, walker = walk_pickles(data, where, self.findings, self.budget)
            note_rebuilds(walker)
            if end < len(data) and not walker.storages:
                message = f"{len(data) - end} bytes follow the pickle"
                self.findings.add("pickle.trailing-data", where, message, end)
        self.weights(data, where)

    def weights(self, data: memoryview, where: str) -> None:
        """Report tensors with values that are not finite, of a checkpoint that can be read."""
        try:
            tensors = read_checkpoint(data, where)
        except IntegrityError:
            return  # what the readers refuse is a finding of its own
        for name, tensor in tensors.items():
            if tensor.dtype.kind != "f":
                continue
            finite = np.isfinite(tensor)
            if bad := finite.size - int(np.count_nonzero(finite)):
                index = [int(i) for i in np.unravel_index(int(np.argmin(finite)), tensor.shape)]
                message = f"tensor {quoted(name)} has {bad} of {finite.size} values that are NaN "
                message += f"or infinite, the first at {index}"
                self.findings.add("weights.not-finite", where, message)

    def zip(self, data: memoryview, where: str, depth: int = 0) -> None:
        """Look into a zip, the pickles and files in it included."""
        entries = ZipScan(data, where, self.findings).entries()
        storages: set[str] | None = None
        for entry in entries:
            self.check_entry_name(entry, where)
            if entry.content is None:
                continue
            place = inside(where, quoted(entry.name)[1:-1])
            if entry.name.endswith(".pkl"):
                used = self.pickles(entry.content, place, may_trail=not entry.size)
                if re.fullmatch(r"[^/]+/data\.pkl", entry.name):
                    storages = used
            elif not re.fullmatch(r"[^/]+/data/[^/]+", entry.name):
                self.content(memoryview(entry.content), entry.name, place, depth + 1)
        for entry in entries:
            match = re.fullmatch(r"[^/]+/data/([^/]+)", entry.name)
            if match and entry.size and storages is not None and match[1] not in storages:
                message = f"no tensor uses {quoted(entry.name)}, {entry.size} bytes"
                self.findings.add("zip.unused", where, message, entry.header)

    def check_entry_name(self, entry: ZipEntry, where: str) -> None:
        """Report an entry that `torch.save` does not write."""
        if not _TORCH_ENTRY.fullmatch(entry.name) and not entry.name.endswith("/"):
            rule = "member.code" if _is_code(entry.name, b"") else "zip.unexpected"
            message = f"the entry {quoted(entry.name)} is none of a checkpoint"
            self.findings.add(rule, where, message, entry.header)

    def pickles(
        self, data: bytes | memoryview, where: str, *, may_trail: bool = False
    ) -> set[str] | None:
        """Walk pickles; return the storages that they refer to, or None where they break off."""
        end, walker = walk_pickles(data, where, self.findings, self.budget)
        note_rebuilds(walker)
        if end < len(data) and not may_trail:
            message = f"{len(data) - end} bytes follow the pickle"
            self.findings.add("pickle.trailing-data", where, message, end)
        return walker.storages if walker.ended else None

    def content(self, data: memoryview, name: str, where: str, depth: int = 0) -> None:
        """Look into what should be no code: an artifact, an asset, an entry of a zip."""
        head = bytes(data[:512])
        if _is_code(name, head):
            self.findings.add("member.code", where, "a script, a module or a program")
        if head.startswith(b"PK\3\4"):
            self.findings.add("member.archive", where, "a zip")
            if depth < MAX_DEPTH:
                self.zip(data, where, depth)
        elif head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf")):
            self.findings.add("member.archive", where, "compressed; it is not looked into")
        elif head[257:262] == b"ustar":
            self.findings.add("member.archive", where, "a tar; it is not looked into")
        elif head.startswith(b"\x93NUMPY"):
            self.array(data, where)
        elif may_be_pickle(head):
            self.suspect(data, where)
        release_pages(data)

    def array(self, data: memoryview, where: str) -> None:
        """Look into a NumPy file: an array of objects is a pickle behind the header."""
        wide = bytes(data[6:7]) > b"\1"
        start = 12 + int.from_bytes(data[8:12], "little") if wide else 10 + data[8] + 256 * data[9]
        header = bytes(data[10 : min(start, 65536)])
        if re.search(rb"'descr':[^']*'\|?O", header) or b"'O'" in header:
            self.findings.add("member.pickle", where, "a NumPy array of objects", start)
            self.pickles(data[start:], inside(where, f"byte {start}"))

    def suspect(self, data: memoryview, where: str) -> None:
        """Look into what may be a pickle, or text that starts like one."""
        found = Findings()
        end, walker = walk_pickles(data, where, found, self.budget)
        is_whole = end == len(data) and not found.counts["pickle.malformed"]
        if is_whole or found.counts["pickle.call"] or bytes(data[:1]) == b"\x80":
            self.findings.add("member.pickle", where, "a pickle")
            note_rebuilds(walker)
            for finding in found.listed:
                self.findings.add(finding.rule, where, finding.message, finding.offset)


def _is_code(name: str, head: bytes) -> bool:
    return PurePosixPath(name).suffix.lower() in _CODE_SUFFIXES or head.startswith(_CODE_MAGICS)
