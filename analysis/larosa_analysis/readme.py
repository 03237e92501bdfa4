"""Tables inside README, each between two markers, and the figures that it shows."""

from __future__ import annotations

import re

from larosa_analysis.records import RecordsError


def marker(name: str) -> tuple[str, str]:
    """The lines before and behind a table."""
    return f"<!-- table: {name} -->", f"<!-- end table: {name} -->"


def names(readme: str) -> list[str]:
    """The tables that a README has markers for, in their order."""
    return re.findall(r"^<!-- table: (\S+) -->$", readme, flags=re.MULTILINE)


def images(readme: str) -> list[str]:
    """Links to the figures of `analysis/images` that a README shows, in their order."""
    return re.findall(r"^!\[[^\]]*\]\((analysis/images/[^)\s]+\.png)\)", readme, flags=re.MULTILINE)


def inserted(readme: str, name: str, table: str, file: str) -> str:
    """The README with `table` between the markers of `name`. Raises RecordsError if they are not there once each."""
    start, end = marker(name)
    if readme.count(start) != 1 or readme.count(end) != 1 or readme.index(start) > readme.index(end):
        raise RecordsError(f"{file} needs one line `{start}` and below it one line `{end}`")
    before, rest = readme.split(start)
    return f"{before}{start}\n{table}\n{end}{rest.split(end)[1]}"
