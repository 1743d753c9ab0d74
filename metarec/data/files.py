"""From files to tables: text with separated fields, and Parquet."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import BinaryIO

import polars as pl

from metarec.data.building import Columns, Table, spell_integers
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


def read_header(path: Path, layout: Layout = Layout()) -> list[str]:
    """The names of a text file's columns.

    Raises
    ------
    DataError
        The file is missing, empty or in another encoding, or names a column twice.
    """
    return list(_Text.survey(path, layout).names)


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
        The file is missing, empty, damaged, in another encoding or has another separator; a column is missing; a line
        has too many fields; or a field is not of its column's type.
    """
    text = _Text.survey(path, layout)
    return text.read(dict.fromkeys(text.names, pl.String) if types is None else types)


def read_text_interactions(path: Path, columns: Columns, layout: Layout = Layout()) -> Table:
    """Read the interactions of a text file; find out whether ids are integers, and what times are.

    Ids are integers where all can be read as such and the first thousand have no leading zeros.
    Times are integers, numbers (rounded down), or dates as in ISO 8601, as the first thousand are.

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
    text = _Text.survey(path, layout)
    strings: dict[str, type[pl.DataType]] = dict.fromkeys(columns.names, pl.String)
    sample = text.read(strings, lines=SAMPLE).frame
    types = strings | {
        name: pl.Int64 for name in (columns.user, columns.item) if spell_integers(sample[name])
    }
    if columns.rating:
        types[columns.rating] = pl.Float32
    if columns.time:
        types[columns.time] = _time_type(sample[columns.time])
    try:
        table = text.read(types)
    except DataError:  # perhaps for an id further down that is no integer
        table = text.read(types | {columns.user: pl.String, columns.item: pl.String})
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
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: is no Parquet file ({_first_line(error)})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({_first_line(error)})") from None


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


@dataclass(frozen=True)
class _Text:
    """A text file of which the layout is known.

    polars parses it. What it cannot parse is read again as strings, and Python's csv module finds the line of a row
    that has something wrong: slow, but only a user with a mistake waits for it.
    """

    path: Path
    layout: Layout
    names: tuple[str, ...]
    before: int
    """Lines before the first record."""

    @classmethod
    def survey(cls, path: Path, layout: Layout) -> _Text:
        """Look at the first lines."""
        _check_file(path)
        lines = _lines(path, layout)
        first = next(lines, "").removeprefix("\ufeff").rstrip("\r\n")
        if not first:
            expected = "a header" if layout.header else "fields"
            raise DataError(f"{path}: line 1 is empty, expected {expected}")
        before = 0
        if layout.header:
            before = 1 + sum(1 for _ in takewhile(lambda line: not line.strip("\r\n"), lines))
        layout = replace(layout, separator=layout.separator or _likely_separator(first))
        fields = _fields(first, layout)
        names = layout.names or (fields if layout.header else map(str, range(1, len(fields) + 1)))
        text = cls(path, layout, tuple(names), before)
        if len(text.names) != len(fields):
            raise text.miscounted(1, fields)
        repeated = [name for name, count in Counter(text.names).items() if count > 1]
        if repeated:
            raise DataError(f"{path}, line 1: column {repeated[0]!r} stands there twice, expected once")
        return text

    @property
    def separator(self) -> str:
        assert self.layout.separator is not None
        return self.layout.separator

    def read(self, types: Mapping[str, type[pl.DataType]], lines: int | None = None) -> Table:
        """Some columns, of all lines or the first so many."""
        for name in types:
            self._check_column(name)
        try:
            return self._parse(types, lines)
        except (pl.exceptions.PolarsError, OSError):
            table = self._read_strings(types, lines)
        for name, dtype in types.items():
            if dtype != pl.String:
                table = typed(table, name, dtype)
        return table

    def _read_strings(self, names: Iterable[str], lines: int | None) -> Table:
        try:
            return self._parse(dict.fromkeys(names, pl.String), lines)
        except (pl.exceptions.PolarsError, OSError) as error:
            for line, fields in self._records():
                if len(fields) > len(self.names) or (
                    line == self.before + 1 and len(fields) < len(self.names)
                ):
                    raise self.miscounted(line, fields) from None
            raise DataError(f"{self.path}: {_first_line(error)}") from None

    def _parse(self, types: Mapping[str, type[pl.DataType]], lines: int | None) -> Table:
        scan = self._scan(types).select(list(types))
        frame = (scan if lines is None else scan.head(lines)).collect()
        table = Table(frame, str(self.path), lambda row: f"line {self._line(row)}")
        if all(column.null_count() for column in frame):
            filled = ~frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
            table = table.take(filled.arg_true().cast(pl.Int64).to_torch())
        return table

    def miscounted(self, line: int, fields: list[str]) -> DataError:
        """What to say of a line with the wrong number of fields."""
        found = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
        expected = f"expected {len(self.names)} ({', '.join(self.names)})"
        return DataError(f"{self.path}, line {line}: found {found}, {expected}")

    def _check_column(self, name: str) -> None:
        if name in self.names:
            return
        if len(self.names) == 1:
            raise DataError(
                f"{self.path}, line 1: found the single column {self.names[0]!r}, expected {name!r} and others "
                f"(is {self.separator!r} the right separator?)"
            )
        raise DataError(f"{self.path}: {unknown_name('column', name, self.names)}")

    def _scan(self, types: Mapping[str, type[pl.DataType]]) -> pl.LazyFrame:
        """polars takes UTF-8 and separators of one byte only."""
        source: Path | bytes = self.path
        if len(self.separator) > 1:
            source = _decoded(self.path, self.layout).replace(self.separator, UNIT_SEPARATOR).encode()
        elif not _is_utf8(self.layout):
            source = _decoded(self.path, self.layout).encode()
        return pl.scan_csv(
            source,
            schema={name: types.get(name, pl.String) for name in self.names},
            has_header=False,
            skip_lines=self.before,
            separator=self.separator if len(self.separator) == 1 else UNIT_SEPARATOR,
            quote_char=self.layout.quote if len(self.separator) == 1 else None,
        )

    def _line(self, row: int) -> int:
        """Where a record begins, as a text editor counts lines."""
        return next(islice(self._records(), row, None))[0]

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """The line at which each record begins, and its fields."""
        lines = islice(_lines(self.path, self.layout), self.before, None)
        if _is_split(self.layout):
            for number, line in enumerate(lines, start=self.before + 1):
                yield number, _fields(line.rstrip("\r\n"), self.layout)
            return
        reader = csv.reader(lines, delimiter=self.separator, quotechar=self.layout.quote)
        begins = self.before + 1
        try:
            for fields in reader:
                yield begins, fields
                begins = self.before + reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{self.path}, line {begins}: {error}") from None


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: is a directory, expected a file")
    if not path.is_file():
        raise DataError(f"{path}: no such file")


def _likely_separator(line: str) -> str:
    counts = {separator: line.count(separator) for separator in SEPARATORS}
    return max(counts, key=counts.__getitem__) if any(counts.values()) else ","


def _is_split(layout: Layout) -> bool:
    """Whether a field is all that stands between two separators, since nothing encloses any."""
    return len(layout.separator or "") > 1 or layout.quote is None


def _fields(line: str, layout: Layout) -> list[str]:
    assert layout.separator is not None
    if _is_split(layout):
        return line.split(layout.separator)
    return next(csv.reader([line], delimiter=layout.separator, quotechar=layout.quote))


def _is_utf8(layout: Layout) -> bool:
    try:
        return codecs.lookup(layout.encoding).name == "utf-8"
    except LookupError:
        raise DataError(f"unknown encoding {layout.encoding!r}, expected one that Python knows") from None


def _lines(path: Path, layout: Layout) -> Iterator[str]:
    """The lines of a file, with their ends."""
    if not _is_utf8(layout):
        yield from io.StringIO(_decoded(path, layout), newline="")
        return
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield line.decode()
                except UnicodeDecodeError as error:
                    raise _wrong_encoding(path, number, error, layout) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({_first_line(error)})") from None


def _decoded(path: Path, layout: Layout) -> str:
    """All of a file."""
    try:
        with _open(path) as file:
            data = file.read()
        return data.decode(layout.encoding)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({_first_line(error)})") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _wrong_encoding(path, line, error, layout) from None


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
    return pl.Float64 if _all_match(sample.drop_nulls().head(1), NUMBER) else pl.String


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
