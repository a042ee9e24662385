"""What each direction of a basis holds, from the corpus alone, and what a judge calls it: interpret."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SkillbasisError, UsageError
from .options import Basis, Format, LabelColumn, OnBadRow, Out, Seed, read_corpus

if TYPE_CHECKING:
    from ..evaluate.judge import Judge

KEYWORDS_SHOWN = 6


def interpret(
    basis: Basis,
    scores: Annotated[Path, typer.Option("--scores", help="Score file.")],
    corpus: Annotated[str, typer.Option("--corpus", help="The corpus that was scored.")],
    out: Out,
    activations: Annotated[
        Path | None, typer.Option(help="Activations of the corpus: adds the tokens of each row to its attributes.")
    ] = None,
    by: Annotated[str, typer.Option(help="cosine, projection or raw_cosine.")] = "cosine",
    n_examples: Annotated[int, typer.Option(min=1, help="Examples at each end of a direction.")] = 10,
    judge_url: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible endpoint that labels the directions, such as http://localhost:8000/v1."),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Name under which the endpoint serves the judge.")] = None,
    judge_key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the endpoint's key.")
    ] = "OPENAI_API_KEY",
    judge_concurrency: Annotated[int, typer.Option(help="Requests that are open together.")] = 8,
    judge_timeout: Annotated[float, typer.Option(help="Seconds for one answer.")] = 120.0,
    judge_max_tokens: Annotated[
        int, typer.Option(help="Tokens after which an answer is cut, thoughts included.")
    ] = 1024,
    judge_characters: Annotated[int, typer.Option(help="Characters of each text that the judge is shown.")] = 1200,
    judge_held_out: Annotated[
        int, typer.Option(help="Held-out examples of each end that a label is tested on; 0 tests none.")
    ] = 10,
    judge_price_in: Annotated[float | None, typer.Option(help="Price of a million tokens asked, for the cost.")] = None,
    judge_price_out: Annotated[float | None, typer.Option(help="Price of a million tokens answered.")] = None,
    judge_cache: Annotated[
        Path | None, typer.Option(help="File that keeps the judge's answers; OUT.judge.jsonl if not given.")
    ] = None,
    judge_again: Annotated[
        bool, typer.Option("--judge-again", help="Ask anew what the judge gave no usable answer to.")
    ] = False,
    seed: Seed = 0,
    format: Format = None,
    label_column: LabelColumn = None,
    on_bad_row: OnBadRow = "stop",
) -> None:
    """Say what each direction holds: exemplars, keywords, attributes; with --judge-url also labels, and test them."""
    from ..basis import Scores, SkillBasis
    from ..interpret import describe_basis, label_basis
    from ..interpret.labelling import LabelSettings

    loaded, table = SkillBasis.load(basis), Scores.load(scores)
    table.check_basis(loaded)
    judge = _judge(
        judge_url,
        judge_model,
        (judge_price_in, judge_price_out),
        api_key_env=judge_key_env,
        concurrency=judge_concurrency,
        timeout_s=judge_timeout,
        max_tokens=judge_max_tokens,
        cache=judge_cache or out.resolve().with_name(f"{out.resolve().name}.judge.jsonl"),
        again=judge_again,
        seed=seed,
    )
    settings = LabelSettings(judge_held_out, judge_characters, seed)
    rows = read_corpus(corpus, format, label_column, on_bad_row, out=out)
    description = describe_basis(
        table,
        loaded.mean_scores,
        loaded.explained_variance,
        loaded.config["total_variance"],
        rows,
        by=by,  # type: ignore[arg-type]
        n_examples=n_examples,
        seed=seed,
        unstable=None if loaded.stability is None else loaded.unstable,
        tokens=None if activations is None else _tokens(activations),
    )
    inputs = {"basis": loaded.fingerprint, "by": by, "n_examples": n_examples, "seed": seed}
    _write(out, inputs, description)  # before the judge is asked, so that it is there whatever becomes of that
    failure = None
    if judge is not None:
        from ..console import progress

        with progress("judge") as tick:
            labelling = label_basis(
                judge,
                table,
                loaded.mean_scores,
                rows,
                description,
                settings,
                lambda what, done, total: tick(done, total, what),
            )
        description, failure = labelling.description, labelling.failure
        _write(out, inputs | {"judge": judge.identity | description["judge"]["settings"]}, description)
    for entry in description["directions"]:
        _print_direction(entry)
    if judge is not None:
        print(f"judge {judge_model}: {judge.usage}")
    print(f"read {out / 'directions.md'}")
    if failure is not None:
        n_labels, n = description["judge"]["n_labelled"], len(description["directions"])
        raise SkillbasisError(f"{failure} ({out} is complete but for labels: {n_labels} of {n} directions have one)")


def _tokens(activations: Path) -> dict[str, int]:
    from ..activations import ActivationStore

    store = ActivationStore.open(activations)
    return dict(zip(store.ids, store.token_counts.tolist(), strict=True))


def _judge(
    url: str | None, model: str | None, prices: tuple[float | None, float | None], **options: Any
) -> Judge | None:
    """The judge that the options name; None without a URL.

    Raises: UsageError: half of what it takes is given.
    """
    from ..evaluate.judge import Judge, Prices

    price_in, price_out = prices
    if url is None:
        if model is not None:
            raise UsageError("--judge-model names a model that --judge-url serves; give --judge-url too")
        return None
    if model is None:
        raise UsageError(f"--judge-url {url} needs --judge-model, the name under which it serves the judge")
    if (price_in is None) != (price_out is None):
        raise UsageError("the cost takes both --judge-price-in and --judge-price-out; give both, or neither")
    priced = None if price_in is None or price_out is None else Prices(price_in, price_out)
    return Judge(url, model, prices=priced, **options)


def _write(out: Path, inputs: dict[str, Any], description: dict[str, Any]) -> None:
    from ..artifact import building
    from ..interpret import write_description

    with building(out, "description", inputs, {}) as work:
        write_description(work, description)


def _print_direction(entry: dict[str, Any]) -> None:
    from ..interpret.markdown import sorted_by, visible

    words = [
        " ".join(word["word"] for word in entry["keywords"][end][:KEYWORDS_SHOWN]) for end in ("positive", "negative")
    ]
    marked = " (unstable)" if entry["unstable"] else ""
    print(f"d{entry['direction']}{marked}: + {words[0]} | - {words[1]}")
    if "label" not in entry:
        return
    label = entry["label"]
    if label is None:
        print(f"    no label: {visible(entry['label_reason'])}")
        return
    control = label["shuffled"]
    by_other = "" if control["direction"] is None else f", by the label of d{control['direction']} {sorted_by(control)}"
    ends = " | ".join(", ".join(label[end]) for end in ("positive", "negative"))
    print(f"    label: {ends}; held-out examples sorted rightly {sorted_by(label)}{by_other}")
