"""What a scan found, and every rule that a finding can be of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
MAX_FINDINGS_PER_RULE = 50  # of one file; the others are counted


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of finding. An `error` is refused by the readers, or runs code elsewhere."""

    severity: Severity
    summary: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `where` is `member!entry` within the file, empty for the file as a whole.

    `offset` is the byte in `where`, `line` the line in it, where there is one.
    """

    rule: str
    where: str
    message: str
    offset: int | None = None
    line: int | None = None

    @property
    def severity(self) -> Severity:
        """The severity of the rule."""
        return RULES[self.rule].severity


@dataclass(frozen=True, slots=True)
class ScanReport:
    """What a scan found in one file; `left_out` counts by rule what is not listed."""

    path: str
    format: str
    size: int
    findings: tuple[Finding, ...]
    left_out: dict[str, int]

    def count(self, severity: Severity) -> int:
        """Return the number of findings of a severity, those left out included."""
        listed = sum(finding.severity == severity for finding in self.findings)
        return listed + sum(n for r, n in self.left_out.items() if RULES[r].severity == severity)


class Findings:
    """Collects findings, of each rule a bounded number."""

    def __init__(self) -> None:
        self.listed: list[Finding] = []
        self.counts: Counter[str] = Counter()

    def add(
        self,
        rule: str,
        where: str,
        message: str | Callable[[], str],
        offset: int | None = None,
        line: int | None = None,
    ) -> None:
        """Add a finding; a message that takes work to make is a function, called if needed."""
        self.counts[rule] += 1
        if self.counts[rule] <= MAX_FINDINGS_PER_RULE:
            text = message if isinstance(message, str) else message()
            self.listed.append(Finding(rule, where, text, offset, line))

    def report(self, path: str, kind: str, size: int) -> ScanReport:
        """Return the report, the worst findings first, else in the order of discovery."""
        order = sorted(self.listed, key=lambda finding: SEVERITIES.index(finding.severity))
        left_out = {
            rule: count - MAX_FINDINGS_PER_RULE
            for rule, count in sorted(self.counts.items())
            if count > MAX_FINDINGS_PER_RULE
        }
        return ScanReport(path, kind, size, tuple(order), left_out)


def inside(where: str, name: str) -> str:
    """Return the place of a member within a place."""
    return f"{where}!{name}" if where else name


RULES: dict[str, Rule] = {
    "reader.refuses": Rule("error", "what the readers of jarvis-rules say; the slug is in front"),
    # Pickles
    "pickle.call": Rule("error", "loading it calls a function that no state dict needs"),
    "pickle.import": Rule("error", "loading it imports a module, which runs the module's code"),
    "pickle.computed-name": Rule("error", "it imports by a name that it computes when loaded"),
    "pickle.build": Rule("error", "loading it sets the state of an object of another kind"),
    "pickle.extension": Rule("error", "it imports by a number of Python's extension registry"),
    "pickle.persistent-id": Rule("error", "it refers to something that is no storage of torch"),
    "pickle.malformed": Rule("error", "it breaks off or contradicts itself there"),
    "pickle.limit": Rule("error", "too large to be looked through to its end"),
    "pickle.trailing-data": Rule("warning", "bytes after the end of the last pickle"),
    "pickle.known-elsewhere": Rule("warning", "names a type of torch that our readers do not know"),
    "pickle.nested": Rule("warning", "bytes in a pickle that are a pickle themselves"),
    "pickle.rebuilds": Rule("note", "harmless rebuilds of tensors and containers"),
    # Zip
    "zip.truncated": Rule("error", "its directory is missing"),
    "zip.directory": Rule("error", "its directory contradicts itself or the file"),
    "zip.trailing-data": Rule("error", "bytes after its directory, a comment included"),
    "zip.duplicate": Rule("error", "two entries of one name"),
    "zip.overlap": Rule("error", "two entries share bytes"),
    "zip.mismatch": Rule("error", "directory and local header contradict each other"),
    "zip.encrypted": Rule("error", "encrypted, or compressed in an unusual way"),
    "zip.crc": Rule("error", "content does not match its CRC-32"),
    "zip.bomb": Rule("error", "inflates beyond reason, or to another size than declared"),
    "zip.limit": Rule("error", "more entries than are looked through"),
    "zip.gap": Rule("warning", "bytes that belong to no entry"),
    "zip.name": Rule("warning", "an entry whose name leads out, or is a link"),
    "zip.unexpected": Rule("warning", "an entry that no checkpoint of torch has"),
    "zip.unused": Rule("warning", "a storage that no tensor uses"),
    # Weights
    "weights.not-finite": Rule("error", "a weight is NaN or infinite"),
    # Tar; the second halves are those of the reader's slugs
    "tar.not-a-tar": Rule("error", "neither tar nor gzip"),
    "tar.truncated": Rule("error", "it breaks off"),
    "tar.header": Rule("error", "a damaged header"),
    "tar.member-absolute": Rule("error", "a member with an absolute path"),
    "tar.member-traversal": Rule("error", "a member that leads out of the archive"),
    "tar.member-name": Rule("error", "a member with a name that no honest archive has"),
    "tar.member-link": Rule("error", "a link"),
    "tar.member-device": Rule("error", "a device or a pipe"),
    "tar.member-sparse": Rule("error", "a sparse file"),
    "tar.member-type": Rule("error", "an unknown type of member"),
    "tar.member-size": Rule("error", "a size that is absurd or contradicts itself"),
    "tar.member-duplicate": Rule("error", "one name twice; other tools take the last"),
    "tar.too-many-members": Rule("error", "too many headers"),
    "tar.too-large": Rule("error", "the members are too large in total"),
    "tar.trailing-data": Rule("error", "data after the end mark"),
    "tar.padding": Rule("warning", "bytes hidden in the padding of a member"),
    # Gzip
    "gzip.damaged": Rule("error", "damaged gzip data"),
    "gzip.bomb": Rule("error", "inflates beyond reason"),
    "gzip.trailing-data": Rule("error", "bytes after the last gzip member"),
    "gzip.members": Rule("warning", "several gzip members; some tools read the first only"),
    "gzip.extra": Rule("warning", "a header with an extra field or a comment"),
    # Members
    "member.code": Rule("warning", "a script, a module or a program"),
    "member.pickle": Rule("warning", "a pickle beside the weights"),
    "member.archive": Rule("warning", "an archive in the archive"),
    # Configuration
    "yaml.tag": Rule("error", "a tag that makes an object of any class"),
    "yaml.duplicate-key": Rule("error", "one key twice; readers take either"),
    "yaml.malformed": Rule("error", "no YAML"),
    "yaml.limit": Rule("error", "too large to be looked through to its end"),
    "config.target": Rule("error", "NeMo and Hydra call what this key names: no class of a model"),
    "config.unknown-target": Rule("warning", "a class of a package that NeMo does not bring"),
    # Manifests of .ejrvs and .jmir
    "manifest.missing-member": Rule("error", "a member is listed and not there"),
    "manifest.unlisted-member": Rule("error", "a member is there and not listed"),
    "manifest.size": Rule("error", "a member has another size than listed"),
    "manifest.digest": Rule("error", "a member has another digest than listed"),
    "manifest.encrypted": Rule("warning", "an encrypted member: nothing is known of its content"),
}
