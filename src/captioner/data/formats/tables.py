"""Text files, CSV and JSON Lines, read strictly: every complaint names the file and the line."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from captioner.data.captions import duplicates
from captioner.errors import DataError
from captioner.files import parse_json, read_text

Row = tuple[int, dict[str, str]]  # the line number, counted from 1, and the columns


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, with their numbers."""
    # Not splitlines(), which also cuts at rare separators that can stand inside a caption.
    lines = enumerate(_lines_ended_by_feeds(path).split("\n"), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def _lines_ended_by_feeds(path: Path) -> str:
    return read_text(path).replace("\r\n", "\n")


def read_csv(path: Path, *, columns: Sequence[str]) -> list[Row]:
    """The rows of a comma-separated file whose header holds at least `columns`."""
    rows = _csv_rows(path)
    header = [cell.strip() for cell in next(rows, (1, []))[1]]
    absent = [column for column in columns if column not in header]
    if absent:
        raise DataError(
            f"{path}, line 1: found the columns {', '.join(header) or 'none'}; expected a header "
            f"with {', '.join(columns)}, separated by commas"
        )
    if twice := duplicates(header):
        raise DataError(f"{path}, line 1: the column {twice[0]!r} stands there twice")
    result = []
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {line}: found {len(cells)} fields, expected {len(header)} "
                f"({','.join(header)}); a caption with a comma must stand in double quotes"
            )
        result.append((line, dict(zip(header, cells, strict=True))))
    return result


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows' cells, each with the line on which it starts: a quoted field may hold line ends."""
    reader = csv.reader(io.StringIO(_lines_ended_by_feeds(path), newline=""), strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {start}: not a comma-separated row: {error}") from error


def read_jsonl(path: Path, *, columns: Sequence[str]) -> list[Row]:
    """The rows of a JSON Lines file: one object a line, with at least `columns`, all text."""
    return [(line, _json_row(path, line, text, columns)) for line, text in read_lines(path)]


def _json_row(path: Path, line: int, text: str, columns: Sequence[str]) -> dict[str, str]:
    where, row = f"{path}, line {line}", parse_json(text, str(path), line=line)
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with {', '.join(columns)}, found {text[:60]}")
    for column in columns:
        if not isinstance(row.get(column), str):
            found = f"{row[column]!r}" if column in row else f"only {', '.join(row) or 'no keys'}"
            raise DataError(f"{where}: expected text under {column!r}, found {found}")
    return {key: value for key, value in row.items() if isinstance(value, str)}
