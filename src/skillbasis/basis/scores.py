"""Scores of examples along the directions of a basis: a table by id, in Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..activations import ActivationSource
from ..artifact import atomic_path, fingerprint, read_json, remove_tree, write_json
from ..errors import ArtifactError, UsageError
from .basis import SkillBasis

_CHUNK_ROWS = 512
_BASIS_KEY = "skillbasis.basis"  # in the metadata of the Parquet schema


@dataclass(frozen=True)
class Scores:
    """Centred scores of n rows along K directions."""

    ids: list[str]
    values: np.ndarray
    """(n, K) float64: (x - mean) · v_k."""
    norm: np.ndarray
    """(n,) float64: |x - mean|."""
    raw_norm: np.ndarray
    """(n,) float64: |x|."""
    basis_fingerprint: str | None = None
    """Which basis the rows were scored with; None in a table that something else wrote."""

    @property
    def scores(self) -> np.ndarray:
        """The same as `values`, (n, K)."""
        return self.values

    @property
    def cosine(self) -> np.ndarray:
        """(n, K): cosine of each centred row with each direction; 0 for a row at the mean."""
        cosine: np.ndarray = np.zeros_like(self.values)
        np.divide(self.values, self.norm[:, None], out=cosine, where=self.norm[:, None] > 0)
        return cosine

    def raw_cosine(self, mean_scores: np.ndarray) -> np.ndarray:
        """(n, K): cosine of each uncentred row with each direction (the reference scripts' choice)."""
        return (self.values + mean_scores) / self.raw_norm[:, None]  # type: ignore[no-any-return]

    def aligned(self, ids: Sequence[str]) -> Scores:
        """The same table in the order of `ids`.

        Raises: ArtifactError: a row of `ids` has no score.
        """
        if self.ids == list(ids):
            return self
        position = {row_id: i for i, row_id in enumerate(self.ids)}
        missing = [row_id for row_id in ids if row_id not in position]
        if missing:
            raise ArtifactError(
                f"{len(missing)} of {len(ids)} rows have no score, the first is {missing[0]!r}; "
                "score the same corpus that you select from"
            )
        order = [position[row_id] for row_id in ids]
        return replace(
            self, ids=list(ids), values=self.values[order], norm=self.norm[order], raw_norm=self.raw_norm[order]
        )

    def check_basis(self, basis: SkillBasis) -> None:
        """Raises: ArtifactError: the rows were scored with another basis than this one."""
        if self.basis_fingerprint not in (None, basis.fingerprint):
            raise ArtifactError(
                f"the scores were made with another basis ({self.basis_fingerprint}) than the one given "
                f"({basis.fingerprint}); give that basis, or score again with this one"
            )

    def save(self, path: str | Path) -> None:
        """Writes Parquet with columns id, d0 ... d{K-1}, norm, raw_norm (float64); the basis stands in its metadata."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"id": pa.array(self.ids, pa.string())}
        columns |= {f"d{k}": pa.array(self.values[:, k]) for k in range(self.values.shape[1])}
        columns |= {"norm": pa.array(self.norm), "raw_norm": pa.array(self.raw_norm)}
        metadata = {} if self.basis_fingerprint is None else {_BASIS_KEY: self.basis_fingerprint}
        with atomic_path(Path(path)) as temporary:
            pq.write_table(pa.table(columns).replace_schema_metadata(metadata), temporary)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Reads a table of scores.

        Raises: UsageError: no such file, or columns are missing. ArtifactError: the file is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not Path(path).is_file():
            raise UsageError(f"there is no score file at {path}; make it with skillbasis score")
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise ArtifactError(f"{path} is no readable Parquet file ({error}); score again") from error
        names = sorted((c for c in table.column_names if c[:1] == "d" and c[1:].isdigit()), key=lambda c: int(c[1:]))
        expected = ["id", *(f"d{k}" for k in range(len(names))), "norm", "raw_norm"]
        if not names or not set(expected) <= set(table.column_names):
            raise UsageError(f"{path} is no table of scores: columns id, d0 ..., norm and raw_norm are needed")
        basis = (table.schema.metadata or {}).get(_BASIS_KEY.encode())
        return cls(
            table["id"].to_pylist(),
            np.column_stack([table[name].to_numpy() for name in names]),
            table["norm"].to_numpy(),
            table["raw_norm"].to_numpy(),
            basis.decode() if basis is not None else None,
        )


def score(source: ActivationSource, basis: SkillBasis, *, parts: Path | None = None) -> Scores:
    """Scores activations along a basis, one shard at a time.

    Args:
        source: stored activations, or a corpus read by a model.
        parts: a directory for the scores of finished shards; with it a killed call is continued by the same call. The
            caller removes it once the scores are saved. Parts of other activations or another basis are dropped.
    Raises: ArtifactError: the activations are not made like those of the basis (model, blocks, pooling, span).
    Cost: one pass over the shards, O(n d K).
    """
    basis.check_activations(source.manifest)
    tables = [] if parts is None else _finished_parts(parts, source, basis)
    for number, shard in enumerate(source.shards(start=len(tables)), start=len(tables)):
        tables.append(_score_shard(shard, source.shard_ids(number), basis))
        if parts is not None:
            tables[-1].save(parts / _part_name(number))
    return Scores(
        [row_id for table in tables for row_id in table.ids],
        np.concatenate([table.values for table in tables]),
        np.concatenate([table.norm for table in tables]),
        np.concatenate([table.raw_norm for table in tables]),
        basis.fingerprint,
    )


def _score_shard(shard: np.ndarray, ids: list[str], basis: SkillBasis) -> Scores:
    values, norm = np.empty((len(shard), basis.n_components)), np.empty(len(shard))
    raw_norm = np.empty(len(shard))
    mean = basis.mean.reshape(-1)
    for start in range(0, len(shard), _CHUNK_ROWS):  # bounds the centred copy
        part = shard[start : start + _CHUNK_ROWS]
        rows = slice(start, start + len(part))
        values[rows] = basis.transform(part)
        norm[rows] = np.linalg.norm(part - mean, axis=1)
        raw_norm[rows] = np.linalg.norm(part, axis=1)
    return Scores(ids, values, norm, raw_norm, basis.fingerprint)


def _part_name(number: int) -> str:
    return f"{number:06d}.parquet"


def _finished_parts(parts: Path, source: ActivationSource, basis: SkillBasis) -> list[Scores]:
    """Scores of the shards that an earlier call finished, from the first on without a gap."""
    inputs = {"activations": fingerprint(source.manifest), "basis": basis.fingerprint}
    marker = parts / "inputs.json"
    if parts.exists() and not (marker.exists() and read_json(marker) == inputs):
        remove_tree(parts)
    if not parts.exists():
        parts.mkdir(parents=True)
        write_json(marker, inputs)
    tables: list[Scores] = []
    while (file := parts / _part_name(len(tables))).exists():
        tables.append(Scores.load(file))
    return tables
