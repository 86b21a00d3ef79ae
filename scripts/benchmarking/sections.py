"""Sections of the benchmark on disk, one file each: measured at different times, they are reported together."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Section:
    """
    :param command: what it was measured by
    :param cells: a measurement each: ``name``, ``arguments``, ``result``, ``provenance``
    :param missing: names of the measurements that crashed or were not reached
    """

    command: str
    cells: list[dict[str, Any]]
    missing: list[str]


def write_section(out: Path, name: str, section: Section) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(asdict(section), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_sections(out: Path, names: Sequence[str]) -> dict[str, Section]:
    """
    Those of the sections that are there.

    :raises ValueError: if there is none, or a file is not a section
    """
    paths = {name: out / f"{name}.json" for name in names}
    sections = {name: read_section(path) for name, path in paths.items() if path.exists()}
    measured = {name: section for name, section in sections.items() if section.cells}
    if not measured:
        raise ValueError(f"{out} holds no measurements: leave out --report-only to make some")
    return measured


def read_section(path: Path) -> Section:
    try:
        return Section(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a section of the benchmark ({error}): measure it anew") from error
