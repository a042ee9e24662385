"""Read stored activations: a manifest, a table of rows, and shards that are loaded one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import file_sha256, read_manifest
from ..errors import ArtifactError

KIND = "activations"


@dataclass(frozen=True)
class ActivationStore:
    """Stored activations of a corpus, in corpus order.

    `shards()` gives one shard at a time, so memory does not grow with the number of rows.
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> ActivationStore:
        """Opens a finished directory and checks that every shard is there with its recorded size.

        Raises: ArtifactError: absent, unfinished, or a file is missing or of another size.
        """
        store = cls(Path(path), read_manifest(Path(path), KIND))
        for shard in store.manifest["shards"]:
            file = store.path / shard["file"]
            if not file.exists() or file.stat().st_size != shard["bytes"]:
                raise ArtifactError(f"{file} is missing or damaged; delete {path} and run extract again")
        if not (store.path / "rows.parquet").exists():
            raise ArtifactError(f"{store.path / 'rows.parquet'} is missing; delete {path} and run extract again")
        return store

    @property
    def block_ids(self) -> list[int]:
        return list(self.manifest["block_ids"])

    @property
    def hidden_size(self) -> int:
        return int(self.manifest["hidden_size"])

    @property
    def n_features(self) -> int:
        """Length of one row's vector: blocks x hidden."""
        return len(self.block_ids) * self.hidden_size

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @cached_property
    def ids(self) -> list[str]:
        import pyarrow.parquet as pq

        return pq.read_table(self.path / "rows.parquet", columns=["id"])["id"].to_pylist()  # type: ignore[no-any-return]

    def shards(self) -> Iterator[np.ndarray]:
        """Yields each shard as (rows, blocks * hidden) float32, in order."""
        from safetensors.numpy import load_file

        for shard in self.manifest["shards"]:
            values = load_file(self.path / shard["file"])["activations"]
            yield values.reshape(len(values), -1).astype(np.float32, copy=False)  # (rows, blocks, hidden) -> flat

    def to_numpy(self) -> np.ndarray:
        """All rows at once: (n_rows, blocks, hidden) float32; for what fits in memory."""
        parts = [part.reshape(len(part), len(self.block_ids), self.hidden_size) for part in self.shards()]
        return np.concatenate(parts)

    def verify(self) -> None:
        """Reads every shard and compares its checksum.

        Raises: ArtifactError: naming the first damaged shard.
        """
        for shard in self.manifest["shards"]:
            if file_sha256(self.path / shard["file"]) != shard["sha256"]:
                raise ArtifactError(
                    f"{self.path / shard['file']} does not match its checksum; delete {self.path} and run extract again"
                )
