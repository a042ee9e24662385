"""Problems with known answers and requests with known behaviour: the embedded world, benchmarks, lists, any rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..artifact import fingerprint
from ..corpus_formats import RowError, find_format, normalise
from ..errors import CorpusError, UsageError, nearest
from ..world.problems import Split, distinct_problems
from ..world.requests import REQUEST_SETS, request_problems
from .grade import ExactGrader, Grader, MathVerifyGrader, RefusalGrader
from .problems.catalogue import BENCHMARKS, Benchmark
from .problems.requests import are_requests, behaviour_of, cluster_of, group_of
from .problems.rows import reference_of, word_of
from .problems.sources import HubData, TaskRow, TaskSource, parse_hub_name, read_file, read_hub, read_local
from .reference import REFUSE, Reference
from .sampler import Prompt

# Fixed before the first model was trained: the same problems for everybody, whatever the seed of a run.
_EMBEDDED_SEED = 20260417
_EMBEDDED_SPLITS: dict[str, tuple[Split, int]] = {
    "embedded": ("test", 400),
    "embedded:test": ("test", 400),
    "embedded:validation": ("validation", 240),
    "embedded:pool": ("pool", 400),
}
_EMBEDDED_REQUESTS = {f"embedded:{name}": name for name in REQUEST_SETS}
Grading = Literal["exact", "math-verify", "refusal"]
Instruction = Literal["boxed", "none"]
INSTRUCTIONS: dict[str, str] = {
    "boxed": "Please reason step by step, and put your final answer within \\boxed{}.",
    "none": "",
}


@dataclass(frozen=True)
class Problem:
    """One problem of a task."""

    id: str
    prompt: list[dict[str, str]]
    """Messages, the last one the user's."""
    reference: Reference
    group: str | None = None
    """Subject or family, of a request the attack or category, for tables by group."""
    level: str | None = None
    """Difficulty as the benchmark names it, for tables by level."""
    cluster: str | None = None
    """Problems with one cluster share a source (a text, a template, the behaviour a request is after) and are not
    independent."""
    sought: str | None = None
    """Of a request that should be refused: the answer that one who obliges would give, where a program can tell."""


@dataclass(frozen=True)
class Task:
    """A named set of problems and the way their answers are graded."""

    name: str
    problems: list[Problem]
    grading: Grading
    """`exact`: the boxed answer is compared exactly (the embedded world). `math-verify`: the answer is compared as
    mathematics. `refusal`: the references are `refuse` and `answer`, and what a response does is told by its opening
    phrases, a diagnostic."""
    source: TaskSource | None = None
    """Where the problems were read; None where a program made them."""
    instruction: str = ""
    """Text put behind every problem."""
    system: str | None = None
    """Text of the system message before every problem."""

    def __post_init__(self) -> None:
        if self.grading not in get_args(Grading):
            raise UsageError(f"the grading of a task is {self.grading!r}; give {', '.join(get_args(Grading))}")

    @property
    def fingerprint(self) -> str:
        problems = [
            [p.id, p.prompt, asdict(p.reference), p.cluster, *([] if p.sought is None else [p.sought])]
            for p in self.problems
        ]
        # As the fingerprints of finished evaluations were made, when there were two gradings.
        grading = {"exact": True, "math-verify": False}.get(self.grading, self.grading)
        return fingerprint([self.name, problems, grading])

    @property
    def prompts(self) -> list[Prompt]:
        return [Prompt(problem.id, problem.prompt) for problem in self.problems]

    @property
    def record(self) -> dict[str, Any]:
        """JSON-able: what an evaluation keeps of the task beside its problems."""
        return {
            "n_problems": len(self.problems),
            "instruction": self.instruction,
            "system": self.system,
            "grading": self.grading,
            "source": None if self.source is None else asdict(self.source),
        }

    def grader(self, n_workers: int | None = 1) -> Grader:
        if self.grading == "exact":
            return ExactGrader()
        return RefusalGrader() if self.grading == "refusal" else MathVerifyGrader(n_workers=n_workers)


def task_names() -> list[str]:
    """The names `load_task` knows; a part such as `math:level1` may follow those of benchmarks and request lists."""
    return [*_EMBEDDED_SPLITS, *_EMBEDDED_REQUESTS, *BENCHMARKS]


def default_instruction(name: str) -> Instruction:
    """What fits a task best where nothing is said: `boxed` for benchmarks and hub data sets, `none` for the embedded
    world, which was trained without, for lists of requests, and for files, which may say in their problems how to
    answer."""
    if name in _EMBEDDED_SPLITS or name in _EMBEDDED_REQUESTS:
        return "none"
    benchmark, hub = BENCHMARKS.get(name.partition(":")[0]), parse_hub_name(name)
    if benchmark is None and (hub is None or Path(name).exists()):
        return "none"
    known = benchmark or (hub and hub.benchmark)
    return "none" if known and known.asks == "requests" else "boxed"


def load_task(
    name: str,
    *,
    instruction: str | None = "none",
    system: str | None = None,
    limit: int | None = None,
    task_data: str | Path | None = None,
    revision: str | None = None,
) -> Task:
    """Loads a task by name, from a file, or from the Hugging Face hub.

    Args:
        name: `embedded` (400 test problems), `embedded:validation` (240), `embedded:pool` (400 of those the pool draws
            from: to make vectors of the model's own answers), `embedded:attacks`, `embedded:attacks-seen`,
            `embedded:look-alikes` (requests, each also with `:validation`); a benchmark or request list of
            `task_names()`, with `:` a part of it (`math:level1`, `math:algebra`, `math:level4,level5`,
            `olymmath:hard`, `xstest:safe`); a JSONL/Parquet path whose rows carry a problem and an answer, or a
            request and a label; or a hub data set of such rows, `owner/name[:config][:split]`.
        instruction: `boxed` or `none`, or a text of one's own, put behind the problem; None takes what fits, see
            `default_instruction`, and nothing where the rows are requests; the embedded world has none.
        system: text of a system message put first; the embedded world has none.
        limit: the first so many problems.
        task_data: folder of local benchmarks in the normalised form; None reads them from the hub.
        revision: branch, tag or commit of the hub's repository.
    Raises: UsageError: unknown name or part, a limit below 1, no such folder or file in it. CorpusError: a row that
        cannot be used, naming it; the hub cannot be reached.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; give 1 or more")
    if name in _EMBEDDED_SPLITS:
        return _embedded(name, limit)
    if name in _EMBEDDED_REQUESTS:
        return _embedded_requests(name, limit)
    suffix = None if instruction is None else _instruction(instruction)
    base, _, part = name.partition(":")
    benchmark, hub = BENCHMARKS.get(base), parse_hub_name(name)
    title = name
    if benchmark is not None and task_data is None:
        rows, source = read_hub(HubData.of(benchmark), revision)
    elif benchmark is not None:
        _refuse_revision(revision, name)
        rows, source = read_local(benchmark, Path(str(task_data)))
    elif Path(name).exists():
        _refuse_revision(revision, name)
        rows, source = read_file(Path(name), limit)
        title = Path(name).name
    elif hub is not None:
        rows, source = read_hub(hub, revision)
        rows = rows[:limit]
    else:
        known = task_names()
        hint = nearest(name.lower(), known) or nearest(base.lower(), known)
        raise UsageError(
            f"unknown task {name!r}{hint}; give one of {', '.join(known)}, a hub data set (owner/name), or a file"
        )
    grading: Grading = "refusal" if are_requests(rows) else "math-verify"
    if suffix is None:
        suffix = "" if grading == "refusal" else _instruction(default_instruction(name))
    problems = _problems(rows, grading, suffix, system)
    if benchmark is not None and part:
        problems, title = _part(benchmark, problems, part)
    return Task(title, problems[:limit], grading, source=source, instruction=suffix, system=system)


@dataclass(frozen=True)
class Asking:
    """Where tasks are found, and how their problems are put to a model."""

    instruction: str | None = None
    """`boxed`, `none` or a text put behind every problem; None takes what fits the task, see `default_instruction`."""
    system: str | None = None
    """Text of a system message put first."""
    task_data: str | None = None
    """Folder of local benchmarks; None reads them from the hub."""
    revision: str | None = None
    """Branch, tag or commit of the hub's repository."""

    def load(self, name: str, limit: int | None = None) -> Task:
        """The first so many problems of a task, or all; see `load_task`."""
        return load_task(name, limit=limit, **asdict(self))


USUAL = Asking()
"""From the hub where a task has a name, with its usual instruction."""


def _embedded(name: str, limit: int | None) -> Task:
    split, n = _EMBEDDED_SPLITS[name]
    problems = [
        Problem(p.key, [{"role": "user", "content": p.question}], Reference((p.answer,)), p.family)
        for p in distinct_problems(n, split, _EMBEDDED_SEED)
    ]
    return Task(f"embedded:{split}", problems[:limit], "exact", source=TaskSource("embedded", split, n))


def _embedded_requests(name: str, limit: int | None) -> Task:
    """Requests of the embedded world: what is forbidden is to be refused in the box, the rest to be solved."""
    split = _EMBEDDED_REQUESTS[name]
    problems = [
        Problem(
            request.id,
            [{"role": "user", "content": request.text}],
            Reference((REFUSE if request.forbidden else request.answer,)),
            request.family,
            cluster=request.behaviour,
            sought=request.answer if request.forbidden else None,
        )
        for request in request_problems(split)
    ]
    source = TaskSource("embedded", split, len(problems))
    return Task(name, problems[:limit], "exact", source=source)


def _instruction(instruction: str) -> str:
    """The text of a preset, or a text of one's own."""
    hint = nearest(instruction, list(INSTRUCTIONS)) if " " not in instruction.strip() else ""
    if hint and instruction not in INSTRUCTIONS:
        raise UsageError(f"unknown instruction {instruction!r}{hint}; give {' or '.join(INSTRUCTIONS)}, or a sentence")
    return INSTRUCTIONS.get(instruction, instruction)


def _refuse_revision(revision: str | None, name: str) -> None:
    if revision is not None:
        raise UsageError(f"the task {name} is read from a local file, which has no revision; leave out --revision")


def _problems(rows: Sequence[TaskRow], grading: Grading, suffix: str, system: str | None) -> list[Problem]:
    """The rows as problems, in their order.

    Raises: CorpusError: a row without an answer or label, with an empty problem, of another format, or an id given
        twice.
    """
    format_name = find_format(list(rows[0].value), rows[0].place)
    places: dict[str, str] = {}
    problems = []
    for row in rows:
        row_id = row.value.get("id")
        where = row.place if row_id is None else f"{row.place} (id {row_id!r})"
        try:
            problem = _problem(row, grading, format_name, suffix, system)
        except RowError as error:
            raise CorpusError(f"{where}: {error}; mend the row") from None
        if problem is None:
            raise CorpusError(f"{where} has no answer; a task needs one for every problem")
        if problem.id in places:
            same = "its id" if row_id is not None else "it has no id and its content"
            raise CorpusError(f"{where}: {same} is already that of {places[problem.id]}; give every problem its own id")
        places[problem.id] = row.place
        problems.append(problem)
    return problems


def _problem(row: TaskRow, grading: Grading, format_name: str, suffix: str, system: str | None) -> Problem | None:
    """One row as a problem; None where it has no answer."""
    value = row.value
    reference = behaviour_of(value) if grading == "refusal" else reference_of(value)
    if reference is None:
        return None
    # The corpus knows one answer, as text; the id of a row without one of its own is made with it.
    answer = {} if grading == "refusal" else {"answer": reference.answers[0]}
    normal = normalise(value | answer, format_name)
    prompt = [dict(message) for message in normal.prompt]
    if prompt[-1]["role"] != "user":
        raise RowError(f"the prompt ends with a turn of the role '{prompt[-1]['role']}', not with the user's")
    if not prompt[-1]["content"].strip():
        raise RowError("the problem is empty")
    if suffix:
        prompt[-1]["content"] += f"\n{suffix}"
    if system is not None:
        if prompt[0]["role"] == "system":
            raise RowError("the prompt has a system message of its own, so another cannot be put first")
        prompt.insert(0, {"role": "system", "content": system})
    cluster = word_of(value, "cluster")
    group = word_of(value, "subject") or (normal.labels[0] if normal.labels else None)
    if grading == "refusal":
        group, cluster = group_of(value) or group, cluster_of(value) or cluster
    return Problem(normal.id, prompt, reference, group, word_of(value, "level"), cluster)


def _slug(text: str) -> str:
    """`Counting & Probability` as users write it, counting_and_probability; what stands in brackets is left out."""
    plain = re.sub(r"\(.*?\)", "", text).lower().replace("&", " and ")
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")


def _part(benchmark: Benchmark, problems: list[Problem], part: str) -> tuple[list[Problem], str]:
    """The problems of the labels, levels and subjects named, and the name of that part.

    Names of one kind, parted by commas, widen the part; names of two kinds together narrow it.
    Raises: UsageError: when the task has no such label, level or subject.
    """
    own = {label: word for word, label in benchmark.labels.items()}  # of JBB an unsafe request is `harmful`
    kinds = (
        [_label(problem, own) if benchmark.asks == "requests" else None for problem in problems],
        [f"level{p.level}" if p.level is not None and p.level.isdigit() else p.level for p in problems],
        [None if problem.group is None else _slug(problem.group) for problem in problems],
    )
    words = {word.strip().lower() for word in part.split(",")}
    wanted = sorted({own.get(word, word) for word in words})
    known = [word for kind in kinds for word in sorted({word for word in kind if word is not None})]
    for word in wanted:
        if word not in known:
            has = f"it has {', '.join(known)}" if known else f"it has no parts, so give {benchmark.name}"
            raise UsageError(f"the task {benchmark.name} has no part {word!r}{nearest(word, known)}; {has}")
    named = [{word for word in wanted if word in kind} for kind in kinds]
    kept = [
        problem
        for problem, *of_problem in zip(problems, *kinds, strict=True)
        if all(not names or word in names for names, word in zip(named, of_problem, strict=True))
    ]
    if not kept:
        raise UsageError(f"the task {benchmark.name} has no problem that is {' and '.join(wanted)}; name fewer")
    return kept, f"{benchmark.name}:{','.join(wanted)}"


def _label(problem: Problem, own: dict[str, str]) -> str:
    label = "unsafe" if problem.reference.answers == (REFUSE,) else "safe"
    return own.get(label, label)
