"""Compare the tables (*.csv) of two folders, to the last digit: `python tests/compare_tables.py BEFORE AFTER`.

Every difference is named, with both values; the exit status is 0 if there is none, else 1. Measured times differ each
time, and do not count: the column `cost` of leaderboard.csv.
"""
import csv
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

MEASURED = {("leaderboard.csv", "cost")}  # (file, column)


def read_table(path: Path) -> list[list[str]]:
    """Read the cells of a table; its header comes first."""
    with path.open(newline="", encoding="utf-8") as file: return list(csv.reader(file))


def differences(before: Path, after: Path) -> Iterator[str]:
    """Name every cell in which two tables of one name differ; columns that were renamed are compared by their place."""
    (columns, *old), (now, *new) = ((read_table(path) or [[]]) for path in (before, after))
    if columns != now: yield f"{before.name}, header: {','.join(columns)} | {','.join(now)}"
    if len(columns) == len(now): places = [(name, place, place) for place, name in enumerate(columns)]
    else: places = [(name, columns.index(name), now.index(name)) for name in columns if name in now]
    for number, (was, becomes) in enumerate(zip_longest(old, new), start=2):
        where = f"{before.name}, line {number}"
        if was is None or becomes is None:
            yield f"{where}: {','.join(was or ['missing'])} | {','.join(becomes or ['missing'])}"
            continue
        for name, place, now_at in places:
            one, other = (row[at] if at < len(row) else "missing" for row, at in ((was, place), (becomes, now_at)))
            if one != other and (before.name, name) not in MEASURED: yield f"{where}, {name}: {one} | {other}"


def compare(before: Path, after: Path) -> list[str]:
    """Name every difference between the tables of two folders."""
    for folder in (before, after):
        if not folder.is_dir(): raise FileNotFoundError(f"{folder}: no such folder; expected one with tables (*.csv)")
    old, new = ({path.name for path in folder.glob("*.csv")} for folder in (before, after))
    if not old | new: raise FileNotFoundError(f"{before}, {after}: no tables (*.csv)")
    alone = [f"{name}: only in {before if name in old else after}" for name in sorted(old ^ new)]
    return alone + [line for name in sorted(old & new) for line in differences(before / name, after / name)]


def main(arguments: list[str]) -> int:
    """Say how two folders of tables differ, and give the exit status."""
    if len(arguments) != 2:
        print("usage: python tests/compare_tables.py BEFORE AFTER", file=sys.stderr)
        return 2
    try: found = compare(*map(Path, arguments))
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    ignored = ", ".join(f"{column} of {file}" for file, column in sorted(MEASURED))
    print(*found, f"{len(found)} differences; not compared: measured times ({ignored})", sep="\n")
    return int(bool(found))


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
