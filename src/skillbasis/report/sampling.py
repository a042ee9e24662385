"""Reads a sample of rows from the scores and the activations of a run: what a plot of rows can show."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from .records.basis import ScoreSample
from .records.directions import RowSample

N_SCATTER_POINTS = 3_000
MAX_SCATTER_DIRECTIONS = 64
MAX_SCATTER_SCORES = 120_000
"""Points times directions that a page carries: below 1 MB."""


def sample_scores(path: Path, seed: int, known: RowSample | None = None) -> ScoreSample | None:
    """Reads the scores of a sample of rows along the first directions.

    Args:
        path: `scores.parquet`.
        seed: of the sample: same seed, same rows.
        known: rows whose columns are known: the sample is of them. None, or none of them scored: of all rows.
    Returns: at most `N_SCATTER_POINTS` rows on `MAX_SCATTER_DIRECTIONS` directions; None where there is only one.
    Raises: ArtifactError: the file is damaged.
    Cost: one pass over these columns; memory of one batch.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name[:1] == "d" and name[1:].isdigit()]
            if "id" not in file.schema_arrow.names:
                raise ArtifactError(f"{path} has no column 'id'; make it again with 'skillbasis score'")
            if len(names) < 2:
                return None
            n_rows, shown = file.metadata.num_rows, names[:MAX_SCATTER_DIRECTIONS]
            limit = min(N_SCATTER_POINTS, MAX_SCATTER_SCORES // len(shown))
            among = np.arange(n_rows)
            if known is not None:
                found = _rows_of(file, known.ids)
                among = found if len(found) else among
            chosen = np.random.default_rng(seed).choice(among, size=min(len(among), limit), replace=False)
            table = pa.Table.from_batches(_take(file, ["id", *shown], np.sort(chosen)))
    except pa.ArrowInvalid as error:
        raise ArtifactError(f"{path} is damaged ({error}); make it again with 'skillbasis score'") from None
    ids = tuple(str(value) for value in table.column("id").to_pylist())
    place = {row_id: row for row, row_id in enumerate(known.ids)} if known is not None else {}
    columns = known.columns if known is not None and place.keys() >= set(ids) else {}
    return ScoreSample(
        names=tuple(shown),
        ids=ids,
        scores=tuple(tuple(_finite(value) for value in table.column(name).to_pylist()) for name in shown),
        n_rows=n_rows,
        n_directions=len(names),
        columns={name: tuple(values[place[row_id]] for row_id in ids) for name, values in columns.items()},
    )


def token_counts(path: Path, ids: Collection[str]) -> dict[str, int]:
    """Reads how many tokens these rows have, from `activations/rows.parquet`; none where the file does not say.

    Raises: ArtifactError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not ids or not path.is_file():
        return {}
    wanted = pa.array([row_id.encode("utf-8", "replace").decode() for row_id in ids], pa.string())
    counts: dict[str, int] = {}
    try:
        with pq.ParquetFile(path) as file:
            if not {"id", "tokens"} <= set(file.schema_arrow.names):
                return {}
            for batch in file.iter_batches(columns=["id", "tokens"]):
                part = batch.filter(pc.is_in(batch.column("id").cast(pa.string()), wanted))
                counts |= dict(zip(part.column("id").to_pylist(), part.column("tokens").to_pylist(), strict=True))
    except pa.ArrowInvalid as error:
        raise ArtifactError(f"{path} is damaged ({error}); make it again with 'skillbasis extract'") from None
    return counts


def _rows_of(file: Any, ids: Collection[str]) -> Any:
    """Positions of the rows with these ids, ascending."""
    import numpy as np

    wanted, start, found = set(ids), 0, []
    for batch in file.iter_batches(columns=["id"]):
        found += [start + i for i, row_id in enumerate(batch.column(0).to_pylist()) if row_id in wanted]
        start += batch.num_rows
    return np.array(found, dtype=np.int64)


def _take(file: Any, columns: list[str], rows: Any) -> Iterator[Any]:
    """Yields the given rows (sorted positions) of a Parquet file, batch by batch, columns in the order asked for."""
    start = 0
    for batch in file.iter_batches(columns=columns):
        inside = rows[(rows >= start) & (rows < start + batch.num_rows)] - start
        yield batch.take(inside).select(columns)
        start += batch.num_rows


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
