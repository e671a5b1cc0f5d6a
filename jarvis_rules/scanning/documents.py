"""The reports of scans as documents: our own JSON, and SARIF 2.1.0 for code scanning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jarvis_rules import __version__
from jarvis_rules.scanning.report import RULES, SEVERITIES, Finding, ScanReport

JSON_VERSION = 1
_SARIF_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)


def report_document(reports: Sequence[ScanReport]) -> dict[str, Any]:
    """Return the JSON document; its schema is `schemas/scan.schema.json`."""
    return {
        "version": JSON_VERSION,
        "files": [
            {
                "path": report.path,
                "format": report.format,
                "size": report.size,
                "counts": {severity: report.count(severity) for severity in SEVERITIES},
                "findings": [
                    {
                        "rule": finding.rule,
                        "severity": finding.severity,
                        "where": finding.where,
                        "offset": finding.offset,
                        "line": finding.line,
                        "message": finding.message,
                    }
                    for finding in report.findings
                ],
                "left_out": report.left_out,
            }
            for report in reports
        ],
    }


def sarif_document(reports: Sequence[ScanReport]) -> dict[str, Any]:
    """Return a SARIF 2.1.0 log; files are named as they were given, relative ones stay so."""
    ids = list(RULES)
    results = [
        _result(report, finding, ids.index(finding.rule))
        for report in reports
        for finding in report.findings
    ]
    rules = [
        {
            "id": name,
            "shortDescription": {"text": rule.summary},
            "defaultConfiguration": {"level": rule.severity},
        }
        for name, rule in RULES.items()
    ]
    driver = {"name": "jarvis-rules scan", "semanticVersion": __version__, "rules": rules}
    return {
        "$schema": _SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "columnKind": "utf16CodeUnits", "results": results}],
    }


def _result(report: ScanReport, finding: Finding, index: int) -> dict[str, Any]:
    path = Path(report.path)
    uri = path.as_uri() if path.is_absolute() else quote(path.as_posix())
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": uri}}}
    if finding.where:
        place = {"fullyQualifiedName": finding.where, "kind": "member"}
        location["logicalLocations"] = [place]
    at = {"offset": finding.offset, "line": finding.line}
    properties = {name: value for name, value in at.items() if value is not None}
    text = f"{place_of(finding)}: {finding.message}" if place_of(finding) else finding.message
    return {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": finding.severity,
        "message": {"text": text},
        "locations": [location],
        **({"properties": properties} if properties else {}),
    }


def place_of(finding: Finding) -> str:
    """Return the place of a finding within its file, empty for the file as a whole."""
    if finding.line is not None:
        return f"{finding.where} line {finding.line}".lstrip()
    if finding.offset is not None:
        return f"{finding.where} byte {finding.offset}".lstrip()
    return finding.where
