"""What a run will cost, before it runs: rows and tokens, operations, hours on a named device, memory and disk.

Tokens are counted as extraction reads them; operations, memory and hours follow from the model's structure (flops.py).
No weights are loaded. What runs on the processor (principal directions, scores, grading) is not planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .activations import ExtractionSettings
from .activations.settings import ModelFacts, ReadingPlan
from .basis.pca import MAX_EXACT_FEATURES
from .corpus import Corpus, row_text
from .errors import UsageError
from .evaluate.tasks import Asking
from .flops import (
    ADAM_BYTES,
    GPUS,
    DecoderCost,
    Device,
    answering_memory,
    decoder_cost,
    load_skeleton,
    reading_memory,
    training_memory,
)
from .lm import DTYPES
from .recipe import BasisBlock, Recipe, SamplingBlock
from .recipe_settings import (
    arms_of,
    contest_settings,
    has_contest,
    probe_settings,
    recipe_corpus,
    recipe_needs,
    training_settings,
)
from .study import StudySettings
from .token_count import OnRows, TokenCount, count_tokens

STREAMING_PASSES = 2
"""Readings of the corpus for the directions of many features, at least, where no activations are stored."""
_KRYLOV_BYTES = 160  # of memory per feature and vector of the block: sums, space, images and their copies, as measured
_EXACT_BYTES = 32  # per pair of features: covariance, its scaled copy and what the eigensolver takes
_HELD_MODELS = 2  # the run holds the base model, and so does the worker of its cells


@dataclass(frozen=True)
class Stage:
    """Operations of one stage."""

    name: str
    n_tokens: float
    """Tokens that pass through the model, epochs and repetitions included."""
    forward_flops: float
    backward_flops: float
    recomputed_flops: float
    """Of forward passes that gradient checkpointing makes a second time; in the hours, not in the other figures."""
    hours: float
    """On the device at its utilisation."""
    note: str


@dataclass(frozen=True)
class Memory:
    """Estimated memory of one device in one stage."""

    stage: str
    bytes: float
    parts: dict[str, float]
    """Bytes by what they are for."""
    fits: bool


@dataclass(frozen=True)
class Disk:
    """What lies on the disk at the end, or would."""

    what: str
    bytes: float
    note: str


@dataclass(frozen=True)
class Plan:
    """What a run will cost."""

    model: str
    model_type: str
    n_parameters: int
    dtype: str
    block_ids: tuple[int, ...]
    hidden_size: int
    max_length: int
    batch_tokens: int
    device: Device
    tokens: TokenCount
    stages: list[Stage]
    disk: list[Disk]
    memory: list[Memory]
    warnings: list[str]


def plan_extraction(
    corpus: Corpus,
    model: str,
    settings: ExtractionSettings,
    device: Device,
    *,
    dtype: str = "auto",
    on_rows: OnRows | None = None,
) -> Plan:
    """Plans the extraction of a corpus.

    Args:
        corpus: the rows.
        model: a directory, hub id or `embedded`; only configuration and tokenizer are read.
        settings: blocks, span and lengths of the extraction.
        dtype: of the weights; `auto` takes the configuration's.
        on_rows: told how far the counting is.
    Raises: UsageError: the model or its tokenizer cannot be read, or a setting cannot be meant.
    """
    work = _Work.of(model, dtype, settings, device)
    return work.plan(count_tokens(corpus, work.tokenizer, work.reading, on_rows=on_rows))


def plan_recipe(recipe: Recipe, device: Device, *, on_rows: OnRows | None = None) -> Plan:
    """Plans a recipe: extraction, likelihood where an arm needs it, pilots, arms, and steering.

    Training takes three forward passes per token (one forward, two for the gradients of activations and weights; one
    where only adapters are trained), the head included. A row of training is taken to be as long as the mean of the
    corpus. Answers are an upper bound: each is read as a row of prompt and `max_tokens` new tokens.

    Raises: UsageError: the model, a task or an arm is unknown, or a setting cannot be meant. CorpusError: a bad row.
    """
    work = _Work.of(recipe.model, recipe.dtype, ExtractionSettings(**recipe.activations.model_dump()), device)
    pilots = recipe.probe is not None and recipe.probe.kind == "pilot"
    trains = pilots or recipe.study is not None
    if recipe.study is not None:  # before the counting, which may take minutes
        for budget in recipe.study.budgets:
            StudySettings(arms_of(recipe.study.arms), budget, tuple(recipe.study.seeds), recipe.study.budget_unit)
    jobs = _jobs(recipe, work.tokenizer)
    corpus = recipe_corpus(recipe.corpus)
    length = min(training_settings(recipe.training).max_length, work.cost.context_length) if trains else None
    tokens = count_tokens(
        corpus, work.tokenizer, work.reading, training_length=length, seed=recipe.seed, on_rows=on_rows
    )
    if recipe.study is not None and recipe.study.budget_unit == "tokens":
        jobs = _jobs(recipe, work.tokenizer, tokens.training_tokens)
    return work.plan(tokens, recipe, jobs)


@dataclass(frozen=True)
class _Job:
    """Fine-tunes and answered tasks of one stage."""

    stage: str
    n_fine_tunes: int
    n_rows: int
    """Rows of each fine-tune."""
    n_evaluations: int
    prompt_tokens: np.ndarray
    """(problems,) int64."""
    sampling: SamplingBlock
    note: str = ""
    """What is uncertain in the counts."""


def _jobs(recipe: Recipe, tokenizer: Any, mean_tokens: float = 1.0) -> list[_Job]:
    """What probe, contest, study and sweep do: how many fine-tunes, and how often a task is answered.

    Args:
        mean_tokens: of a row; what a budget in tokens comes to in rows.
    """
    jobs = []
    if recipe.probe is not None:
        probe = recipe.probe
        settings, n_signed = probe_settings(probe, recipe.seed), 2 * recipe.basis.k
        n_cells, n_most = settings.n_cells(n_signed), settings.n_cells(n_signed, "full")
        n_pilots, n_rows = (n_cells, probe.n_rows) if probe.kind == "pilot" else (0, 0)
        prompts = _prompt_tokens(probe.task, recipe.asking, probe.n_problems, tokenizer)
        note = f"; halving: up to {n_most} where directions lie close together" if n_most > n_cells else ""
        jobs.append(_Job("probe", n_pilots, n_rows, n_cells + 1, prompts, probe.sampling, note))
    for number, budget in enumerate(recipe.study.budgets if recipe.study is not None else ()):
        jobs += _study_jobs(recipe, budget, "" if number == 0 else f"-{budget}", tokenizer, mean_tokens)
    if recipe.steer is not None:
        steer = recipe.steer
        n_vectors = (len(steer.directions) or (recipe.probe.n_chosen if recipe.probe else 1)) + steer.n_random
        n_points = 1 + len(steer.scopes) * len(steer.alphas) * n_vectors
        prompts = _prompt_tokens(steer.task, recipe.asking, steer.n_problems, tokenizer)
        jobs.append(_Job("steer", 0, 0, n_points, prompts, steer.sampling))
        if steer.test_task is not None:
            prompts = _prompt_tokens(steer.test_task, recipe.asking, steer.n_test_problems, tokenizer)
            jobs.append(_Job("steer test", 0, 0, 2 + steer.n_controls, prompts, steer.sampling))
    return jobs


def _study_jobs(recipe: Recipe, budget: int, suffix: str, tokenizer: Any, mean_tokens: float) -> list[_Job]:
    """What contest.py and study.py do at one budget."""
    study, rule = recipe.study, recipe.contest
    assert study is not None
    n_rows = budget if study.budget_unit == "rows" else max(1, round(budget / mean_tokens))
    jobs = []
    if has_contest(recipe):
        settings = contest_settings(recipe, budget, (), ())
        n_cells, n_most = settings.n_cells(len(settings.arms) + 1), settings.n_cells(len(settings.arms) + 1, "full")
        task = rule.task or (recipe.probe.task if recipe.probe is not None else study.tasks[0])
        prompts = _prompt_tokens(task, recipe.asking, rule.n_problems, tokenizer)
        note = f"; halving: up to {n_most} where arms lie close together" if n_most > n_cells else ""
        jobs.append(_Job(f"contest{suffix}", n_cells, n_rows, n_cells + 1, prompts, rule.sampling, note))
    n_cells = len(study.arms) * len(study.seeds)
    prompts = np.concatenate([_prompt_tokens(task, recipe.asking, study.n_problems, tokenizer) for task in study.tasks])
    jobs.append(_Job(f"study{suffix}", n_cells, n_rows, n_cells + len(study.seeds), prompts, study.sampling))
    return jobs


def _prompt_tokens(task: str, asking: Asking, n_problems: int | None, tokenizer: Any) -> np.ndarray:
    """Tokens of every prompt of a task, (problems,)."""
    problems = asking.load(task, n_problems).problems
    texts = [row_text(problem.prompt, "", tokenizer) for problem in problems]
    encoded = tokenizer([text.text for text in texts], add_special_tokens=texts[0].add_special_tokens, verbose=False)[
        "input_ids"
    ]
    return np.array([len(ids) for ids in encoded], dtype=np.int64)


@dataclass(frozen=True)
class _Work:
    """A model without weights and how it is to be run."""

    name: str
    cost: DecoderCost
    tokenizer: Any
    dtype: str
    reading: ReadingPlan
    device: Device

    @classmethod
    def of(cls, name: str, dtype: str, settings: ExtractionSettings, device: Device) -> _Work:
        if dtype not in DTYPES:
            raise UsageError(f"unknown dtype {dtype!r}; allowed are {', '.join(DTYPES)}")
        model, tokenizer = load_skeleton(name)
        cost = decoder_cost(model)
        saved = str(getattr(model.config.get_text_config(), "dtype", None) or "float32").removeprefix("torch.")
        dtype = saved if dtype == "auto" else dtype
        facts = ModelFacts({}, cost.n_blocks, cost.hidden_size, cost.context_length, dtype, on_accelerator=True)
        return cls(name, cost, tokenizer, dtype, ReadingPlan.of(settings, facts), device)

    @property
    def value_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    def plan(self, tokens: TokenCount, recipe: Recipe | None = None, jobs: Sequence[_Job] = ()) -> Plan:
        needs = recipe_needs(recipe) if recipe is not None else set()
        stages = [self._extraction(tokens)]
        memory = [self._memory("extraction", self._batch(tokens))]
        n_budgets = len(recipe.study.budgets) if recipe is not None and recipe.study is not None else 0
        n_readings = 1 if needs & {"likelihood", "likelihood alone"} else 0
        n_readings += n_budgets * sum(need in needs for need in ("reread along directions", "reread by likelihood"))
        if n_readings:
            stages.append(self._likelihood(tokens, n_readings))
            memory.append(self._memory("likelihood", self._batch(tokens, logits=True)))
        if recipe is not None and "own answers" in needs:
            stages.append(self._own_answers(tokens, recipe))
        for job in jobs:
            assert recipe is not None
            if job.n_fine_tunes:
                stages.append(self._training(tokens, recipe, job))
                memory.append(self._memory(f"{job.stage}: training", self._trained(tokens, recipe)))
            stages.append(self._answering(job))
            memory.append(self._memory(f"{job.stage}: answering", self._answered(job)))
        return Plan(
            model=self.name,
            model_type=self.cost.model_type,
            n_parameters=self.cost.n_parameters,
            dtype=self.dtype,
            block_ids=self.reading.block_ids,
            hidden_size=self.cost.hidden_size,
            max_length=self.reading.max_length,
            batch_tokens=self.reading.batch_tokens,
            device=self.device,
            tokens=tokens,
            stages=stages,
            disk=self._disk(tokens, recipe, jobs),
            memory=memory,
            warnings=self._warnings(tokens, memory, jobs),
        )

    def _stage(
        self, name: str, n_tokens: float, forward: float, note: str, *, backward: float = 0.0, recomputed: float = 0.0
    ) -> Stage:
        hours = self.device.hours(forward + backward + recomputed)
        return Stage(name, n_tokens, forward, backward, recomputed, hours, note)

    def _memory(self, stage: str, parts: dict[str, float]) -> Memory:
        total = sum(parts.values())
        return Memory(stage, total, parts, total <= GPUS[self.device.gpu].memory_gib * 2**30)

    def _extraction(self, tokens: TokenCount) -> Stage:
        last = max(self.reading.block_ids)
        forward = self.cost.forward_flops(tokens.n_tokens, tokens.n_pairs, last_block=last)
        note = f"blocks 0 to {last} of {self.cost.n_blocks}, no head; padding is not counted"
        return self._stage("extraction", tokens.n_tokens, forward, note)

    def _likelihood(self, tokens: TokenCount, n_readings: int) -> Stage:
        n_tokens = n_readings * tokens.n_tokens
        forward = n_readings * self.cost.forward_flops(tokens.n_tokens, tokens.n_pairs, head_tokens=tokens.n_tokens)
        note = "an upper bound: the head is counted for all tokens"
        if n_readings > 1:
            note = f"{n_readings} readings of the pool, by the base and by what a first selection makes of it; {note}"
        return self._stage("likelihood", n_tokens, forward, note)

    def _own_answers(self, tokens: TokenCount, recipe: Recipe) -> Stage:
        """Answers to the pool's own problems; a prompt is taken to be half a row."""
        block = recipe.selection.own_sampling
        n_rows = min(recipe.selection.own_rows or tokens.n_rows, tokens.n_rows)
        length = tokens.n_tokens / tokens.n_rows / 2 + block.max_tokens
        n_answers = n_rows * block.rollouts
        forward = self.cost.forward_flops(
            n_answers * length, n_answers * length**2, head_tokens=float(n_answers * block.max_tokens)
        )
        note = f"{n_answers:,} answers of {block.max_tokens:,} tokens to the pool's problems, an upper bound"
        return self._stage("own answers", n_answers * length, forward, note)

    def _training(self, tokens: TokenCount, recipe: Recipe, job: _Job) -> Stage:
        training = training_settings(recipe.training)
        n_read = job.n_fine_tunes * job.n_rows * training.epochs  # rows
        n_tokens = n_read * tokens.training_tokens
        forward = self.cost.forward_flops(n_tokens, n_read * tokens.training_pairs, head_tokens=n_tokens)
        epochs = f"{training.epochs:g} epoch{'' if training.epochs == 1 else 's'}"
        note = f"{job.n_fine_tunes} fine-tunes x {job.n_rows:,} rows x {epochs}"
        if training.lora is not None:
            note += ", adapters only"
        checkpointing = recipe.training.trainer == "trl"
        if checkpointing:
            note += "; trl on a GPU makes each forward pass twice, in the hours only"
        note += job.note
        backward = forward * (2 if training.lora is None else 1)
        return self._stage(
            f"{job.stage}: training", n_tokens, forward, note, backward=backward, recomputed=forward * checkpointing
        )

    def _answering(self, job: _Job) -> Stage:
        n_new, repeats = job.sampling.max_tokens, job.n_evaluations * job.sampling.rollouts
        lengths = job.prompt_tokens.astype(np.float64) + n_new
        n_tokens, n_pairs = repeats * lengths.sum(), repeats * np.square(lengths).sum()
        head_tokens = float(repeats * len(lengths) * n_new)
        forward = self.cost.forward_flops(float(n_tokens), float(n_pairs), head_tokens=head_tokens)
        note = (
            f"{job.n_evaluations} x {len(lengths):,} problems x {job.sampling.rollouts} answers of {n_new:,} tokens, "
            f"an upper bound; but decoding waits for memory and seldom reaches this utilisation{job.note}"
        )
        return self._stage(f"{job.stage}: answering", float(n_tokens), forward, note)

    def _batch(self, tokens: TokenCount, *, logits: bool = False) -> dict[str, float]:
        """Memory of reading the largest batch: full of tokens, or one long row."""
        n_tokens = max(tokens.longest, min(self.reading.batch_tokens, tokens.n_rows * tokens.longest))
        return reading_memory(self.cost, n_tokens, tokens.longest, self.value_bytes, logits=logits)

    def _trained(self, tokens: TokenCount, recipe: Recipe) -> dict[str, float]:
        training, lean = training_settings(recipe.training), recipe.training.trainer == "lean"
        return training_memory(
            self.cost,
            training.micro_batch_size * tokens.longest_training,
            tokens.longest_training,
            self.value_bytes if lean else 2 if training.bf16 else 4,
            lora_rank=training.lora.rank if training.lora else None,
            state_bytes=4 * self.value_bytes if lean else ADAM_BYTES,  # lean trains in the model's own precision
            checkpointing=not lean,
            weight_bytes=self.value_bytes,
            n_held=_HELD_MODELS,
        )

    def _answered(self, job: _Job) -> dict[str, float]:
        rollouts = job.sampling.rollouts
        n_sequences = rollouts * min(len(job.prompt_tokens), max(1, job.sampling.batch_size // rollouts))
        longest = int(job.prompt_tokens.max()) + job.sampling.max_tokens
        n_models = _HELD_MODELS + (job.n_fine_tunes > 0)
        return answering_memory(self.cost, n_sequences, longest, self.value_bytes, n_models=n_models)

    def _disk(self, tokens: TokenCount, recipe: Recipe | None, jobs: Sequence[_Job]) -> list[Disk]:
        n_features = len(self.reading.block_ids) * self.cost.hidden_size
        k = (recipe.basis if recipe else BasisBlock()).k
        width = min(n_features, max(8 * k, 128))  # of pca.py's Krylov block where the rows are read anew
        streamed, passes = _KRYLOV_BYTES * n_features * width, f"{STREAMING_PASSES} extractions or more"
        if n_features <= MAX_EXACT_FEATURES:
            streamed, passes = _EXACT_BYTES * n_features**2, "1 extraction"
        items = [
            Disk(
                "activations",
                float(tokens.n_rows * n_features * 4),
                f"{tokens.n_rows:,} rows x {len(self.reading.block_ids)} blocks x {self.cost.hidden_size:,} float32",
            ),
            Disk("rows.parquet", tokens.table_bytes, "ids and lengths"),
            Disk(
                "instead of both, streamed",
                float(streamed),
                f"memory of the principal directions, estimated; {passes}, nothing stored",
            ),
        ]
        n_models = sum(job.n_fine_tunes for job in jobs)
        if recipe is not None and recipe.training.trainer == "trl" and n_models:
            lora = training_settings(recipe.training).lora
            size = self.cost.n_parameters * self.value_bytes if lora is None else 4 * lora.rank * self.cost.matrix_sides
            items.append(Disk("fine-tuned models", float(n_models * size), f"trl keeps each of {n_models}"))
        return items

    def _warnings(self, tokens: TokenCount, memory: Sequence[Memory], jobs: Sequence[_Job]) -> list[str]:
        about = "" if tokens.n_counted == tokens.n_rows else "about "
        gpu = GPUS[self.device.gpu]
        found = []
        if tokens.n_without_span:
            found.append(
                f"{about}{tokens.n_without_span:,.0f} rows have no token in the span {self.reading.span!r}, such as "
                f"{tokens.first_without_span!r}: extraction stops at them; drop them, raise the maximal length, or "
                "choose another span"
            )
        if self.dtype == "float32":
            found.append(f"the {gpu.name}'s {gpu.tflops:g} TFLOP/s are for 16 bits; float32 takes several times longer")
        if self.dtype == "bfloat16" and not gpu.bf16:
            found.append(f"the {gpu.name} does not compute in bfloat16; take float16")
        found += [
            f"{item.stage} needs about {item.bytes / 2**30:,.0f} GiB, one {gpu.name} has {gpu.memory_gib:g}; most of "
            f"it is {max(item.parts, key=lambda name: item.parts[name])}"
            for item in memory
            if not item.fits
        ]
        for job in jobs:
            if job.n_rows > tokens.n_rows:
                found.append(f"{job.stage} takes {job.n_rows:,} rows, the corpus has {tokens.n_rows:,}: the run stops")
            longest = int(job.prompt_tokens.max()) + job.sampling.max_tokens
            if longest > self.cost.context_length:
                found.append(
                    f"{job.stage}: the longest prompt with {job.sampling.max_tokens:,} new tokens is {longest:,} long, "
                    f"above the context of {self.cost.context_length:,}: the run stops; lower max_tokens"
                )
        return found
