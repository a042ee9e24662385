"""How much directions depend on how they are found: one choice changed at a time, held against the same examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..activations import ActivationStore, ExtractionSettings, extract
from ..activations.pooling import Pooling, Span
from ..activations.view import BlocksView
from ..artifact import fingerprint
from ..corpus import Corpus
from ..errors import SkillbasisError
from ..lm import LanguageModel, parse_layers
from ..statistics import as_json
from .agreement import N_PERMUTATIONS, compare_score_tables
from .basis import SkillBasis
from .compare import compare_bases, same_shape
from .pca import PcaSettings, fit_pca
from .scores import Scores, score


@dataclass(frozen=True)
class Variant:
    """One way of finding directions."""

    question: str
    """What is changed: `blocks`, `pooling`, `span`, `k`, `rows` or `corpus`."""
    name: str
    """To what."""
    extraction: ExtractionSettings
    pca: PcaSettings
    found_on: Corpus | None = None
    """Rows that the directions are found on; None takes the shared ones."""


def one_at_a_time(
    extraction: ExtractionSettings,
    pca: PcaSettings,
    *,
    layers: Iterable[str] = (),
    pooling: Iterable[Pooling] = (),
    span: Iterable[Span] = (),
    k: Iterable[int] = (),
    rows: Mapping[str, Corpus] | None = None,
    corpora: Mapping[str, Corpus] | None = None,
) -> list[Variant]:
    """Variants of a way of finding directions, each of which changes one thing; what would change nothing is left out.

    Args:
        layers, pooling, span, k: other values of the settings.
        rows: other rows of the same corpus to find directions on, by name.
        corpora: other corpora to find directions on, by name.
    """
    return [
        *(Variant("blocks", x, replace(extraction, layers=x), pca) for x in layers if x != extraction.layers),
        *(Variant("pooling", x, replace(extraction, pooling=x), pca) for x in pooling if x != extraction.pooling),
        *(Variant("span", x, replace(extraction, span=x), pca) for x in span if x != extraction.span),
        *(Variant("k", str(x), extraction, replace(pca, k=x, width=None)) for x in k if x != pca.k),
        *(Variant("rows", name, extraction, pca, corpus) for name, corpus in (rows or {}).items()),
        *(Variant("corpus", name, extraction, pca, corpus) for name, corpus in (corpora or {}).items()),
    ]


def measure_sensitivity(
    lm: LanguageModel,
    corpus: Corpus,
    extraction: ExtractionSettings,
    pca: PcaSettings,
    variants: Sequence[Variant],
    work: Path,
    *,
    n_permutations: int = N_PERMUTATIONS,
    seed: int = 0,
    on_variant: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Finds directions in several ways and compares each with the reference by the scores of the same examples.

    All blocks that are wanted of one pooling, span and corpus are read at once.

    Args:
        corpus: the shared examples: the reference is found on them, and every basis scores them.
        extraction, pca: how the reference is found.
        work: a directory for activations, gone on with where it holds some of a killed call; the caller removes it.
        n_permutations: of the null of the matched correlations; see `compare_scores`.
        seed: of permutations and folds.
        on_variant: called with the name of each variant as it is done, the number done and that of all.
    Returns: JSON-able: `n` shared examples, `reference` (how it was found), and `variants`: per variant its question
        and name; `mean_correlation` of matched directions with the permutation null's 95th percentile and p;
        `correlations`, that of each reference direction with its match (None where k is smaller); `explained`, the
        cross-validated R^2 of the reference's scores from the variant's (`total` weighted by variance); for bases of
        one space also `overlap` and `mean_cosine` with their levels of chance. A variant that cannot be has a `reason`.
    Raises: SkillbasisError: the reference itself cannot be found.
    Cost: one pass of the model over the corpus per pooling, span and corpus; the disk holds those activations.
    """
    readings = _Readings(lm, work, [(extraction, corpus), *((v.extraction, v.found_on or corpus) for v in variants)])
    reference = fit_pca(readings.of(extraction, corpus), pca)
    known = score(readings.of(extraction, corpus), reference)
    found: list[dict[str, Any]] = []
    for variant in variants:
        entry: dict[str, Any] = {"question": variant.question, "name": variant.name, "k": variant.pca.k, "reason": None}
        try:
            basis = fit_pca(readings.of(variant.extraction, variant.found_on or corpus), variant.pca)
            scores = score(readings.of(variant.extraction, corpus), basis)
            entry |= _compared(reference, known, basis, scores, n_permutations, seed)
        except SkillbasisError as error:
            entry["reason"] = str(error)
        found.append(entry)
        if on_variant:
            on_variant(f"{variant.question}: {variant.name}", len(found), len(variants))
    config = reference.config
    told = ("model", "block_ids", "pooling", "span", "n_components", "rows")
    return {"n": len(known.ids), "reference": {key: config[key] for key in told}, "variants": found}


def _compared(
    reference: SkillBasis, known: Scores, basis: SkillBasis, scores: Scores, n_permutations: int, seed: int
) -> dict[str, Any]:
    agreement = compare_score_tables(known, scores, n_permutations=n_permutations, seed=seed)
    by_direction = {pair.a: pair.correlation for pair in agreement.pairs}
    record: dict[str, Any] = {
        "blocks": basis.block_ids,
        "n": agreement.n,
        "mean_correlation": agreement.mean_correlation,
        "null_95": agreement.mean_null_95,
        "p_value": agreement.mean_p_value,
        "correlations": [by_direction.get(direction) for direction in range(reference.n_components)],
        "explained": as_json(agreement.a_from_b.total),
        "explained_by_direction": [as_json(estimate) for estimate in agreement.a_from_b.directions],
    }
    if same_shape(reference, basis):
        spans = compare_bases(reference, basis, seed=seed)
        record |= {
            "overlap": spans.overlap,
            "overlap_chance": spans.overlap_chance,
            "mean_cosine": spans.mean_cosine,
            "mean_cosine_null_95": spans.mean_null_95,
        }
    return record


class _Readings:
    """Activations by pooling, span and corpus, each read once with all blocks that are wanted of it."""

    def __init__(self, lm: LanguageModel, work: Path, wanted: Iterable[tuple[ExtractionSettings, Corpus]]) -> None:
        self._lm, self._work = lm, work
        self._blocks: dict[str, set[int]] = {}
        for settings, corpus in wanted:
            self._blocks.setdefault(self._key(settings, corpus), set()).update(self._ids(settings))
        self._stores: dict[str, ActivationStore] = {}

    def of(self, settings: ExtractionSettings, corpus: Corpus) -> BlocksView:
        """Raises: SkillbasisError: rows that give no activations."""
        key = self._key(settings, corpus)
        if key not in self._stores:
            layers = ",".join(map(str, sorted(self._blocks.setdefault(key, set()) | set(self._ids(settings)))))
            whole = replace(settings, layers=layers)
            self._stores[key] = extract(corpus, self._lm, self._work / key, whole, on_bad_row="skip", overwrite=True)
        return BlocksView(self._stores[key], self._ids(settings))

    def _ids(self, settings: ExtractionSettings) -> list[int]:
        return parse_layers(settings.layers, len(self._lm.blocks))

    @staticmethod
    def _key(settings: ExtractionSettings, corpus: Corpus) -> str:
        return fingerprint([settings.pooling, settings.span, settings.max_length, corpus.fingerprint])


def sensitivity_markdown(record: Mapping[str, Any]) -> str:
    """The table of `measure_sensitivity` as Markdown."""
    reference = record["reference"]
    lines = [
        "# What moves the directions",
        "",
        f"Reference: {reference['n_components']} directions of {reference['model']}, blocks {reference['block_ids']}, "
        f"pooling {reference['pooling']} over {reference['span']}, found on {reference['rows']:,} rows. Each line "
        f"changes one thing. Matched |r|: mean correlation of the scores of {record['n']:,} examples along directions "
        "matched one to one, beside the 95th percentile of the same under permutation. Explained: cross-validated "
        "share of the variance of the reference's scores that the other scores explain, with a 95 % interval. "
        "Overlap and matched cosine exist where both lie in one space.",
        "",
        "| change | to | matched r | chance | explained | overlap | matched cosine |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in record["variants"]:
        head = f"| {entry['question']} | {_cell(entry['name'])} | "
        if entry["reason"] is not None:
            lines.append(f"{head}not measured: {_cell(entry['reason'])} | | | | |")
            continue
        explained = entry["explained"]
        ends = "" if explained["low"] is None else f" [{explained['low']:.2f}, {explained['high']:.2f}]"
        share = "–" if explained["mean"] is None else f"{explained['mean']:.2f}{ends}"
        spans = [f"{entry[key]:.2f}" if key in entry else "–" for key in ("overlap", "mean_cosine")]
        cells = (f"{entry['mean_correlation']:.2f}", f"{entry['null_95']:.2f}", share, *spans)
        lines.append(head + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def drawn_rows(corpus: Corpus, n: int, seed: int, *, but: Corpus | None = None) -> Corpus | None:
    """At most n rows of a corpus, drawn at random, in corpus order.

    Args:
        but: rows that are not drawn.
    Returns: None where there is no row to draw.
    """
    held = frozenset(but.ids) if but is not None else frozenset()
    free = [row_id for row_id in corpus.ids if row_id not in held]
    drawn = {free[i] for i in np.random.default_rng(seed).permutation(len(free))[:n]}
    return corpus.without(set(corpus.ids) - drawn) if drawn else None
