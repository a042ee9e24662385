"""The card of an exported data set: the README.md that the Hub and `datasets` read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from .form import ExportFormat

# Identifiers the Hub knows, of those that training data comes under; it refuses others.
_LICENSES = (
    *("apache-2.0", "mit", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
    *("odc-by", "odbl", "pddl", "openrail", "bsd-3-clause", "gpl-3.0", "llama2", "llama3", "llama3.1", "other"),
)


def card(
    form: ExportFormat,
    file: str,
    name: str,
    n_rows: int,
    source: str,
    licenses: Mapping[str | None, int],
    selection: dict[str, Any] | None,
) -> str:
    """Writes the card.

    Args:
        form: format of the rows.
        file: name of their file.
        name: title.
        n_rows: how many there are.
        source: the corpus or selection they are from.
        licenses: count of rows by their `license` column; None counts rows without one.
        selection: how the rows were chosen, as kept beside a selection; None where that is not known.
    """
    import yaml

    license_id, license_words = _license(licenses)
    header = {
        "pretty_name": name,
        "license": license_id,
        "task_categories": ["text-generation"],
        "size_categories": [size_category(n_rows)],
        "tags": ["skillbasis", "sft", *form.tags],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": file}]}],
    }
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        f"{n_rows:,} prompts and responses for fine-tuning, from `{source}`, in the format `{form.name}`.",
        f"## Columns\n\n{form.about}",
        "`id` is the row's id in the corpus; `_selection`, where there is one, says what it was chosen for.",
        f"## How the rows were chosen\n\n{_chosen(selection)}",
        f"## License\n\n{license_words}",
    ]
    return "\n\n".join(parts) + "\n"


def _license(licenses: Mapping[str | None, int]) -> tuple[str | list[str], str]:
    """The Hub's identifiers of the rows' licenses, and a sentence on them."""
    named = {key: count for key, count in licenses.items() if key is not None}
    if not named:
        return "unknown", "The rows name no license; that of the corpus they are from applies."
    words = "; ".join(f"{key}: {count:,} rows" for key, count in sorted(named.items(), key=lambda item: -item[1]))
    without = licenses.get(None, 0)
    if without:
        return "unknown", f"By the rows' own `license` column: {words}; without one: {without:,} rows."
    known = sorted({key.lower() if key.lower() in _LICENSES else "other" for key in named})
    return (known[0] if len(known) == 1 else known), f"By the rows' own `license` column: {words}."


def _chosen(selection: dict[str, Any] | None) -> str:
    """How the rows were chosen, one line per setting."""
    if selection is None:
        return "All rows of the source; it carries no record of a selection."
    lines = [
        f"* {key.replace('_', ' ')}: `{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`"
        for key, value in selection.items()
    ]
    return "\n".join(["By `skillbasis select` (`selection.json` holds the same):", "", *lines])


def size_category(n_rows: int) -> str:
    """The Hub's name for the order of magnitude of a data set's size."""
    bounds = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
    return next((name for bound, name in bounds if n_rows < bound), "10M<n<100M" if n_rows < 10**8 else "n>100M")


def count_licenses(extras: list[str]) -> Counter[str | None]:
    """Counts the licenses (or licences) among the other columns of rows, given as JSON objects."""
    rows = map(json.loads, extras)
    values = (row.get("license", row.get("licence")) for row in rows)
    return Counter(value.strip() if isinstance(value, str) and value.strip() else None for value in values)
