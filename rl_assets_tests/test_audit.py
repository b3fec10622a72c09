"""What the dependency audit makes of pip-audit's report. Asking for advisories is pip-audit's affair."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from rl_assets.settings import REPOSITORY

REPORT = {
    "dependencies": [
        {"name": "clean", "version": "1", "vulns": []},
        {"name": "unknown", "skip_reason": "not on PyPI"},
        {"name": "mended", "version": "2", "vulns": [{"id": "GHSA-1", "aliases": ["CVE-1"], "fix_versions": ["3"]}]},
        {"name": "open", "version": "4", "vulns": [{"id": "GHSA-2", "fix_versions": []}]},
    ]
}


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", REPOSITORY / ".ci" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "audit", module)
    spec.loader.exec_module(module)
    return module


def test_only_what_a_release_mends_and_nobody_allows_fails(audit: ModuleType):
    found = {one.package: one.fails for one in audit.advisories(REPORT, {})}
    assert found == {"mended": True, "open": False}
    by_alias = {one.package: one.fails for one in audit.advisories(REPORT, {"CVE-1": "we never parse it"})}
    assert by_alias == {"mended": False, "open": False}


@pytest.mark.parametrize(("reports", "code"), [([None], 0), ([{"dependencies": []}], 0), ([REPORT, REPORT], 1)])
def test_the_exit_code_says_whether_something_is_to_be_mended(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reports: list[dict | None],
    code: int,
):
    monkeypatch.setattr(audit, "audit", lambda _: reports.pop(0))
    assert audit.main() == code
    said = capsys.readouterr().out
    assert ("FAIL  mended 2: GHSA-1, fixed in 3" in said) == bool(code)
    assert ("nothing was audited" in said) == (not code)


def test_an_allowance_needs_a_reason(audit: ModuleType):
    assert audit.allowed("# c\nCVE-1 we never parse it\n") == {"CVE-1": "we never parse it"}
    with pytest.raises(ValueError, match="CVE-2 is allowed without a reason"):
        audit.allowed("CVE-2\n")
    audit.allowed((REPOSITORY / ".ci" / "audit-allow.txt").read_text())
