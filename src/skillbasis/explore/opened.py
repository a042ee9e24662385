"""Opening a run directory: what of it can be explored, and why the rest cannot."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..activations import ActivationStore
from ..artifact import fingerprint, read_json
from ..basis import Scores, SkillBasis
from ..corpus import Corpus
from ..errors import ArtifactError, SkillbasisError, UsageError
from ..recipe_blocks import CorpusBlock
from ..recipe_settings import recipe_corpus
from .index import Index, build_index
from .searching import Search
from .tags import Tags

FOLDER = "explore"
"""The only place of a run where anything is written."""
INDEX = "index.sqlite"
TAGS = "tags.json"
SCORES = "scores.parquet"
_WATCHED = ("run.json", SCORES, "basis/config.json", "basis/basis.safetensors")


@dataclass(frozen=True)
class OpenedRun:
    """A run directory and what can be done with it."""

    path: Path
    name: str
    title: str
    safety: bool
    """Whether it is a safety run: then only prompts are shown, and nothing is generated."""
    search: Search | None
    basis: SkillBasis | None
    scores: Scores | None
    directions: tuple[str, ...]
    """A few words for each direction."""
    cards: frozenset[int]
    """The directions that the report describes on a card of their own."""
    model: str | None
    dtype: str
    gaps: tuple[str, ...]
    """Sentences on what is missing and what to do about it."""
    stamp: tuple[Any, ...] = field(repr=False)

    @property
    def changed(self) -> bool:
        """Whether the run's files are no longer those that were opened."""
        return _stamp(self.path) != self.stamp


def check_run(path: Path) -> None:
    """Raises: UsageError: there is no such directory, or nothing in it that could be explored."""
    if not path.is_dir():
        raise UsageError(f"there is no run directory at {path}; check the path, or make one with 'skillbasis demo'")
    if not any((path / name).exists() for name in ("run.json", "basis", SCORES)):
        raise UsageError(
            f"{path} holds no run (no run.json, basis or scores.parquet); give the output directory of "
            "'skillbasis run' or 'skillbasis demo'"
        )


def open_run(path: Path, *, corpus: str | None = None, model: str | None = None) -> OpenedRun:
    """Reads a run directory, and builds the index of its examples where there is none yet.

    Args:
        corpus: where the run's corpus lies now, if it has moved.
        model: where the run's model lies now, if it has moved.
    Raises: UsageError: there is no such directory, or nothing in it that could be explored.
    Cost: with an index the scores are read, else the corpus as well.
    """
    check_run(path)
    stamp = _stamp(path)
    record = read_json(path / "run.json") if (path / "run.json").is_file() else {}
    if not isinstance(record, dict):
        raise ArtifactError(f"{path / 'run.json'} is no record of a run; run the recipe again")
    settings = record.get("settings") or {}
    safety = (path / "safety").exists() or bool(settings.get("safety"))
    gaps: list[str] = []
    basis = scores = search = None
    try:
        basis = SkillBasis.load(path / "basis") if (path / "basis").is_dir() else None
        scores = Scores.load(path / SCORES)
        if basis is not None:
            scores.check_basis(basis)
    except SkillbasisError as error:
        scores = None
        gaps.append(f"Examples cannot be searched: {error}.")
    if basis is None:
        gaps.append(f"There is no basis in {path.name}, so there are no coordinates of texts and no steering.")
    if scores is not None:
        try:
            search = _search(path, record, scores, basis, corpus, responses=not safety)
        except SkillbasisError as error:
            gaps.append(f"Examples cannot be searched: {error}.")
    n_directions = scores.values.shape[1] if scores is not None else basis.n_components if basis is not None else 0
    described = _described(path)
    return OpenedRun(
        path=path,
        name=path.resolve().name,
        title=str(record.get("title") or path.resolve().name),
        safety=safety,
        search=search,
        basis=basis,
        scores=scores,
        directions=_directions(described, n_directions),
        cards=frozenset(entry["direction"] for entry in described),
        model=model or record.get("model"),
        dtype=str(settings.get("dtype", "auto")),
        gaps=tuple(gaps),
        stamp=stamp,
    )


def _search(
    path: Path, record: dict[str, Any], scores: Scores, basis: SkillBasis | None, moved: str | None, *, responses: bool
) -> Search:
    """The index of the scored rows: the one that is there, or a new one."""
    expected = None if basis is None else basis.config.get("corpus_fingerprint")
    key = fingerprint({"corpus": expected, "ids": fingerprint(scores.ids), "responses": responses})
    file = path / FOLDER / INDEX
    index = Index.open(file, key)
    if index is None:
        found = _corpus(path, record, scores, expected, moved)
        build_index(file, found, scores.ids, key, responses=responses)
        index = Index(file)
    index.check(len(scores.ids))
    return Search(index, scores, Tags(path / FOLDER / TAGS))


def _corpus(path: Path, record: dict[str, Any], scores: Scores, expected: str | None, moved: str | None) -> Corpus:
    """The corpus that was scored, read as the run read it.

    Raises: SkillbasisError: it cannot be read, or is not what was scored.
    """
    if not record:
        raise ArtifactError(f"there is no run.json in {path}, which names the corpus; run the recipe again")
    try:
        block = CorpusBlock.model_validate(record["settings"]["corpus"])
    except (KeyError, TypeError, ValidationError):
        raise ArtifactError(f"{path / 'run.json'} does not say how the corpus was read; run the recipe again") from None
    if moved is not None:
        block = block.model_copy(update={"source": moved})
    try:
        corpus = recipe_corpus(block)
    except SkillbasisError as error:
        raise type(error)(f"the corpus cannot be read ({error}); say where it lies now with --corpus") from error
    scored = set(scores.ids)
    missing = scored - corpus.positions.keys()
    if missing:
        raise ArtifactError(
            f"{len(missing):,} of {len(scored):,} scored rows are not in {block.source}, such as {min(missing)!r}; "
            "give the corpus of the run with --corpus"
        )
    left_out = corpus.positions.keys() - scored
    skipped = set()
    if (path / "activations").is_dir():
        skipped = {row["id"] for row in ActivationStore.read(path / "activations").skipped()}
    # The fingerprint is that of the rows that were read, before those without activations were left out.
    if expected is not None and corpus.without(left_out - skipped).fingerprint != expected:
        raise ArtifactError(
            f"{block.source} has changed since the run read it; give the corpus of the run with --corpus, or run the "
            "recipe again"
        )
    return corpus


def _described(path: Path) -> list[dict[str, Any]]:
    """What a judge or the corpus says of each direction, as far as the run holds it."""
    files = (path / folder / "directions.json" for folder in ("labels", "interpret"))
    found = next((file for file in files if file.is_file()), None)
    return [] if found is None else list(read_json(found).get("directions", []))


def _directions(described: list[dict[str, Any]], n: int) -> tuple[str, ...]:
    """What each direction is called: the label of a judge, else its first keywords on either side."""
    names = [""] * n
    for entry in described:
        label, keywords = entry.get("label") or {}, entry.get("keywords") or {}
        ends = [
            " ".join(label.get(end) or [item["word"] for item in keywords.get(end, [])[:3]])
            for end in ("positive", "negative")
        ]
        if 0 <= entry["direction"] < n:
            names[entry["direction"]] = " ↔ ".join(end for end in ends if end)
    return tuple(f"d{k}{': ' if name else ''}{name}" for k, name in enumerate(names))


def _stamp(path: Path) -> tuple[Any, ...]:
    """Sizes and times of the files that were opened; None for one that is not there."""
    stamps: list[Any] = []
    for name in _WATCHED:
        try:
            status = os.stat(path / name)
        except FileNotFoundError:
            stamps.append(None)
        else:
            stamps.append((status.st_size, status.st_mtime_ns))
    return tuple(stamps)
