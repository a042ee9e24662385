"""Read stored activations: a manifest, a table of rows, and shards that are loaded one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..artifact import checksum, read_manifest
from ..errors import ArtifactError
from .settings import ExtractionSettings

KIND = "activations"
ROWS = "rows.parquet"
SKIPPED = "skipped.jsonl"


@dataclass(frozen=True)
class ActivationStore:
    """Stored activations of a corpus, in corpus order.

    `shards()` gives one shard at a time, so memory does not grow with the number of rows. A shard is held against its
    checksum when it is first read.
    """

    path: Path
    manifest: dict[str, Any]
    _whole: set[str] = field(default_factory=set, repr=False, compare=False)
    """Files found whole by this object."""
    live: ClassVar[bool] = False
    """Whether every pass over the shards runs the model."""

    @classmethod
    def open(cls, path: str | Path) -> ActivationStore:
        """Opens a finished directory and checks that every shard is there with its recorded size.

        Raises: ArtifactError: absent, unfinished, or a file is missing or of another size.
        """
        store = cls.read(path)
        for shard in store.manifest["shards"]:
            file = store.path / shard["file"]
            if not file.exists() or file.stat().st_size != shard["bytes"]:
                raise store._damage(shard["file"])
        if not (store.path / ROWS).exists():
            raise store._damage(ROWS)
        return store

    @classmethod
    def read(cls, path: str | Path) -> ActivationStore:
        """The same, without a look at the files. Raises: ArtifactError: absent or unfinished."""
        return cls(Path(path), read_manifest(Path(path), KIND))

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

    @property
    def settings(self) -> ExtractionSettings:
        """How they were extracted."""
        return settings_of(self.manifest)

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @cached_property
    def ids(self) -> list[str]:
        return self._rows("id").to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def token_counts(self) -> np.ndarray:
        """(n,) int64, tokens of each row as the model read it, in the order of `ids`."""
        return self._rows("tokens").to_numpy()  # type: ignore[no-any-return]

    def shard_ids(self, index: int) -> list[str]:
        """Ids of the rows of a shard."""
        before = [shard["rows"] for shard in self.manifest["shards"]]
        start = sum(before[:index])
        return self.ids[start : start + before[index]]

    def skipped(self) -> list[dict[str, str]]:
        """`id` and `reason` of the rows that were left out."""
        file = self.path / SKIPPED
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []

    def shards(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yields each shard from number `start` on as (rows, blocks * hidden) float32, in order.

        The arrays are memory maps that can only be read; each lives as long as its user keeps it.

        Raises: ArtifactError: a shard does not match its checksum.
        """
        for shard in self.manifest["shards"][start:]:
            self._check(shard["file"], shard["checksum"])
            yield _map_tensor(self.path / shard["file"], "activations").reshape(-1, self.n_features)

    def sample(self, n: int) -> np.ndarray:
        """At most `n` rows spread evenly over all of them, (n, blocks * hidden) float32, however they are sharded."""
        wanted = np.linspace(0, len(self), min(n, len(self)), endpoint=False).astype(np.int64)
        ends = np.cumsum([shard["rows"] for shard in self.manifest["shards"]])
        in_shard = np.searchsorted(ends, wanted, side="right")
        parts = []
        for index in np.unique(in_shard):
            first = ends[index] - self.manifest["shards"][index]["rows"]
            parts.append(next(self.shards(int(index)))[wanted[in_shard == index] - first])
        return np.concatenate(parts)

    def to_numpy(self) -> np.ndarray:
        """All rows at once: (n_rows, blocks, hidden) float32; for what fits in memory."""
        return np.concatenate(list(self.shards())).reshape(-1, len(self.block_ids), self.hidden_size)

    def verify(self) -> None:
        """Reads every file and compares its checksum. Raises: ArtifactError: naming the first that is damaged."""
        damaged = self.damaged()
        if damaged:
            raise self._damage(damaged[0])

    def damaged(self) -> list[str]:
        """Names of files that are missing or do not match their checksum. Cost: one reading of all of them."""
        expected = {shard["file"]: shard["checksum"] for shard in self.manifest["shards"]}
        expected[ROWS] = self.manifest["rows_checksum"]
        return [
            name
            for name, expected_sum in expected.items()
            if not (self.path / name).exists() or checksum(self.path / name) != expected_sum
        ]

    def _rows(self, column: str) -> Any:
        import pyarrow.parquet as pq

        self._check(ROWS, self.manifest["rows_checksum"])
        return pq.read_table(self.path / ROWS, columns=[column])[column]

    def _check(self, name: str, expected: str) -> None:
        if name in self._whole:
            return
        if not (self.path / name).exists() or checksum(self.path / name) != expected:
            raise self._damage(name)
        self._whole.add(name)

    def _damage(self, name: str) -> ArtifactError:
        return ArtifactError(
            f"{self.path / name} is missing or damaged; make it again by the same extract command with --repair"
        )


def settings_of(manifest: dict[str, Any]) -> ExtractionSettings:
    """The settings that a manifest, or the configuration of a basis, records."""
    layers = ",".join(map(str, manifest["block_ids"]))
    return ExtractionSettings(layers, manifest["pooling"], manifest["span"], manifest["max_length"])


def _map_tensor(path: Path, name: str) -> np.ndarray:
    """A float32 tensor of a safetensors file as a read-only memory map: it costs no copy and no memory of its own.

    Source: the format's description (8 bytes of header length, a JSON header, the data).
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
    if 0 in entry["shape"]:  # nothing to map: every row of the shard was skipped
        return np.empty(entry["shape"], dtype=np.float32)
    offset = 8 + size + entry["data_offsets"][0]
    return np.memmap(path, dtype=np.float32, mode="r", offset=offset, shape=tuple(entry["shape"]))
