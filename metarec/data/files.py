"""From files to tables: text with separated fields, and Parquet."""

from __future__ import annotations

import csv
import gzip
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import polars as pl

from metarec.data.building import SIDES, Columns, Table, spell_integers
from metarec.errors import DataError, unknown_name

SEPARATORS = ("::", "\t", ",", ";", "|")
SAMPLE = 1_000
UNIT_SEPARATOR = "\x1f"

NUMBER = (
    r"^[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$|^(?i:[+-]?inf(?:inity)?|nan)$"
)
EXPECTED: dict[type[pl.DataType], str] = {
    pl.Int64: "an integer",
    pl.Float64: "a number",
    pl.Float32: "a number",
}


@dataclass(frozen=True)
class Layout:
    """How a text file is laid out.

    Parameters
    ----------
    separator : str, optional
        Between fields; by default the one of ``:: tab , ; |`` that is most frequent in the first line.
    encoding : str, default "utf-8"
        Any that Python knows.
    header : bool, default True
        Whether the first line names the columns.
    names : tuple of str, optional
        What to call the columns; by default as the header does, or 1, 2, … without one.
    quote : str or None, default '"'
        Encloses fields that hold a separator or a line break; None where it is a character like others.
    """

    separator: str | None = None
    encoding: str = "utf-8"
    header: bool = True
    names: tuple[str, ...] | None = None
    quote: str | None = '"'


def read_text(
    path: Path,
    types: Mapping[str, type[pl.DataType]] | None = None,
    layout: Layout = Layout(),
) -> Table:
    """Read a text file, plain or gzipped; an empty field is null, and an empty line is passed over.

    Parameters
    ----------
    path : Path
    types : mapping of column to polars type, optional
        The columns to read: Int64, Float32, Float64 or String. By default all, as strings.
    layout : Layout

    Raises
    ------
    DataError
        The file is missing, empty, in another encoding or has another separator; a column is missing; a line has too
        many fields; or a field is not of its column's type.
    """
    layout, names = _survey(path, layout)
    types = dict.fromkeys(names, pl.String) if types is None else types
    for name in types:
        _check_column(path, name, names, layout)
    try:
        return _parse(path, types, layout, names)
    except pl.exceptions.PolarsError as error:
        raise _diagnose(path, types, layout, names) or DataError(f"{path}: {_first_line(error)}") from None


def read_text_interactions(
    path: Path,
    columns: Columns,
    layout: Layout = Layout(),
) -> Table:
    """Read the interactions of a text file; find out whether ids are integers, and what times are.

    Ids are integers where all can be read as such and the first thousand have no leading zeros.
    Times are integers, numbers (rounded down), or dates as in ISO 8601.

    Parameters
    ----------
    path, layout
        As for `read_text`.
    columns : Columns

    Raises
    ------
    DataError
        As for `read_text`.
    """
    layout, names = _survey(path, layout)
    wanted = [column for column in (columns.user, columns.item, columns.rating, columns.time) if column]
    for name in wanted:
        _check_column(path, name, names, layout)
    sample = _sample(path, wanted, layout, names)
    types: dict[str, type[pl.DataType]] = {
        columns.of(side): pl.Int64 if spell_integers(sample[columns.of(side)]) else pl.String
        for side in SIDES
    }
    if columns.time:
        types[columns.time] = _time_type(sample[columns.time])
    if columns.rating:
        types[columns.rating] = pl.Float32
    try:
        table = _parse(path, types, layout, names)
    except pl.exceptions.PolarsError:
        types |= {columns.of(side): pl.String for side in SIDES}
        table = read_text(path, types, layout)
    return _with_times(table, columns.time) if columns.time else table


def read_parquet(path: Path, columns: list[str] | None = None) -> Table:
    """Read a Parquet file, or some of its columns.

    Raises
    ------
    DataError
        The file is missing or no Parquet file, or a column is missing.
    """
    _check_file(path)
    try:
        names = pl.read_parquet_schema(path)
        for name in columns or ():
            if name not in names:
                raise DataError(f"{path}: {unknown_name('column', name, names)}")
        return Table(pl.read_parquet(path, columns=columns), str(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: is no Parquet file ({_first_line(error)})") from None


def with_numbers(table: Table) -> Table:
    """The same table, its columns of strings that all spell numbers turned into numbers.

    A column stays as it is where a value has leading zeros, such as a postal code.
    """
    frame = table.frame
    strings = [name for name, dtype in frame.schema.items() if dtype == pl.String]
    return replace(table, frame=frame.with_columns(_as_numbers(frame[name]) for name in strings))


def typed(table: Table, name: str, dtype: type[pl.DataType]) -> Table:
    """The same table, a column of strings read as `dtype`.

    Raises
    ------
    DataError
        A value does not spell one; the line names its place.
    """
    strings = table.column(name)
    values = strings.cast(dtype, strict=False)
    table.check(strings.is_not_null() & values.is_null(), name, EXPECTED[dtype])
    return replace(table, frame=table.frame.with_columns(values))


def _survey(path: Path, layout: Layout) -> tuple[Layout, list[str]]:
    """The layout with its separator, and the columns' names."""
    _check_file(path)
    with _open(path) as file:
        try:
            first = file.readline()
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: is damaged ({_first_line(error)})") from None
    line = _decoded(path, 1, first, layout).lstrip("\ufeff").rstrip("\r\n")
    if not line:
        raise DataError(f"{path}: is empty, expected {'a header' if layout.header else 'lines of fields'}")
    layout = replace(layout, separator=layout.separator or _likely_separator(line))
    fields = _fields(line, layout)
    names = list(layout.names or (fields if layout.header else map(str, range(1, len(fields) + 1))))
    if len(names) != len(fields):
        raise DataError(f"{path}, line 1: found {_count(fields)}, expected {len(names)} ({', '.join(names)})")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{path}, line 1: column {repeated[0]!r} stands there twice, expected once")
    return layout, names


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: is a directory, expected a file")
    if not path.is_file():
        raise DataError(f"{path}: no such file")


def _check_column(path: Path, name: str, names: list[str], layout: Layout) -> None:
    if name in names:
        return
    if len(names) == 1:
        raise DataError(
            f"{path}, line 1: found the single column {names[0]!r}, expected {name!r} and others "
            f"(is {layout.separator!r} the right separator?)"
        )
    raise DataError(f"{path}: {unknown_name('column', name, names)}")


def _likely_separator(line: str) -> str:
    counts = {separator: line.count(separator) for separator in SEPARATORS}
    return max(counts, key=counts.__getitem__) if any(counts.values()) else ","


def _parse(path: Path, types: Mapping[str, type[pl.DataType]], layout: Layout, names: list[str]) -> Table:
    frame = _scan(path, types, layout, names).select(list(types)).collect()
    table = Table(frame, str(path), lambda row: f"line {_line(path, layout, row)}")
    if frame.width and all(column.null_count() for column in frame):
        filled = ~frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
        table = table.take(filled.arg_true().cast(pl.Int64).to_torch())
    return table


def _sample(path: Path, wanted: list[str], layout: Layout, names: list[str]) -> pl.DataFrame:
    strings = dict.fromkeys(names, pl.String)
    try:
        return _scan(path, strings, layout, names).select(wanted).head(SAMPLE).collect()
    except pl.exceptions.PolarsError as error:
        raise _diagnose(path, strings, layout, names) or DataError(f"{path}: {_first_line(error)}") from None


def _scan(
    path: Path, types: Mapping[str, type[pl.DataType]], layout: Layout, names: list[str]
) -> pl.LazyFrame:
    separator = layout.separator or ","
    return pl.scan_csv(
        path if _is_plain(layout) else io.BytesIO(_transcoded(path, layout)),
        schema={name: types.get(name, pl.String) for name in names},
        has_header=False,
        skip_rows=int(layout.header),
        separator=separator if len(separator) == 1 else UNIT_SEPARATOR,
        quote_char=layout.quote if len(separator) == 1 else None,
    )


def _is_plain(layout: Layout) -> bool:
    return (
        layout.encoding.lower().replace("_", "-") in ("utf-8", "utf8", "ascii")
        and len(layout.separator or ",") == 1
    )


def _transcoded(path: Path, layout: Layout) -> bytes:
    """The file as polars takes it: UTF-8, with a separator of one byte."""
    separator = layout.separator or ","
    with _open(path) as file:
        data = file.read()
    try:
        text = data.decode(layout.encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _wrong_encoding(path, line, error, layout) from None
    return (text if len(separator) == 1 else text.replace(separator, UNIT_SEPARATOR)).encode()


def _diagnose(
    path: Path, types: Mapping[str, type[pl.DataType]], layout: Layout, names: list[str]
) -> DataError | None:
    """What is wrong with a file that could not be parsed; slow, but only a user with a mistake waits for it."""
    numeric = {names.index(name): dtype for name, dtype in types.items() if dtype in EXPECTED}
    try:
        for line, fields in _records(path, layout):
            if len(fields) > len(names):
                return DataError(f"{path}, line {line}: found {_count(fields)}, expected {len(names)}")
            for position, dtype in numeric.items():
                text = fields[position] if position < len(fields) else ""
                if text and not _spells(text, dtype):
                    return DataError(
                        f"{path}, line {line}, column {names[position]!r}: found {text!r}, expected {EXPECTED[dtype]}"
                    )
    except DataError as error:
        return error
    except (OSError, EOFError, csv.Error) as error:
        return DataError(f"{path}: is damaged ({_first_line(error)})")
    return None


def _spells(text: str, dtype: type[pl.DataType]) -> bool:
    return pl.Series([text]).cast(dtype, strict=False).null_count() == 0


def _line(path: Path, layout: Layout, row: int) -> int:
    """Where a record begins, as a text editor counts lines."""
    for record, (line, _) in enumerate(_records(path, layout)):
        if record == row:
            return line
    raise AssertionError("the row came from this file")


def _records(path: Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """The line at which each record after the header begins, and its fields."""
    reader: Iterator[list[str]]
    with _open(path) as file:
        lines = (_decoded(path, number, line, layout) for number, line in enumerate(file, start=1))
        if len(layout.separator or ",") > 1 or layout.quote is None:
            for number, line in enumerate(lines, start=1):
                if number > layout.header:
                    yield number, _fields(line.rstrip("\r\n"), layout)
            return
        reader = csv.reader(lines, delimiter=layout.separator or ",", quotechar=layout.quote)
        before = 0
        for record, fields in enumerate(reader):
            if record >= layout.header:
                yield before + 1, fields
            before = reader.line_num


def _fields(line: str, layout: Layout) -> list[str]:
    separator = layout.separator or ","
    if len(separator) > 1 or layout.quote is None:
        return line.split(separator)
    return next(csv.reader([line], delimiter=separator, quotechar=layout.quote))


def _count(fields: list[str]) -> str:
    return "1 field" if len(fields) == 1 else f"{len(fields)} fields"


def _decoded(path: Path, number: int, line: bytes, layout: Layout) -> str:
    try:
        return line.decode(layout.encoding)
    except LookupError:
        raise DataError(
            f"{path}: unknown encoding {layout.encoding!r}, expected one that Python knows"
        ) from None
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, number, error, layout) from None


def _wrong_encoding(path: Path, line: int, error: UnicodeDecodeError, layout: Layout) -> DataError:
    byte = error.object[error.start]
    return DataError(
        f"{path}, line {line}: found byte 0x{byte:02X}, expected text in {layout.encoding} (another encoding?)"
    )


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if gzipped else path.open("rb")  # type: ignore[return-value]


def _all_match(strings: pl.Series, pattern: str) -> bool:
    return bool(strings.drop_nulls().str.contains(pattern).all())


def _time_type(sample: pl.Series) -> type[pl.DataType]:
    if spell_integers(sample):
        return pl.Int64
    return pl.Float64 if _all_match(sample, NUMBER) else pl.String


def _with_times(table: Table, name: str) -> Table:
    strings = table.frame[name]
    if strings.dtype != pl.String:
        return table
    try:
        times = strings.str.to_datetime(strict=False)
    except pl.exceptions.ComputeError:  # no format found
        times = pl.Series(name, [None] * len(strings), dtype=pl.Datetime)
    table.check(strings.is_not_null() & times.is_null(), name, "a time (a number or an ISO date)")
    return replace(table, frame=table.frame.with_columns(times))


def _as_numbers(strings: pl.Series) -> pl.Series:
    if strings.null_count() == len(strings) or not _all_match(strings, NUMBER):
        return strings
    whole = strings.cast(pl.Int64, strict=False)
    return whole if whole.null_count() == strings.null_count() else strings.cast(pl.Float64)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
