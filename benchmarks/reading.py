"""What the tools of reading a basis say of real text and of the embedded world, where the truth is known.

    python benchmarks/reading_model.py --data ../shared/data --out runs/reading-model
    python benchmarks/reading.py --models runs/reading-model --out docs/results/reading

Three corpora: the pool of the embedded world (true families and styles are known and looked at here only), solutions of
GSM8K and MATH problems with level and subject, and solutions that other models wrote, labelled right or wrong. The
texts are those that the reading model has not learnt. Two models read all three: the embedded reasoner, and the reading
model. For each: how stable the directions are, what human labels and they tell of each other, whether they tell right
answers, and what moves them; then what the two models share. A file per corpus, NAME.json, and the tables of each as
Markdown in `--runs`. Minutes on two cores; each finished part is kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from skillbasis.activations import ExtractionSettings, extract
from skillbasis.artifact import building, is_current, read_json, write_json, write_text
from skillbasis.basis import PcaSettings, Scores, SkillBasis, StabilitySettings, fit_pca, measure_stability, score
from skillbasis.basis.sensitivity import drawn_rows, measure_sensitivity, one_at_a_time, sensitivity_markdown
from skillbasis.corpus import Corpus, load_corpus
from skillbasis.engine import machine
from skillbasis.interpret import describe_basis, write_description
from skillbasis.interpret.comparison import compare
from skillbasis.interpret.skills import describe_skills, write_skills
from skillbasis.lm import LanguageModel, load_model

N_ROWS = 4000
N_VARIED = 1500
"""Rows of the sensitivity, which reads them a dozen times."""
EXTRACTION = ExtractionSettings(max_length=512)
PCA = PcaSettings(k=10)
CORPORA: dict[str, dict[str, Any]] = {
    "embedded": {"label_columns": ["labels", "hidden_style"], "correct_column": "hidden_correct"},
    "solutions": {"label_columns": ["subject", "level", "source_file"]},
    "traces": {"label_columns": ["source_file", "model"], "correct_column": "correct", "group_column": "problem_id"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=Path, required=True, help="what reading_model.py made")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result files")
    parser.add_argument("--runs", type=Path, default=Path("runs/reading"))
    options = parser.parse_args()
    models = {"embedded": load_model("embedded"), "reading": load_model(str(options.models / "model"))}
    for name, columns in CORPORA.items():
        source = "embedded" if name == "embedded" else str(options.models / f"{name}.jsonl")
        corpus = load_corpus(source, limit=N_ROWS, shuffle_seed=0)
        readings = {model: read(lm, corpus, options.runs / name / model, columns) for model, lm in models.items()}
        (a, first), (b, second) = (
            (SkillBasis.load(path / "basis"), Scores.load(path / "scores.parquet"))
            for path in (options.runs / name / model for model in models)
        )
        both = compare(a, b, first, second, names=("embedded reasoner", "reading model"), corpus=corpus)
        write_text(options.runs / name / "two-models.md", both.to_markdown())
        record = {
            "what": f"reading {name}: {len(corpus):,} rows, {PCA.k} directions, inner blocks, mean over all tokens",
            "command": f"python benchmarks/reading.py --models {options.models} --out {options.out}",
            "machine": machine(),
            "model_facts": read_json(options.models / "reading-model.json"),
            "models": readings,
            "two_models": shortened(both.to_json()),
        }
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(options.out / f"{name}.json", record)
        print(options.out / f"{name}.json")


def read(lm: LanguageModel, corpus: Corpus, out: Path, columns: dict[str, Any]) -> dict[str, Any]:
    """Basis, stability, description, human labels and sensitivity of one model on one corpus."""
    store = extract(corpus, lm, out / "activations", EXTRACTION, on_bad_row="skip")
    inputs = {"activations": store.manifest["inputs_fingerprint"], "columns": columns, "varied": N_VARIED}
    if not is_current(out / "found", "reading", inputs):
        basis = fit_pca(store, PCA)
        basis = basis.with_stability(measure_stability(store, basis, StabilitySettings()).to_json())
        basis.save(out / "basis")
        scores = score(store, basis)
        scores.save(out / "scores.parquet")
        tokens = dict(zip(store.ids, store.token_counts.tolist(), strict=True))
        facts = (basis.mean_scores, basis.explained_variance, basis.config["total_variance"])
        description = describe_basis(scores, *facts, corpus, unstable=basis.unstable, tokens=tokens)
        skills = describe_skills(basis, scores, corpus, **columns)
        shared = drawn_rows(corpus, N_VARIED, 0)
        assert shared is not None
        rows = {"other rows": drawn_rows(corpus, N_VARIED, 1, but=shared)}
        variants = one_at_a_time(
            EXTRACTION,
            PCA,
            layers=("all", "early", "middle", "late", str(len(lm.blocks) // 2)),
            pooling=("last", "max"),
            span=("prompt", "response"),
            k=(8, 16, 32),
            rows={name: found for name, found in rows.items() if found is not None},
            corpora={}
            if corpus.source == "embedded"
            else {"the embedded pool": load_corpus("embedded", limit=N_VARIED)},
        )
        moved = measure_sensitivity(lm, shared, EXTRACTION, PCA, variants, out / "varied")
        with building(out / "found", "reading", inputs, {}) as work:
            write_description(work, description)
            write_skills(work, skills)
            write_text(work / "sensitivity.md", sensitivity_markdown(moved))
            write_json(work / "found.json", {"skills": skills, "sensitivity": moved})
    found, basis = read_json(out / "found" / "found.json"), SkillBasis.load(out / "basis")
    description = read_json(out / "found" / "directions.json")
    return {
        "variance_share": sum(basis.config["explained_variance_ratio"]),
        "stability": basis.stability,
        "words": [words(entry) for entry in description["directions"]],
        **found,
    }


def words(entry: dict[str, Any]) -> dict[str, Any]:
    """What a direction is known by: its words, and the attributes it goes with."""
    ends = {end: [keyword["word"] for keyword in entry["keywords"][end][:6]] for end in ("positive", "negative")}
    told = ("name", "correlation", "low", "high", "p_holm")
    return ends | {"attributes": [{key: a[key] for key in told} for a in entry["attributes"][:4]]}


def shortened(comparison: dict[str, Any]) -> dict[str, Any]:
    """The comparison without the examples, which are the data's."""
    reading = comparison["two_models"]
    for side in "ab":
        reading[side] = {key: value for key, value in reading[side].items() if key != "not_shared"}
    return comparison


if __name__ == "__main__":
    main()
