"""Where bulk data lies: a directory of this machine, or a place in any store that fsspec reaches.

A file is written here and brought to its place when it is whole, so that nobody ever reads half of one; what has to be
a file on disk to be read is fetched for as long as it is read.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from rl_assets.errors import ConfigurationError, MalformedInput, RlAssetsError, reason_of

if TYPE_CHECKING:
    from upath import UPath

Place: TypeAlias = "Path | UPath"
OBJECT_STORES = frozenset({"memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "tos"})
"""Protocols of stores in which an object is seen when it is whole, and not before."""


def place_of(text: str) -> Place:
    """The place that a path or a URL such as `s3://bucket/data` names. Raises ConfigurationError without its driver."""
    if "://" not in text:
        return Path(text).expanduser().absolute()
    from upath import UPath  # takes a second to import

    try:
        found = UPath(text.rstrip("/"))
        found.fs  # noqa: B018  # loads the driver
    except (ImportError, ValueError) as error:
        protocol = text.partition("://")[0]
        raise ConfigurationError(
            f"{protocol}:// cannot be used as a store ({reason_of(error)}); install its driver"
        ) from error
    return found


@contextmanager
def whole_file(place: Place) -> Iterator[Path]:
    """A file to write to, which becomes what is at `place` if all goes well and vanishes if not.

    Raises RlAssetsError where the disk or the store refuses.
    """
    try:
        with _here(place) as partial:
            yield partial
            if isinstance(place, Path):
                os.replace(partial, place)
            else:
                _put(partial, place)
    except OSError as error:
        raise RlAssetsError(
            f"{place} cannot be written ({reason_of(error)}); free disk space, or set RL_ASSETS_DATA to a directory "
            "that can be written"
        ) from error


@contextmanager
def local_file(place: Place) -> Iterator[Path]:
    """What is at a place as a file on disk: itself, or a copy that vanishes afterwards. Raises FileNotFoundError, and
    RlAssetsError where the store refuses."""
    with local_directory(place.parent, place.name) as directory:
        yield directory / place.name


@contextmanager
def local_directory(place: Place, *names: str) -> Iterator[Path]:
    """A directory on disk with these files of a place: itself, or copies that vanish afterwards. Raises as `local_file`
    does."""
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="rl-assets-") as directory:
        for name in names:
            _get(place / name, Path(directory) / name)
        yield Path(directory)


@contextmanager
def readable_file(place: Place) -> Iterator[Path | BinaryIO]:
    """What is at a place, for a reader that wants some parts of it: from a store only these are fetched. Raises as
    `local_file` does."""
    if isinstance(place, Path):
        yield place
        return
    with _asking(place, "read"):
        stream = place.open("rb")
    with stream:
        yield stream


def keep_directory(directory: Path, place: Place) -> None:
    """Put a directory's files into one archive at a place, unless it is there. Raises RlAssetsError."""
    if place.is_file():
        return
    with whole_file(place) as partial, tarfile.open(partial, "w") as archive:
        for file in sorted(file for file in directory.rglob("*") if file.is_file()):
            archive.add(file, file.relative_to(directory).as_posix())


def bring_directory(place: Place, directory: Path) -> bool:
    """Unpack the archive at a place to a directory that is not there yet; False where there is no archive.

    Raises MalformedInput where the archive is damaged, and RlAssetsError where the store or the disk refuses.
    """
    if not place.is_file():
        return False
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        try:
            with local_file(place) as copy, tarfile.open(copy) as archive:
                archive.extractall(partial, filter="data")
            partial.chmod(0o755)
            try:
                os.replace(partial, directory)
            except OSError:
                if not directory.is_dir():  # else another process has brought it meanwhile
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except tarfile.TarError as error:
        raise MalformedInput(f"{place} is a damaged archive ({reason_of(error)}); restore it, or delete it") from error
    except OSError as error:
        raise RlAssetsError(f"{directory} cannot be written ({reason_of(error)}); free disk space") from error
    return True


def bytes_at(place: Place) -> int | None:
    """The size of a file, 0 where the store does not tell; None where there is no file. Raises RlAssetsError where the
    store refuses."""
    if isinstance(place, Path):
        return place.stat().st_size if place.is_file() else None
    with _asking(place, "read"):
        return (place.fs.size(place.path) or 0) if place.fs.isfile(place.path) else None


def delete(place: Place) -> None:
    """Delete a file, if it is there. Raises OSError where the disk refuses, RlAssetsError where the store does."""
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
        return
    with _asking(place, "deleted"):
        if place.fs.isfile(place.path):
            place.fs.rm_file(place.path)


@contextmanager
def _here(place: Place) -> Iterator[Path]:
    if isinstance(place, Path):
        partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)
    else:
        with tempfile.TemporaryDirectory(prefix="rl-assets-") as directory:
            yield Path(directory) / place.name


def _put(file: Path, place: UPath) -> None:
    with _asking(place, "written"):
        if place.protocol in OBJECT_STORES:
            place.fs.put_file(str(file), place.path)
            return
        beside = place.with_name(f".{place.name}.{os.getpid()}.partial")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.fs.put_file(str(file), beside.path)
        place.fs.mv(beside.path, place.path)


def _get(place: UPath, copy: Path) -> None:
    with _asking(place, "read"):
        place.fs.get_file(place.path, str(copy))


@contextmanager
def _asking(place: UPath, what: str) -> Iterator[None]:
    """Say in one sentence that a store refused. Each driver has errors of its own, so that every kind is caught."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise RlAssetsError(
            f"{place} cannot be {what} ({reason_of(error)}); see that RL_ASSETS_STORE answers, and that its driver "
            "finds credentials"
        ) from error
