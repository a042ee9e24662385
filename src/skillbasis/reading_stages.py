"""Stages of a recipe that read the corpus: activations, basis, scores, description, and what moves the directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .activations import ActivationStore, ExtractionSettings, extract
from .artifact import building, is_current, read_json, remove_tree, write_json, write_text
from .basis import PcaSettings, SaeSettings, Scores, SkillBasis, TrainingStep, fit_pca, fit_sae, score
from .basis.sensitivity import drawn_rows, measure_sensitivity, one_at_a_time, sensitivity_markdown
from .basis.stability import StabilitySettings, measure_stability
from .corpus import Corpus, load_corpus
from .evaluate.judge import Judge
from .interpret import describe_basis, label_basis, write_description
from .interpret.labelling import LabelSettings
from .lm import LanguageModel
from .recipe import Recipe
from .recipe_settings import basis_settings
from .stages import Run


def read(run: Run, recipe: Recipe, lm: LanguageModel, corpus: Corpus) -> tuple[SkillBasis, Scores, Corpus]:
    """Activations, basis, scores and their description; the corpus without the rows that gave no activations."""
    settings = ExtractionSettings(**recipe.activations.model_dump())
    out = run.out
    store = run.do(
        "activations",
        lambda tick: extract(
            corpus,
            lm,
            out / "activations",
            settings,
            on_bad_row=recipe.corpus.on_bad_row,
            overwrite=True,  # a changed recipe redoes what depends on the change
            on_progress=lambda rows, n, tokens: tick(rows, n, f"{tokens:,} tokens"),
        ),
        out / "activations",
    )
    if store.manifest["n_skipped"]:
        run.warnings.append(f"{store.manifest['n_skipped']} rows gave no activations; see activations/skipped.jsonl")
        corpus = corpus.without({row["id"] for row in store.skipped()})
    if store.manifest["n_truncated"]:
        run.warnings.append(f"{store.manifest['n_truncated']} of {len(store)} rows were cut at {settings.max_length}")
    how = basis_settings(recipe)
    made_from = {"activations": store.manifest["inputs_fingerprint"], "basis": recipe.basis.model_dump()}
    made_from |= {"seed": recipe.seed, "interpret": recipe.interpret.model_dump(exclude={"judge"})}
    made_from |= {"stability": None if recipe.stability is None else recipe.stability.model_dump()}

    too_few = len(store) // 2 <= recipe.basis.k
    if recipe.stability is not None and too_few:
        run.warnings.append(
            f"half of {len(store)} rows hold no {recipe.basis.k} directions, so their stability is not measured"
        )

    def find(tick: Callable[[int, int, str], None]) -> None:
        basis = _fit(store, how, out / ".basis.progress.safetensors", tick)
        if recipe.stability is not None and not too_few:
            resampling = StabilitySettings(seed=recipe.seed, **recipe.stability.model_dump())
            basis = basis.with_stability(measure_stability(store, basis, resampling, on_step=tick).to_json())
        remove_tree(out / "interpret")  # it vouches for the basis that is now replaced
        basis.save(out / "basis")
        scores = score(store, basis)
        scores.save(out / "scores.parquet")

    def interpret(_tick: Callable[[int, int, str], None]) -> None:
        basis, scores = SkillBasis.load(out / "basis"), Scores.load(out / "scores.parquet")
        with building(out / "interpret", "description", made_from, {}) as work:
            description = describe_basis(
                scores,
                basis.mean_scores,
                basis.explained_variance,
                basis.config["total_variance"],
                corpus,
                by=recipe.interpret.by,
                n_examples=recipe.interpret.n_examples,
                seed=recipe.seed,
                unstable=None if basis.stability is None else basis.unstable,
                tokens=dict(zip(store.ids, store.token_counts.tolist(), strict=True)),
            )
            write_description(work, description)

    # The description is made last, so it also vouches for the basis and the scores.
    current = is_current(out / "interpret", "description", made_from)
    run.do("basis", (lambda _: None) if current else find, out / "interpret")
    run.do("interpret", (lambda _: None) if current else interpret, out / "interpret")
    basis, scores = SkillBasis.load(out / "basis"), Scores.load(out / "scores.parquet")
    _label(run, recipe, basis, scores, corpus, made_from)
    return basis, scores, corpus


def _fit(
    store: ActivationStore,
    how: PcaSettings | SaeSettings,
    checkpoint: Path,
    tick: Callable[[int, int, str], None],
) -> SkillBasis:
    """The directions of stored activations; the training of an autoencoder goes on after a kill."""
    if isinstance(how, PcaSettings):
        return fit_pca(store, how)

    def on_step(step: TrainingStep) -> None:
        tick(step.done, step.total, f"{step.unexplained:.1%} unexplained")

    basis = fit_sae(store, how, checkpoint=checkpoint, on_step=on_step)
    checkpoint.unlink(missing_ok=True)
    return basis


def _label(
    run: Run, recipe: Recipe, basis: SkillBasis, scores: Scores, corpus: Corpus, described: dict[str, Any]
) -> None:
    """The description with the labels of a judge; where the judge fails, the run goes on and says so."""
    block, out = recipe.interpret.judge, run.out / "labels"
    if block is None:
        remove_tree(out)
        return
    judge = Judge(
        block.url,
        block.model,
        api_key_env=block.key_env,
        concurrency=block.concurrency,
        timeout_s=block.timeout,
        max_tokens=block.max_tokens,
        seed=recipe.seed,
        cache=run.out / "labels.judge.jsonl",
        again=True,
    )
    settings = LabelSettings(block.held_out, block.characters, recipe.seed)
    inputs = {"description": described, "judge": judge.identity, "settings": asdict(settings)}

    def label(tick: Callable[[int, int, str], None]) -> None:
        description = read_json(run.out / "interpret" / "directions.json")
        found = label_basis(
            judge, scores, basis.mean_scores, corpus, description, settings, lambda what, done, n: tick(done, n, what)
        )
        if found.failure is not None:  # what was answered is in the cache, and the next run goes on with it
            run.warnings.append(f"labels: {found.failure}")
            remove_tree(out)
            return
        with building(out, "labels", inputs, {}) as work:
            write_description(work, found.description)

    current = is_current(out, "labels", inputs)
    run.do("labels", (lambda _: None) if current else label, out)


def sensitivity(run: Run, recipe: Recipe, lm: LanguageModel, corpus: Corpus) -> None:
    """How much the directions depend on blocks, pooling, span, k, rows and corpus; see `basis/sensitivity.py`."""
    block = recipe.sensitivity
    if block is None:
        return
    shared = drawn_rows(corpus, block.rows, recipe.seed)
    assert shared is not None  # a corpus has rows
    extraction = ExtractionSettings(**recipe.activations.model_dump())
    pca = basis_settings(recipe)
    assert isinstance(pca, PcaSettings)  # else the recipe was refused
    rows = {f"other rows, seed {seed}": drawn_rows(corpus, block.rows, seed, but=shared) for seed in block.seeds}
    if None in rows.values():
        run.warnings.append(f"sensitivity: {len(corpus)} rows leave no others to find directions on; lower its rows")
    corpora = {name: drawn_rows(load_corpus(name), block.rows, recipe.seed) for name in block.corpora}
    variants = one_at_a_time(
        extraction,
        pca,
        layers=block.layers,
        pooling=block.pooling,
        span=block.span,
        k=block.k,
        rows={name: found for name, found in rows.items() if found is not None},
        corpora={name: found for name, found in corpora.items() if found is not None},
    )
    inputs = {
        "weights_fingerprint": lm.weights_fingerprint,
        "corpora": [corpus.fingerprint, *(found.fingerprint for found in corpora.values() if found is not None)],
        "settings": [recipe.model_dump(mode="json")[key] for key in ("activations", "basis", "seed", "sensitivity")],
    }
    out = run.out / "sensitivity"

    def measure(tick: Callable[[int, int, str], None]) -> None:
        if is_current(out, "sensitivity", inputs):
            return
        with building(out, "sensitivity", inputs, {}) as work:
            record = measure_sensitivity(
                lm,
                shared,
                extraction,
                pca,
                variants,
                work / "activations",
                n_permutations=block.n_permutations,
                seed=recipe.seed,
                on_variant=lambda name, done, n: tick(done, n, name),
            )
            write_json(work / "sensitivity.json", record)
            write_text(work / "sensitivity.md", sensitivity_markdown(record))
            remove_tree(work / "activations")

    run.do("sensitivity", measure, out)
