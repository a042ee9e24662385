"""Steering vectors from reward alone: where the state before the answer must move for right answers to gain on wrong.

The place is the output of a block at the last prompt token, once, just before the answer starts: the scope
`last-prompt`. Nothing but the model's own graded answers enters: no words, and no other model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ..activations.pooling import token_batches
from ..activations.reader import is_out_of_memory
from ..blocks import block_output
from ..corpus import row_text
from ..errors import SkillbasisError, UsageError, nearest
from ..evaluate.generate import end_token_ids
from ..lm import LanguageModel
from .contrasts import cosine
from .own_answers import Answer, read_own_answers
from .vectors import SteeringVector, Unit, make_vector

if TYPE_CHECKING:
    import torch

Normalise = Literal["sum", "token"]


@dataclass(frozen=True)
class _Row:
    """An answer as the model reads it behind its prompt."""

    id: str
    problem: int
    weight: float
    """Of its log-probability in the objective."""
    ids: list[int]
    """Tokens of prompt and answer, without the end token."""
    n_prompt: int
    ends: bool
    """Whether the end token belongs to the answer."""


def gradient_vector(
    lm: LanguageModel,
    evaluation: str | Path,
    block: int | Sequence[int],
    *,
    task: str | None = None,
    max_answers_per_problem: int = 16,
    seed: int = 0,
    normalise: Normalise = "sum",
    batch_tokens: int = 4096,
    shuffle_seed: int | None = None,
    name: str = "gradient",
    unit: Unit = "raw",
) -> SteeringVector:
    """The unit direction in which the model's own correct answers gain most on its incorrect ones.

    The objective is, per problem that has both, the mean log-probability of the correct answers minus that of the
    incorrect ones, averaged over problems; the direction is its gradient with respect to what is added to the outputs
    of the blocks at the last prompt token. With `sum` this is the policy gradient of the share of correct answers, but
    that every problem counts the same (there p(1 - p) times as much, at a share of p).

    Args:
        evaluation: directory of an evaluation of this model without steering. Its answers are scored at the temperature
            they were sampled at (greedy ones at 1).
        block: block or blocks (0-based) whose outputs are moved; several are moved together.
        task: one of the evaluation's; None takes all.
        max_answers_per_problem: as many are drawn where there are more, of right and wrong ones as even as can be.
        seed: of that draw.
        normalise: the log-probability of an answer is the `sum` over its tokens, or the mean over them (`token`), so
            that long answers weigh no more than short ones.
        batch_tokens: rows x longest row of one pass; halved where memory runs out.
        shuffle_seed: deals out the grades of each problem anew among its answers, for the control of an experiment.
            Random directions can be too easy a one, as gradients of any answers may lie along few axes.
        unit: of alpha; `std` counts standard deviations, over problems, of the states at that place.
    Returns: the vector, for the scope last-prompt; its origin holds the counts, as `norm` the objective gained per unit
        of raw strength at strength 0, and as `split_half_cosine` the cosine between the gradients of every other
        problem and of the rest: far below 1 where the direction is noise.
    Raises: UsageError: no such block or task, or an argument out of range. ArtifactError: as for `success_vector`.
        SkillbasisError: the model gives NaN or infinity.
    Cost: one forward and backward pass over the answers; memory of one batch (its logits, and its activations from the
        first block moved on) and of one state per problem and block.
    """
    if normalise not in get_args(Normalise):
        allowed = list(get_args(Normalise))
        raise UsageError(
            f"unknown normalise {normalise!r}{nearest(normalise, allowed)}; allowed are {', '.join(allowed)}"
        )
    if max_answers_per_problem < 2 or batch_tokens < 1:
        raise UsageError(
            f"max_answers_per_problem must be at least 2 and batch_tokens at least 1, not {max_answers_per_problem} "
            f"and {batch_tokens}"
        )
    block_ids = sorted({block} if isinstance(block, int) else set(block))
    if not block_ids or not 0 <= block_ids[0] <= block_ids[-1] < len(lm.blocks):
        raise UsageError(f"a gradient is taken at blocks 0 to {len(lm.blocks) - 1} of {lm.name!r}, not {block_ids}")
    own = read_own_answers(lm, evaluation, task)
    own = own if shuffle_seed is None else own.shuffled(shuffle_seed)
    rng = np.random.default_rng(seed)
    problems = [_drawn(answers, max_answers_per_problem, rng) for answers in own.having(True, False)]
    rows, n_retokenized = _rows(lm, problems, normalise)
    shape = (len(block_ids), lm.hidden_size)
    halves, states = np.zeros((2, *shape)), np.zeros((len(problems), *shape), dtype=np.float32)
    for places in token_batches([len(row.ids) for row in rows], batch_tokens, lm.length_switch):
        batch = [rows[place] for place in places]
        gradients, seen = _read(lm, block_ids, batch, own.temperature or 1.0)
        for row, gradient, state in zip(batch, gradients, seen, strict=True):
            halves[row.problem % 2] += row.weight * gradient
            states[row.problem] = state
    total = halves.sum(axis=0)
    norm = float(np.linalg.norm(total))
    if norm == 0:
        raise SkillbasisError(
            f"the objective does not depend on the states at blocks {block_ids}, so it has no direction there; choose "
            "other blocks"
        )
    used = [answer for answers in problems for answer in answers]
    origin = {
        "kind": "gradient",
        **own.origin,
        "scope": "last-prompt",
        "normalise": normalise,
        "max_answers_per_problem": max_answers_per_problem,
        "seed": seed,
        "n_problems": len(problems),
        "n_correct": sum(answer.correct for answer in used),
        "n_incorrect": sum(not answer.correct for answer in used),
        "n_retokenized": n_retokenized,
        "norm": norm,
        "split_half_cosine": cosine(*halves),
    }
    std = float(np.einsum("pbh,bh->p", states, total / norm).std())
    return make_vector(name, block_ids, total / norm, std, lm.identity, origin, unit=unit)


def _drawn(answers: Sequence[Answer], n: int, rng: np.random.Generator) -> list[Answer]:
    """At most n answers, right and wrong ones as even as can be, in their order."""
    if len(answers) <= n:
        return list(answers)
    sides = [[i for i, answer in enumerate(answers) if answer.correct == kind] for kind in (True, False)]
    n_right = min(len(sides[0]), max(n // 2, n - len(sides[1])))
    chosen = [rng.choice(side, size, replace=False) for side, size in zip(sides, (n_right, n - n_right), strict=True)]
    return [answers[i] for i in sorted(np.concatenate(chosen))]


def _rows(lm: LanguageModel, problems: Sequence[Sequence[Answer]], normalise: Normalise) -> tuple[list[_Row], int]:
    """All answers with their weights, and how many have other tokens now than when they were sampled."""
    rows, n_retokenized = [], 0
    for number, answers in enumerate(problems):
        n_right = sum(answer.correct for answer in answers)
        for answer in answers:
            share = 1 / n_right if answer.correct else -1 / (len(answers) - n_right)
            prompt, response = _tokens(lm, answer)
            n_retokenized += len(response) != answer.n_tokens
            ids = (prompt + response)[: lm.context_length]
            ends = not answer.truncated and len(ids) == len(prompt) + len(response)
            n_predicted = len(ids) - len(prompt) + ends
            if n_predicted > 0:  # else its log-probability is 0, whatever the state
                weight = share / len(problems) / (n_predicted if normalise == "token" else 1)
                rows.append(_Row(answer.id, number, weight, ids, len(prompt), ends))
    return rows, n_retokenized


def _tokens(lm: LanguageModel, answer: Answer) -> tuple[list[int], list[int]]:
    """The prompt as it was read when the answer was sampled, and the answer's tokens behind it."""
    text = row_text(answer.prompt, "", lm.tokenizer)
    prompt = list(lm.tokenizer(text.text, add_special_tokens=text.add_special_tokens, verbose=False)["input_ids"])
    whole = lm.tokenizer(
        text.text + answer.response,
        add_special_tokens=text.add_special_tokens,
        return_special_tokens_mask=True,
        verbose=False,
    )
    ids, added = list(whole["input_ids"]), whole["special_tokens_mask"]
    while len(ids) > len(prompt) and added[len(ids) - 1]:  # an end token that the tokenizer writes by itself
        ids.pop()
    if ids[: len(prompt)] == prompt:
        return prompt, ids[len(prompt) :]
    # The tokens of the prompt depend on what follows here, which they did not when the answer was sampled.
    return prompt, list(lm.tokenizer(answer.response, add_special_tokens=False, verbose=False)["input_ids"])


def _read(
    lm: LanguageModel, block_ids: Sequence[int], rows: Sequence[_Row], temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """As `_gradients`; a batch that does not fit into memory is read in halves."""
    try:
        return _gradients(lm, block_ids, rows, temperature)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(rows) == 1:
            raise SkillbasisError(
                f"the answer {rows[0].id!r} of {len(rows[0].ids)} tokens does not fit into memory by itself; take "
                "later blocks, --dtype bfloat16 or a larger device"
            ) from error
    # Outside the handler, whose traceback holds the tensors of the failed batch.
    half = len(rows) // 2
    parts = [_read(lm, block_ids, part, temperature) for part in (rows[:half], rows[half:])]
    gradients, states = (np.concatenate(tables) for tables in zip(*parts, strict=True))
    return gradients, states


def _gradients(
    lm: LanguageModel, block_ids: Sequence[int], rows: Sequence[_Row], temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of each answer's log-probability, and the states at the place.

    Returns: both (rows, blocks, hidden), float64 and float32.
    """
    import torch

    with torch.inference_mode(False), torch.enable_grad(), _frozen(lm.model):
        longest = max(len(row.ids) for row in rows)
        input_ids = torch.zeros((len(rows), longest), dtype=torch.long)
        attention = torch.zeros_like(input_ids)
        for i, row in enumerate(rows):
            input_ids[i, : len(row.ids)] = torch.tensor(row.ids)
            attention[i, : len(row.ids)] = 1
        input_ids, attention = input_ids.to(lm.device), attention.to(lm.device)
        place = torch.tensor([row.n_prompt - 1 for row in rows], device=lm.device)
        with _moved(lm, block_ids, place) as (shifts, states):
            first = int(place.min())  # logits of what no row answers are not needed
            logits = lm.model(
                input_ids=input_ids, use_cache=False, logits_to_keep=longest - first, **lm.right_padding(attention)
            ).logits  # (rows, longest - first, vocabulary)
            # Rows do not see each other, so the gradient of the sum is the gradient of each.
            gradients = torch.autograd.grad(_log_probability(lm, logits, input_ids, rows, first, temperature), shifts)
        result = torch.stack(gradients, dim=1).double().cpu().numpy()
        seen = torch.stack(states, dim=1).cpu().numpy()
    broken = ~np.isfinite(result).all(axis=(1, 2))
    if broken.any():
        raise SkillbasisError(
            f"the model gives NaN or infinity for the answer {rows[int(broken.argmax())].id!r}; try --dtype float32"
        )
    return result, seen


def _log_probability(
    lm: LanguageModel,
    logits: torch.Tensor,
    input_ids: torch.Tensor,
    rows: Sequence[_Row],
    first: int,
    temperature: float,
) -> torch.Tensor:
    """The sum of the answers' log-probabilities; an end is any of the end tokens.

    Args:
        logits: (rows, tokens from `first` on, vocabulary).
        input_ids: (rows, tokens).
    """
    import torch

    kept = torch.zeros(logits.shape[:2], dtype=torch.bool)
    ending = torch.zeros_like(kept)
    for i, row in enumerate(rows):
        start, stop = row.n_prompt - 1 - first, len(row.ids) - 1 - first + row.ends
        kept[i, start:stop] = True
        ending[i, stop - 1] = row.ends
    # Behind the last token stands at most an end, for which any id will do.
    following = torch.cat([input_ids[:, first + 1 :], input_ids[:, -1:]], dim=1)
    kept, ending = kept.to(logits.device), ending.to(logits.device)
    scores = logits[kept].float() / temperature  # (answer tokens, vocabulary)
    ends = torch.tensor(end_token_ids(lm), device=logits.device)
    picked = scores.gather(1, following[kept][:, None]).squeeze(1)
    picked = torch.where(ending[kept], scores[:, ends].logsumexp(dim=1), picked)
    return (picked - scores.logsumexp(dim=1)).sum()


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Keeps the parameters out of the graph: nothing is stored for what runs before the first block moved."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def _moved(
    lm: LanguageModel, block_ids: Sequence[int], place: torch.Tensor
) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Adds zeros that can be differentiated to the outputs of blocks, at one place of each row.

    Yields: those zeros by block, and the states there, which a forward pass fills in; each (rows, hidden) float32.
    """
    import torch

    shifts = [torch.zeros((len(place), lm.hidden_size), device=place.device, requires_grad=True) for _ in block_ids]
    states: list[torch.Tensor] = []
    rows = torch.arange(len(place), device=place.device)

    def hook(shift: torch.Tensor) -> Any:
        def add(_module: Any, _args: Any, output: Any) -> Any:
            hidden = block_output(output)
            states.append(hidden[rows, place].detach().float())
            moved = hidden.index_put((rows, place), shift.to(hidden.dtype), accumulate=True)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return add

    handles = [
        lm.blocks[block].register_forward_hook(hook(shift)) for block, shift in zip(block_ids, shifts, strict=True)
    ]
    try:
        yield shifts, states
    finally:
        for handle in handles:
            handle.remove()
