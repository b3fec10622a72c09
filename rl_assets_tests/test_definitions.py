from __future__ import annotations

import ast
import re
import subprocess
import sys

import dagster as dg
import pytest

from rl_assets.definitions import ASSETS, build_defs, defs
from rl_assets.settings import REPOSITORY

HEAVY = (
    *("torch", "transformers", "art", "litellm", "matplotlib", "wandb", "polars", "pandas", "openai"),
    *("numpy", "psycopg", "pyarrow", "alembic", "httpx", "a2a"),
)
"""Every process of Dagster loads the definitions, and most of them do nothing that takes these."""
SHELL = ("assets/", "automation/", "resources.py", "definitions.py")
"""What is Dagster's (CONTRIBUTING.md)."""
LOOKING = ("verify/automation.py", "commands/harness.py")
"""What looks at its instance, inside functions."""
DAGSTER = re.compile(r"dagster(\w*)(\.|$)")


def test_the_definitions_load_and_every_job_resolves():
    dg.Definitions.validate_loadable(build_defs())
    repository = defs.get_repository_def()
    assert {job.name for job in repository.get_all_jobs()} >= {"pipeline_window", "training", "rollback"}
    assert {sensor.name for sensor in repository.sensor_defs} >= {"training_sensor", "trajectory_window_sensor"}


@pytest.mark.parametrize("asset", ASSETS, ids=lambda asset: asset.key.to_user_string())
def test_every_asset_says_what_it_is(asset: dg.AssetsDefinition | dg.AssetSpec):
    spec = asset if isinstance(asset, dg.AssetSpec) else next(iter(asset.specs))
    assert spec.description
    assert spec.kinds
    assert spec.owners
    assert spec.group_name not in (None, "default")
    for check in [] if isinstance(asset, dg.AssetSpec) else asset.check_specs:
        assert check.description, check.name


@pytest.mark.parametrize("asset", ASSETS, ids=lambda asset: asset.key.to_user_string())
def test_every_asset_leads_to_its_docs_its_rows_and_what_they_mean(asset: dg.AssetsDefinition | dg.AssetSpec):
    spec = asset if isinstance(asset, dg.AssetSpec) else next(iter(asset.specs))
    docs, schema = spec.metadata["docs"], spec.metadata["dagster/column_schema"]
    assert isinstance(docs, dg.PathMetadataValue) and (REPOSITORY / docs.path).is_file()
    rows = {spec.metadata.get("dagster/uri"), spec.metadata.get("dagster/table_name")} - {None}
    assert rows and spec.metadata["columns_are_of"] in rows
    assert isinstance(schema, dg.TableSchema)
    assert all(column.description and column.type for column in schema.columns)


def test_every_job_sensor_schedule_and_knob_is_described():
    repository = defs.get_repository_def()
    for described in (*repository.sensor_defs, *repository.schedule_defs):
        assert described.description, described.name
    assert all(job.description for job in repository.get_all_jobs() if not job.name.startswith("__"))
    for resource in (defs.resources or {}).values():
        for name, field in type(resource).model_fields.items():
            assert field.description, f"{type(resource).__name__}.{name}"


def test_loading_the_definitions_imports_nothing_heavy():
    code = f"import sys, rl_assets.definitions; print([m for m in {HEAVY} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "code, where",
    [
        ("import dagster as dg", {"module"}),
        ("from dagster import asset", {"module"}),
        ("from dagster._core.storage import root", {"module"}),
        ("import json, dagster_postgres.utils", {"module"}),
        ("try:\n    from dagster import asset\nexcept ImportError:\n    pass", {"module"}),
        ("def f():\n    from dagster import asset", {"function"}),
        ("class A:\n    async def f(self):\n        import dagster", {"function"}),
        ("importlib.import_module('dagster.cli')", {"module"}),
        ("from rl_assets import dagster\nimport daggers", set()),
        ("if TYPE_CHECKING:\n    import dagster", set()),
    ],
)
def test_an_import_of_dagster_is_seen_however_it_is_written(code: str, where: set[str]):
    assert dagster_imports(ast.parse(code)) == where


def test_only_the_shell_imports_dagster():
    root = REPOSITORY / "rl_assets"
    found = {
        path.relative_to(root).as_posix(): dagster_imports(ast.parse(path.read_text(encoding="utf-8")))
        for path in root.rglob("*.py")
    }
    beyond = {name: where for name, where in found.items() if where and not name.startswith(SHELL)}
    assert beyond == {name: {"function"} for name in LOOKING}


def dagster_imports(node: ast.AST, where: str = "module") -> set[str]:
    """Whether Dagster or one of its libraries is imported when the module is loaded, in a function, both or neither."""
    names: list[str] = []
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return set()
        case ast.Import():
            names = [alias.name for alias in node.names]
        case ast.ImportFrom(module=str(module), level=0):
            names = [module]
        case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
            names = [str(given.value) for given in node.args if isinstance(given, ast.Constant)]
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            where = "function"
    found = {where} if any(DAGSTER.match(name) for name in names) else set()
    return found.union(*(dagster_imports(child, where) for child in ast.iter_child_nodes(node)))


def test_the_market_knows_no_agents():
    found = [
        path.name
        for path in (REPOSITORY / "rl_assets" / "market").rglob("*.py")
        if "import rl_assets.agents" in (text := path.read_text(encoding="utf-8")) or "from rl_assets.agents" in text
    ]
    assert found == []
