"""The page docs/reading-results.md, from the committed result files of benchmarks/reading.py and benchmarks/sae.py.

python benchmarks/reading_tables.py > docs/reading-results.md
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
CORPORA = {
    "embedded": "The pool of the embedded world. Its families and styles are the truth it was made from.",
    "solutions": "Solutions of GSM8K and MATH problems, half of them held back from the reading model.",
    "traces": "Solutions that other models wrote, labelled right or wrong; problems held back likewise.",
}
MODELS = {"embedded": "embedded reasoner", "reading": "reading model"}
HEAD = """# What reading found

Two models read three corpora: the embedded reasoner, which knows little but its own world, and a small language model
of {parameters:.1f} million parameters that learnt ordinary mathematical text ({tokens:.1f} million tokens) and has
never seen the texts below. Neither is a model one would use; what is shown is what the tools say, and that they can
tell structure from chance. Rows and settings stand in each file. Made by `{command}` on {cpu} ({cores} cores), and this
page by `python benchmarks/reading_tables.py` from `docs/results/reading` and `docs/results/sae.json`. Brackets are 95 %
intervals."""


def main() -> None:
    print(page(), end="")


def page() -> str:
    """The whole page as Markdown."""
    records = {name: read(f"reading/{name}") for name in CORPORA}
    first = next(iter(records.values()))
    facts = first["model_facts"]
    head = HEAD.format(
        parameters=facts["parameters"] / 1e6,
        tokens=facts["tokens"] / 1e6,
        command=first["command"],
        cpu=first["machine"]["cpu"],
        cores=first["machine"]["cores"],
    )
    lines = [head]
    for name, record in records.items():
        lines += ["", f"## {name.capitalize()}", "", f"{CORPORA[name]} {record['what'].split(': ')[1].capitalize()}."]
        for part in (directions, labels, grounded, moved):
            lines += ["", *part(record)]
        lines += ["", *shared(record)]
    return "\n".join([*lines, "", *autoencoder(read("sae"))]) + "\n"


def read(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def estimate(value: dict[str, Any] | None, mean: str = "mean") -> str:
    if value is None or value[mean] is None:
        return "–"
    if value["low"] is None or value["high"] is None:
        return f"{value[mean]:.2f}"
    return f"{value[mean]:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def directions(record: dict[str, Any]) -> Iterator[str]:
    """Stability and words of every direction."""
    yield "| model | direction | stability | words, + end | words, − end | goes with |"
    yield "| --- | --- | ---: | --- | --- | --- |"
    for model, found in record["models"].items():
        for k, (entry, words) in enumerate(zip(found["stability"]["directions"], found["words"], strict=True)):
            cosine = entry["cosine"] or entry["half_cosine"]
            stable = f"{cosine['median']:.2f} [{cosine['low']:.2f}, {cosine['high']:.2f}]"
            stable += " unstable" if entry["unstable"] else ""
            ends = [" ".join(code(word) for word in words[end][:4]) for end in ("positive", "negative")]
            told = ", ".join(f"{code(a['name'])} {a['correlation']:+.2f}" for a in words["attributes"][:2])
            yield f"| {MODELS[model]} | d{k} | {stable} | {ends[0]} | {ends[1]} | {told} |"


def code(text: str) -> str:
    """A word of the corpus on one line, without marks that Markdown would read."""
    return "`" + " ".join(text.replace("`", "'").replace("|", "¦").split()) + "`"


def labels(record: dict[str, Any]) -> Iterator[str]:
    """What human labels and directions tell of each other."""
    yield "| model | labels | joint AUC, mean | deviance explained | accuracy | most frequent | explains of the basis |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for model, found in record["models"].items():
        for column in found["skills"]["taxonomy"]["columns"]:
            accuracy = column["accuracy"] or {"model": None, "majority": None}
            cells = (
                estimate(column["mean_joint_auc"]),
                estimate(column["deviance_r2"]),
                estimate(accuracy["model"]),
                estimate(accuracy["majority"]),
                estimate((column["basis_r2"] or {"total": None})["total"]),
            )
            yield f"| {MODELS[model]} | {column['column']} ({column['n_labels']}) | {' | '.join(cells)} |"
    yield ""
    for model, found in record["models"].items():
        index, compact = found["skills"]["compositionality"]["index"], found["skills"]["compactness"]["needed"]
        held = ", ".join(f"{share} by {n if n is not None else 'more than all'}" for share, n in compact.items())
        yield f"* {MODELS[model]}: compositionality {estimate(index)}; of the variance, {held} directions."


def grounded(record: dict[str, Any]) -> Iterator[str]:
    """Whether scores tell right answers."""
    if all(found["skills"]["grounding"] is None for found in record["models"].values()):
        yield "Nothing says which of these rows are right."
        return
    yield "| model | right answers told by | AUC |"
    yield "| --- | --- | ---: |"
    for model, found in record["models"].items():
        grounding = found["skills"]["grounding"]
        for predictor in grounding["predictors"]:
            yield f"| {MODELS[model]} | {predictor['name']} | {estimate(predictor['auc'], 'auc')} |"
    yield ""
    for model, found in record["models"].items():
        for row in found["skills"]["grounding"]["comparisons"]:
            yield f"* {MODELS[model]}: {row['a']} less {row['b']}: {estimate(row['difference'])}, p {p(row['p_holm'])}."


def p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"= {value:.3f}"


def moved(record: dict[str, Any]) -> Iterator[str]:
    """What moves the directions, both models side by side."""
    names = list(record["models"])
    heads = [f"matched r, {MODELS[name]} | chance | explained" for name in names]
    yield f"| change | to | {' | '.join(heads)} |"
    yield "| --- | --- " + "| ---: | ---: | ---: " * len(names) + "|"
    tables = [record["models"][name]["sensitivity"]["variants"] for name in names]
    wanted = dict.fromkeys((entry["question"], entry["name"]) for table in tables for entry in table)
    for question, name in wanted:
        cells = []
        for table in tables:
            found = [entry for entry in table if (entry["question"], entry["name"]) == (question, name)]
            if not found or found[0]["reason"] is not None:
                cells.append("– | – | –")
                continue
            entry = found[0]
            cells.append(f"{entry['mean_correlation']:.2f} | {entry['null_95']:.2f} | {estimate(entry['explained'])}")
        yield f"| {question} | {name} | {' | '.join(cells)} |"


def shared(record: dict[str, Any]) -> Iterator[str]:
    """What the two models have in common."""
    both, scores = record["two_models"], record["two_models"]["scores"]
    yield (
        f"The two models' scores of the same {scores['n']:,} rows: mean matched |r| {scores['mean_correlation']:.2f} "
        f"(95 % of permutations below {scores['mean_null_95']:.2f}); the reading model explains "
        f"{estimate(scores['a_from_b']['total'])} of the variance of the reasoner's scores, the reasoner "
        f"{estimate(scores['b_from_a']['total'])} of the reading model's."
    )
    for side, name in zip("ab", MODELS.values(), strict=True):
        kinds: dict[str, list[str]] = {}
        for axis in both["two_models"][side]["axes"]:
            kinds.setdefault(axis["status"], []).append(f"d{axis['direction']}")
        told = "; ".join(f"{kind}: {', '.join(axes)}" for kind, axes in kinds.items())
        yield f"Axes of the {name}: {told}."


def autoencoder(record: dict[str, Any]) -> Iterator[str]:
    """A sparse autoencoder beside principal directions."""
    sae, explained = record["size"]["sae"], record["variance_explained"]
    n, active = len(explained), str(sae["active"])
    yield "## A sparse autoencoder beside PCA"
    yield ""
    yield f"The same activations of {record['size']['rows']:,} rows of the embedded pool, {n} seeds each. Made by"
    yield f"`{record['command']} --out docs/results/sae.json`; means over seeds. Held-out variance: what the"
    yield f"autoencoder reconstructs with {active} latents active per row, against PCA with as many components or more."
    yield "Found again: mean matched |cosine| of ten directions (of the autoencoder, the most important) between halves"
    yield "of the rows and between seeds. Labels: AUC of the best single direction and of all of a kind together, mean"
    yield "over the world's families, styles and correctness."
    yield ""
    rows = {
        f"held-out variance, autoencoder, {active} active": mean(e["sae"]["explained_variance"] for e in explained),
        **{
            f"held-out variance, PCA of {k}": mean(e["pca"][k] for e in explained)
            for k in sorted(explained[0]["pca"], key=int)
        },
    }
    kept = f"{record['size']['kept']} in {record['size']['kept']}"
    rows |= {f"found again, {what}": found[kept]["mean"] for what, found in record["stability"].items()}
    for what, told in (("best_single", "best single direction"), ("joint", "together")):
        for name in (key for key in record["labels"][0] if key != "seed"):
            rows[f"label AUC, {told}, {name}"] = mean(entry[name][what] for entry in record["labels"])
    yield "| what | value |"
    yield "| --- | ---: |"
    for name, value in rows.items():
        yield f"| {name} | {value:.3f} |"


def mean(values: Iterable[float]) -> float:
    kept = list(values)
    return sum(kept) / len(kept)


if __name__ == "__main__":
    main()
