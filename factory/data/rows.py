"""Rows of files and of datasets as they lie there: what each is called in an error, and its columns. No torch.

Everything is read row by row; of a parquet file and of a dataset only the columns that are asked for.
What a column means is not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.errors import DataError
from factory.files.json_reading import NotJsonError, json_kind, parse_json
from factory.hub import Asked, diagnose, first_line, require_hub_name, without_token
from factory.logs import quieten

_SUCH = '{"prompt": "..."}'
FILE_KINDS = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row of a source."""

    place: str  # `file:line`, or file or dataset with the row's number, from 1
    values: dict[str, Any]
    columns: tuple[str, ...]  # all that the source has here, read or not


def file_rows(path: Path, wanted: Collection[str]) -> Iterator[Row]:
    """Rows of a .jsonl, .parquet or text file; a line of text is a row with the column `text`, an empty one is none.

    Raises DataError with file:line.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, wanted)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as lines:  # other line ends occur inside texts
            for number, line in enumerate(lines, 1):
                line = line.rstrip("\r\n")
                if not line.strip():
                    continue
                place = f"{path}:{number}"
                values = _json_object(place, line) if path.suffix == ".jsonl" else {"text": line}
                yield Row(place, values, tuple(values))
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror or str(error)
        raise DataError(f"{path}: cannot be read ({reason}); give a UTF-8 .jsonl or .txt file, or .parquet") from error


def _json_object(place: str, line: str) -> dict[str, Any]:
    try:
        record = parse_json(line)
    except NotJsonError as error:
        what = str(error).replace(" line 1,", "")  # of the file, the place says which
        raise DataError(f"{place}: {what}; write one object a line, such as {_SUCH}") from error
    if not isinstance(record, dict):
        raise DataError(f"{place}: {json_kind(record)}, where an object is read; write one a line, such as {_SUCH}")
    return record


def _parquet_rows(path: Path, wanted: Collection[str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = tuple(file.schema_arrow.names)
            read = [column for column in columns if column in wanted]
            number = 0
            # Without a column to read, a batch has no rows; one is enough to say what is missing.
            if not read and file.metadata.num_rows:
                yield Row(f"{path}: row 1", {}, columns)
            for batch in file.iter_batches(batch_size=1024, columns=read):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", values, columns)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read; is it a whole parquet file?") from error


def dataset_name(name: str, subset: str | None, split: str) -> str:
    """What a dataset is called in an error."""
    return f"dataset {name} ({subset}, {split})" if subset else f"dataset {name} ({split})"


def dataset_rows(name: str, subset: str | None, split: str, wanted: Collection[str]) -> Iterator[Row]:
    """Rows of a dataset of the Hub, or of a folder of files, streamed: no more is fetched than is read.

    Raises DataError.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"data.prompts names the dataset {name}, which needs: pip install 'drafter-factory[datasets]'"
        ) from error
    if _is_on_hub(name):
        require_hub_name(name, DataError, "dataset")
        if not datasets.config.HF_HUB_OFFLINE:  # else the library looks into its own cache, and at once
            diagnose(Asked(name, "read", kind="dataset"), DataError)  # it would try again for long
    datasets.disable_progress_bars()
    quieten("datasets", "fsspec")
    said = dataset_name(name, subset, split)
    try:
        stream = datasets.load_dataset(name, subset, split=split, streaming=True)
        columns = tuple(stream.column_names or ())  # not known beforehand for every kind of file
        if read := [column for column in columns if column in wanted]:
            stream = stream.select_columns(read)
        records = enumerate(stream, 1)
        found = next(records, None)
    except Exception as error:
        raise _unreachable(name, said, error) from error
    while found is not None:
        number, values = found
        yield Row(f"{said}, row {number}", dict(values), columns or tuple(values))
        try:
            found = next(records, None)
        except Exception as error:
            raise _unreachable(name, said, error) from error


def _is_on_hub(name: str) -> bool:
    """Whether it names a repository; the library knows folders, and addresses of its own, too."""
    return not Path(name).is_dir() and not name.startswith("hf://")


def _unreachable(name: str, said: str, error: Exception) -> DataError:
    """What is wrong, as the Hub tells it; else in the words of the library.

    The library raises many kinds for "not reachable", "no such split" and "not to be decoded", and drops their causes.
    """
    if _is_on_hub(name):
        try:
            diagnose(Asked(name, "read", kind="dataset"), DataError)
        except DataError as found:
            return found
    return DataError(f"{said}: {without_token(first_line(error))}; check its name, subset and split, and the network")
