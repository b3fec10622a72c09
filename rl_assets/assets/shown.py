"""How assets tell what they did: tables, pictures, files, and failures in one sentence."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dagster as dg

from rl_assets.errors import DatabaseError, RlAssetsError
from rl_assets.places import Place
from rl_assets.redact import redact
from rl_assets.tree import Tree, WindowFiles

if TYPE_CHECKING:
    from rl_assets.resources import Lake

OWNERS = ["team:market-agents"]
MOST_PICTURES = 16
"""Partitions of a run that are drawn: a picture takes 0.4 s of CPU, and a range may be hundreds."""
NOT_DRAWN = f"not drawn: a run draws its first {MOST_PICTURES} partitions; materialize this one alone to see it"
TREE = Tree(Path())
"""Paths in it are told below the root of the data (RL_ASSETS_STORE)."""
OF_A_BATCH = ("training_batches", "trained_models", "benchmark_evaluations")
"""Assets that have a partition per batch."""


def definition(
    docs: str, *, table: str | None = None, file: "Place | None" = None, schema: dg.TableSchema | None = None
) -> dict[str, Any]:
    """What an asset's definition tells beside its description.

    docs: a page of this repository. table: where its rows are in Postgres. file: in `TREE`, with what differs
    by partition in braces. schema: columns of the file, or else of the table.
    """
    told: dict[str, Any] = {"docs": dg.MetadataValue.path(docs)}
    if table is not None:
        told["dagster/table_name"] = table
    if file is not None:
        told["dagster/uri"] = str(file)
    if schema is not None:
        told |= {"dagster/column_schema": schema, "columns_are_of": str(file or table)}
    return told


def links(batch_id: str | None, besides: str) -> dict[str, dg.UrlMetadataValue]:
    """Where the web interface shows the other assets of a batch, by name; nothing for a model that no batch made.

    Raises ConfigurationError where RL_ASSETS_UI_URL is no URL: call it before there is something to lose.
    """
    from rl_assets.alerts import ui_url

    if batch_id is None:
        return {}
    at, query = f"{ui_url()}/assets", f"?view=partitions&partition={quote(batch_id, safe='')}"
    found = {name: f"{at}/{name}{query}" for name in OF_A_BATCH} | {"deployed_model": f"{at}/deployed_model"}
    return {name: dg.MetadataValue.url(url) for name, url in found.items() if name != besides}


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """A table of up to 50 rows, numbers to six digits; columns are those of the first row."""
    schema = dg.TableSchema([dg.TableColumn(name, _kind(rows, name)) for name in rows[0]] if rows else [])
    return dg.MetadataValue.table(
        [dg.TableRecord({k: _short(v) for k, v in row.items()}) for row in rows[:50]], schema=schema
    )


def counts(of: str, found: Mapping[str, int]) -> dg.TableMetadataValue:
    """How often each was found, most often first. of: what is counted, as the heading of its column."""
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return table([{of: name, "count": count} for name, count in ordered])


def columns(**described: str) -> dg.TableSchema:
    """The schema of what an asset writes; each value is `type: what it means, in which unit`."""
    parts = {name: text.split(": ", 1) for name, text in described.items()}
    return dg.TableSchema([dg.TableColumn(n, kind, description=text) for n, (kind, text) in parts.items()])


def picture(png: bytes) -> dg.MarkdownMetadataValue:
    from rl_assets.reports.plots import as_markdown_image

    return dg.MetadataValue.md(as_markdown_image(png))


def required(path: Place, sentence: str) -> Place:
    """The path, if it is there; otherwise a failure that says what to materialize first."""
    if not path.is_file():
        raise dg.Failure(sentence, metadata={"missing": dg.MetadataValue.path(str(path))}, allow_retries=False)
    return path


def read_hours(
    context: dg.AssetExecutionContext, lake: "Lake", file: "Callable[[WindowFiles], Place]", asset: str
) -> list[str]:
    """Of the hours that are asked for, those of which an asset has written its file.

    The others are told as having no rows: a range to be judged again holds quiet hours, which nobody ever read. Fails
    where none is left.
    """
    tree = lake.tree  # which reads the environment, and hours may be thousands
    hours = [hour for hour in context.partition_keys if file(tree.window(hour)).is_file()]
    if not hours:
        hour = context.partition_keys[0]
        sentence = f"{asset} of {hour} is not there; materialize it before {context.asset_key.to_user_string()}"
        required(file(tree.window(hour)), sentence)
    for hour in context.partition_keys:
        if hour not in hours:
            note = f"skipped: no {asset} of this hour, in which nothing was recorded when it was looked at"
            context.add_asset_metadata({"dagster/row_count": 0, "note": note}, partition_key=hour)
    return hours


@contextmanager
def plainly() -> Iterator[None]:
    """Turn an error that a person can act on into a failure with that sentence. A database may be back on a retry.

    An error that quotes a secret, itself or by what led to it, is told without it and without its traceback.
    """
    try:
        yield
    except Exception as error:
        ours, quotes = isinstance(error, RlAssetsError), _quotes_a_secret(error)
        if not ours and not quotes:
            raise
        said = redact(str(error))
        raise dg.Failure(
            said if ours else f"{type(error).__name__}: {said}",
            allow_retries=not ours or isinstance(error, DatabaseError),
        ) from (None if quotes else error)


def _quotes_a_secret(error: BaseException | None) -> bool:
    """Whether an error, a note on it, or what it came of holds one, as far as Dagster would show that."""
    if error is None:
        return False
    said = "\n".join([str(error), *getattr(error, "__notes__", ())])
    within = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return redact(said) != said or any(map(_quotes_a_secret, (error.__cause__, error.__context__, *within)))


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _kind(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    kinds = {type(row[name]) for row in rows if row[name] is not None}
    if kinds == {int, float}:
        return "float"
    return {bool: "bool", int: "int", float: "float"}.get(kinds.pop(), "string") if len(kinds) == 1 else "string"
