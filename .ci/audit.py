"""Known vulnerabilities of what constraints.txt installs, by pip-audit; run by `make audit`.

Fails on an advisory that a release fixes and that `.ci/audit-allow.txt` does not name with a reason. Advisories without
a fix are shown, for there is nothing to install against them; where the advisories cannot be reached, that is said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SECONDS = 300
PROBE = "pip==23.0"
"""A release with known advisories: if it is found to be clean, the advisories are out of reach."""


@dataclass(frozen=True)
class Advisory:
    """fixed_in: the releases that mend it. reason: why it is allowed, if it is."""

    package: str
    version: str
    id: str
    fixed_in: tuple[str, ...]
    reason: str | None

    @property
    def fails(self) -> bool:
        return bool(self.fixed_in) and self.reason is None

    def __str__(self) -> str:
        what = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no release fixes it"
        return f"{self.package} {self.version}: {self.id}, {what}" + (
            f"; allowed: {self.reason}" if self.reason else ""
        )


def allowed(text: str) -> dict[str, str]:
    """Reasons by advisory. A line is an id and a reason; one without a reason is a ValueError."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    pairs = [line.partition(" ") for line in lines if line]
    bare = [name for name, _, reason in pairs if not reason.strip()]
    if bare:
        raise ValueError(f"{bare[0]} is allowed without a reason; write one behind it in .ci/audit-allow.txt")
    return {name: reason.strip() for name, _, reason in pairs}


def advisories(report: dict[str, Any], reasons: dict[str, str]) -> Iterator[Advisory]:
    """What pip-audit's JSON report tells of."""
    for found in report["dependencies"]:
        for one in found.get("vulns", ()):
            names = (one["id"], *one.get("aliases", ()))
            reason = next((reasons[name] for name in names if name in reasons), None)
            yield Advisory(found["name"], found["version"], one["id"], tuple(one["fix_versions"]), reason)


def audit(requirements: Path) -> dict[str, Any] | None:
    """pip-audit's report, or None where it cannot be had."""
    command = ["-r", str(requirements), "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "pip_audit", *command], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        return json.loads(ended.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return None


def main() -> int:
    reasons = allowed((HERE / "audit-allow.txt").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as directory:
        probe = Path(directory) / "probe.txt"
        probe.write_text(PROBE, encoding="utf-8")
        known = audit(probe)
    report = audit(HERE.parent / "constraints.txt") if known and list(advisories(known, {})) else None
    if report is None:
        sys.stdout.write("the advisories cannot be reached from here: nothing was audited\n")
        return 0
    found = sorted(advisories(report, reasons), key=lambda one: (not one.fails, one.package))
    sys.stdout.writelines(f"{'FAIL' if one.fails else 'note'}  {one}\n" for one in found)
    failing = sum(one.fails for one in found)
    sys.stdout.write(f"{len(report['dependencies'])} packages, {len(found)} advisories, {failing} to mend\n")
    return 1 if failing else 0


if __name__ == "__main__":
    sys.exit(main())
