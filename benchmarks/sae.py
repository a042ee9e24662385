"""What a sparse autoencoder finds beside PCA, on the same activations of the embedded reasoner.

    python benchmarks/sae.py --out docs/results/sae.json     # a few minutes on an idle machine
    python benchmarks/sae.py --quick                         # under a minute; checks that it runs

Variance explained: of the rows that a seed holds out, about the corpus mean. PCA is fitted on that seed's other rows,
with as many components as the autoencoder has latents active in a row, as directions are kept, and as there are
latents. Stability: mean absolute cosine of directions after one-to-one matching (Hungarian), between seeds, and between
two halves of the rows; the null is random sums of centred rows. Labels: the hidden families, styles and correctness of
the pool, which nothing that fits reads. The best single direction of a label is chosen on the fitted rows, with its
sign, and judged on the held-out ones; the joint AUC is that of a ridge-penalised logistic regression on all
directions, fitted and judged likewise; the control has the labels shuffled.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from skillbasis.activations import ActivationStore, ExtractionSettings, extract
from skillbasis.artifact import write_json
from skillbasis.basis import PcaSettings, SaeSettings, SkillBasis, fit_pca, fit_sae
from skillbasis.basis.batches import held_out
from skillbasis.basis.subset import RowSubset
from skillbasis.corpus import Corpus, load_corpus
from skillbasis.engine import machine
from skillbasis.lm import load_model

N_NULLS = 20


@dataclass(frozen=True)
class Size:
    """How much is compared."""

    rows: int = 20_000
    seeds: int = 3
    sae: SaeSettings = field(default_factory=lambda: SaeSettings(k=None))
    kept: int = 10
    """Directions of a basis as a user would ask for it; all live latents are looked at besides."""


QUICK = Size(rows=2000, seeds=2, sae=SaeSettings(k=None, dictionary_size=64, steps=400))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON of the result")
    parser.add_argument("--quick", action="store_true", help="few rows, a small dictionary, two seeds")
    for name in ("rows", "seeds"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("dictionary-size", "active", "steps"):
        parser.add_argument(f"--{name}", type=int, help="of the autoencoder")
    options = parser.parse_args()
    size = QUICK if options.quick else Size()
    changes = {name: value for name in ("dictionary_size", "active", "steps") if (value := getattr(options, name))}
    given = {name: value for name in ("rows", "seeds") if (value := getattr(options, name))}
    size = replace(size, sae=replace(size.sae, **changes), **given)
    record: dict[str, Any] = {
        "what": "sparse autoencoder and PCA on the same activations: variance explained, stability, labels, seconds",
        "command": "python benchmarks/sae.py" + (" --quick" if options.quick else ""),
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("skillbasis", "torch", "numpy", "scikit-learn")},
        "size": asdict(size),
    }
    corpus = load_corpus("embedded", limit=size.rows, shuffle_seed=0)
    with tempfile.TemporaryDirectory() as folder:
        store = extract(corpus, load_model("embedded"), Path(folder) / "acts", ExtractionSettings(span="response"))
        record["n_features"] = store.n_features
        record |= compare(store, labels_of(corpus), size)
    if options.out is not None:
        write_json(options.out, record)
    print_tables(record)


def labels_of(corpus: Corpus) -> dict[str, np.ndarray]:
    """Who carries each hidden label: (n,) bool by name."""
    hidden = [json.loads(extra) for extra in corpus.rows["extra"]]
    family = np.array([labels[0] for labels in corpus.rows["labels"]])
    style = np.array([row["hidden_style"] for row in hidden])
    found = {f"family {name}": family == name for name in sorted(set(family))}
    found |= {f"style {name}": style == name for name in sorted(set(style))}
    return found | {"correct": np.array([row["hidden_correct"] for row in hidden])}


@dataclass(frozen=True)
class Fits:
    """What was fitted for one seed."""

    seed: int
    held: np.ndarray
    """(n,) bool."""
    sae: SkillBasis
    """All live latents, the most important first."""
    pca: SkillBasis
    """As many components as there are, on the rows that are not held out."""
    seconds: dict[str, float]


def compare(store: ActivationStore, labels: dict[str, np.ndarray], size: Size) -> dict[str, Any]:
    x = store.to_numpy().reshape(len(store), -1).astype(np.float64)
    fits = list(fit_all(store, size))
    kept = size.kept
    halves = [fit_half(store, size, half) for half in (0, 1)]
    centred = x - x.mean(axis=0)
    return {
        "variance_explained": [variance_explained(x, fit, size) for fit in fits],
        "stability": stability(centred, fits, halves, size.kept),
        "labels": [label_scores(x, labels, fit, size) for fit in fits],
        "latents": [
            {key: fit.sae.config["dictionary"][key] for key in ("size", "alive", "dead")}
            | {
                key: fit.sae.config[key][:kept]
                for key in ("activation_frequency", "score_activation_correlation", "nearest_cosine")
            }
            for fit in fits
        ],
        "seconds": [fit.seconds for fit in fits],
    }


def fit_all(store: ActivationStore, size: Size) -> Iterator[Fits]:
    """Both methods, seed by seed."""
    for seed in range(size.seeds):
        settings = replace(size.sae, seed=seed)
        held = held_out(seed, settings.held_out_share, 0, len(store))
        fitted = RowSubset(store, ~held)
        started = time.perf_counter()
        sae = fit_sae(store, settings)
        between = time.perf_counter()
        n_components = min(store.n_features, settings.dictionary_size, len(fitted) - 1)
        pca = fit_pca(fitted, PcaSettings(k=n_components))
        seconds = {"sae": between - started, f"pca of {n_components}": time.perf_counter() - between}
        yield Fits(seed, held, sae, pca, seconds)


def fit_half(store: ActivationStore, size: Size, half: int) -> dict[str, np.ndarray]:
    """Directions (K, d) of both methods on a half of the rows; the halves share none."""
    rows = RowSubset(store, np.random.default_rng(0).permutation(len(store)) % 2 == half)
    n_components = min(store.n_features, size.sae.dictionary_size, len(rows) - 1)
    return {"sae": flat(fit_sae(rows, size.sae)), "pca": flat(fit_pca(rows, PcaSettings(k=n_components)))}


def flat(basis: SkillBasis) -> np.ndarray:
    return basis.directions.reshape(basis.n_components, -1).astype(np.float64)


def variance_explained(x: np.ndarray, fit: Fits, size: Size) -> dict[str, Any]:
    """Of the held-out rows, about the mean of all rows."""
    rows, mean = x[fit.held], fit.pca.mean.reshape(-1).astype(np.float64)
    total = ((rows - x.mean(axis=0)) ** 2).sum()
    scores = (rows - mean) @ flat(fit.pca).T
    missed = ((rows - mean) ** 2).sum() - np.cumsum((scores**2).sum(axis=0))  # by number of components, from 1
    active, m = size.sae.active, len(scores[0])
    return {
        "seed": fit.seed,
        "rows": int(fit.held.sum()),
        "sae": fit.sae.config["held_out"] | {"fitted_rows": fit.sae.config["training"]["explained_variance"]},
        "sae_span": {str(size.kept): span_explained(x, fit, size.kept)},
        "pca": {str(k): float(1 - missed[k - 1] / total) for k in sorted({active, 2 * active, size.kept, m})},
    }


def span_explained(x: np.ndarray, fit: Fits, k: int) -> float:
    """Share of the held-out rows' variance within the span of the k most important directions."""
    orthonormal = np.linalg.qr(flat(fit.sae)[:k].T)[0]
    rows = x[fit.held] - x.mean(axis=0)
    return float(((rows @ orthonormal) ** 2).sum() / (rows**2).sum())


def matched(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Absolute cosines of unit rows (k_a, d) and (k_b, d) after one-to-one matching."""
    cosines = np.abs(a @ b.T)
    return cosines[linear_sum_assignment(-cosines)]  # type: ignore[no-any-return]


def stability(
    centred: np.ndarray, fits: list[Fits], halves: list[dict[str, np.ndarray]], kept: int
) -> dict[str, dict[str, Any]]:
    """How alike directions are that were found twice.

    Returns: by what differs, and which directions are looked for among which: `kept in kept`, the most important ones
        among the most important ones; `kept in all`, among all live latents; `all in all`.
    """
    found = {
        "sae, between seeds": [flat(fit.sae) for fit in fits],
        "sae, between halves": [half["sae"] for half in halves],
        "pca, between halves": [half["pca"] for half in halves],
    }
    n = min(len(directions) for of_what in found.values() for directions in of_what)
    rng = np.random.default_rng(0)
    random = [rng.standard_normal((n, len(centred))) @ centred for _ in range(N_NULLS)]
    found["null"] = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in random]
    return {
        what: {
            f"{kept} in {kept}": recurrence(several, kept, kept),
            f"{kept} in all": recurrence(several, kept, n),
            "all in all": recurrence(several, n, n),
        }
        for what, several in found.items()
    }


def recurrence(bases: list[np.ndarray], n_looked_for: int, n_among: int) -> dict[str, float]:
    """The mean matched cosine over all ordered pairs of bases, and the share of directions matched above .9."""
    pairs = [matched(a[:n_looked_for], b[:n_among]) for a, b in permutations(bases, 2)]
    return {"mean": float(np.mean(pairs)), "above_0.9": float((np.array(pairs) > 0.9).mean()), "among": n_among}


def label_scores(x: np.ndarray, labels: dict[str, np.ndarray], fit: Fits, size: Size) -> dict[str, Any]:
    """Held-out AUC of every label by the best single direction and by all together, for each set of directions."""
    m = fit.sae.n_components
    sets = {
        f"sae, {size.kept} directions": flat(fit.sae)[: size.kept],
        "sae, all live latents": flat(fit.sae),
        f"pca, {size.kept} directions": flat(fit.pca)[: size.kept],
        "pca, as many": flat(fit.pca)[:m],
    }
    centred = x - x.mean(axis=0)
    found: dict[str, Any] = {"seed": fit.seed}
    for name, directions in sets.items():
        scores = centred @ directions.T
        scores /= scores[~fit.held].std(axis=0)
        by_label = {label: label_score(scores, member, fit.held) for label, member in labels.items()}
        shuffled = np.random.default_rng(fit.seed).permutation(len(x))
        control = [label_score(scores, member[shuffled], fit.held) for member in labels.values()]
        found[name] = {
            "best_single": float(np.mean([entry["best_single"] for entry in by_label.values()])),
            "joint": float(np.mean([entry["joint"] for entry in by_label.values()])),
            "control_best_single": float(np.mean([entry["best_single"] for entry in control])),
            "control_joint": float(np.mean([entry["joint"] for entry in control])),
            "labels": by_label,
        }
    return found


def label_score(scores: np.ndarray, member: np.ndarray, held: np.ndarray) -> dict[str, float]:
    """AUC on held-out rows: of the direction and sign that are best on the others, and of a logistic regression."""
    from sklearn.linear_model import LogisticRegression

    areas = auc(scores[~held], member[~held])
    best = int(np.abs(areas - 0.5).argmax())
    single = float(auc(scores[held][:, [best]], member[held])[0])
    model = LogisticRegression(max_iter=5000).fit(scores[~held], member[~held])
    joint = float(auc(model.decision_function(scores[held])[:, None], member[held])[0])
    return {"best_single": single if areas[best] > 0.5 else 1 - single, "direction": best, "joint": joint}


def auc(scores: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(K,) chance that a member scores above another row, ties counted half, by column of (n, K)."""
    n, ranks = int(member.sum()), rankdata(scores, axis=0)
    return (ranks[member].sum(axis=0) - n * (n + 1) / 2) / (n * (len(member) - n))  # type: ignore[no-any-return]


def print_tables(record: dict[str, Any]) -> None:
    """Means over the seeds."""
    entries, latents = record["variance_explained"], record["latents"]
    active, size = record["size"]["sae"]["active"], latents[0]["size"]
    print(f"variance explained of held-out rows, mean of {len(entries)} seeds")
    explained = mean_of(entry["sae"]["explained_variance"] for entry in entries)
    rows = {f"sae, {active} of {size} latents in a row": explained}
    for k in entries[0]["sae_span"]:
        rows[f"span of its {k} most important directions"] = mean_of(entry["sae_span"][k] for entry in entries)
    for k in entries[0]["pca"]:
        rows[f"pca, {k} components"] = mean_of(entry["pca"][k] for entry in entries)
    for name, value in rows.items():
        print(f"  {name:44}{value:7.3f}")
    print(f"\n{'matched absolute cosine':46}{'mean':>7}{'above .9':>9}")
    for what, of_sets in record["stability"].items():
        for name, found in of_sets.items():
            print(f"  {what + ', ' + name:44}{found['mean']:7.3f}{found['above_0.9']:9.2f}")
    print(f"\n{'held-out AUC, mean of labels and seeds':38}{'best single':>12}{'control':>9}{'joint':>9}{'control':>9}")
    for name in (name for name in record["labels"][0] if name != "seed"):
        columns = ("best_single", "control_best_single", "joint", "control_joint")
        values = [mean_of(entry[name][column] for entry in record["labels"]) for column in columns]
        widths = zip(values, (12, 9, 9, 9), strict=True)
        print(f"  {name:36}" + "".join(f"{value:{width}.3f}" for value, width in widths))
    seconds = {name: mean_of(of_seed[name] for of_seed in record["seconds"]) for name in record["seconds"][0]}
    print("\nseconds: " + ", ".join(f"{name} {value:.2f}" for name, value in seconds.items()))
    print("dead latents: " + ", ".join(str(found["dead"]) for found in latents))


def mean_of(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


if __name__ == "__main__":
    main()
