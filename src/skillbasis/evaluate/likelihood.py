"""How likely the model finds each response of a corpus, per token: given its prompt, and without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..activations.pooling import TokenizedRow, pad_batch, token_batches, tokenize_rows
from ..artifact import atomic_path
from ..corpus import Corpus
from ..corpus_formats import Message
from ..errors import ArtifactError, CorpusError, SkillbasisError, UsageError
from ..lm import LanguageModel

if TYPE_CHECKING:
    import torch

_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Likelihood:
    """Likelihood of responses, by row id."""

    ids: list[str]
    mean_nll: np.ndarray
    """(n,) float64, mean over response tokens, in nats; NaN where no response was read."""
    max_nll: np.ndarray
    """(n,) float64, of the least likely response token."""
    n_tokens: np.ndarray
    """(n,) int64 response tokens."""
    alone_nll: np.ndarray | None = None
    """(n,) float64, mean over the same tokens read without the prompt, in nats; NaN where nothing was read. None where
    it was not measured."""

    def aligned(self, ids: Sequence[str]) -> Likelihood:
        """The same table in the order of `ids`. Raises: ArtifactError: a row is missing."""
        if self.ids == list(ids):
            return self
        position = {row_id: i for i, row_id in enumerate(self.ids)}
        missing = [row_id for row_id in ids if row_id not in position]
        if missing:
            raise ArtifactError(
                f"{len(missing)} of {len(ids)} rows have no likelihood, the first is {missing[0]!r}; measure it on the "
                "corpus that you select from"
            )
        order = [position[row_id] for row_id in ids]
        alone = None if self.alone_nll is None else self.alone_nll[order]
        return Likelihood(list(ids), self.mean_nll[order], self.max_nll[order], self.n_tokens[order], alone)

    def save(self, path: str | Path) -> None:
        """Writes Parquet with columns id, mean_nll, max_nll, tokens, and alone_nll where it was measured."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"id": self.ids, "mean_nll": self.mean_nll, "max_nll": self.max_nll, "tokens": self.n_tokens}
        if self.alone_nll is not None:
            columns["alone_nll"] = self.alone_nll
        with atomic_path(Path(path)) as temporary:
            pq.write_table(pa.table(columns), temporary)

    @classmethod
    def load(cls, path: str | Path) -> Likelihood:
        """Reads a table. Raises: UsageError: no such file, or a column is missing. ArtifactError: it is damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not Path(path).is_file():
            raise UsageError(f"there is no table of likelihoods at {path}; make it with skillbasis likelihood")
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise ArtifactError(
                f"{path} is no readable Parquet file ({error}); measure the likelihood again"
            ) from error
        missing = {"id", "mean_nll", "max_nll", "tokens"} - set(table.column_names)
        if missing:
            raise UsageError(f"{path} is no table of likelihoods: column {min(missing)} is missing")
        mean_nll, max_nll, n_tokens = (table[name].to_numpy() for name in ("mean_nll", "max_nll", "tokens"))
        alone_nll = table["alone_nll"].to_numpy() if "alone_nll" in table.column_names else None
        return cls(table["id"].to_pylist(), mean_nll, max_nll, n_tokens, alone_nll)


def measure_likelihood(
    corpus: Corpus,
    lm: LanguageModel,
    *,
    max_length: int = 8000,
    batch_tokens: int = 8192,
    alone: bool = False,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> Likelihood:
    """Measures the likelihood of every response of a corpus under a model.

    A row of which no response token is left within max_length has NaN and 0 tokens; selections rank it last.

    Args:
        alone: also reads each response without its prompt: the same tokens behind BOS, where rows begin with it, and
            behind the words with which a chat template opens an answer. Where there is neither, nothing predicts the
            first token and the mean is over the others.
        on_progress: called with rows done, rows in all, and tokens read so far.
    Raises: SkillbasisError: no row has a response within max_length, or the model gives no finite number for one.
    Cost: one forward pass, and with `alone` another over the responses; logits only of batch_tokens tokens at a time.
    Source: Li et al., arXiv 2308.12032, read the answer alone behind its heading `### Response:`; here the heading is
        the model's own.
    """
    max_length = min(max_length, lm.context_length)
    mean_nll, max_nll, alone_nll = (np.full(len(corpus), np.nan) for _ in range(3))
    n_tokens = np.zeros(len(corpus), dtype=np.int64)
    n_steps, n_read = 0, 0  # a step is one reading of one row
    opening = _opening(corpus.rows[0]["prompt"], lm) if alone else []
    for start in range(0, len(corpus), _CHUNK_ROWS):
        columns = corpus.rows[start : start + _CHUNK_ROWS]
        rows = [
            {"id": i, "prompt": p, "response": r}
            for i, p, r in zip(columns["id"], columns["prompt"], columns["response"], strict=True)
        ]
        readings = [tokenize_rows(rows, lm, "response", max_length)]
        if alone:
            readings.append([_without_prompt(row, opening, lm) for row in readings[0]])
        for nll, tokenized in zip((mean_nll, alone_nll), readings, strict=False):
            # Nothing predicts the first token.
            answered = [i for i, row in enumerate(tokenized) if row.pooled[1:].any()]
            n_steps += len(tokenized) - len(answered)
            lengths = [tokenized[i].n_tokens for i in answered]
            for places in token_batches(lengths, batch_tokens, lm.length_switch):
                indices = [answered[place] for place in places]
                batch = [tokenized[i] for i in indices]
                mean, largest, counts = _nll_of_batch(batch, lm)
                where = [start + i for i in indices]
                nll[where] = mean
                if nll is mean_nll:
                    max_nll[where], n_tokens[where] = largest, counts
                n_steps, n_read = n_steps + len(batch), n_read + sum(row.n_tokens for row in batch)
                if on_progress:
                    on_progress(n_steps // len(readings), len(corpus), n_read)
    if not n_tokens.any():
        raise SkillbasisError(f"no row has a response within {max_length} tokens; raise --max-length")
    return Likelihood(corpus.ids, mean_nll, max_nll, n_tokens, alone_nll if alone else None)


def _opening(prompt: list[Message], lm: LanguageModel) -> list[int]:
    """Tokens with which the chat template opens an answer, such as `<|im_start|>assistant`; none without a template."""
    import jinja2

    if not lm.tokenizer.chat_template:
        return []
    try:
        asked, opened = (
            str(lm.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=opening))
            for opening in (False, True)
        )
    except jinja2.TemplateError as error:
        raise CorpusError(
            f"the chat template does not show how it opens an answer ({error}); measure the likelihood given the "
            "prompt only, or use a tokenizer without a chat template"
        ) from error
    text = opened[len(asked) :] if opened.startswith(asked) else ""
    ids: list[int] = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _without_prompt(row: TokenizedRow, opening: list[int], lm: LanguageModel) -> TokenizedRow:
    """A row of BOS, where it begins with one, the opening of an answer, and the response tokens as they were."""
    bos = row.input_ids[:1][row.input_ids[:1] == lm.tokenizer.bos_token_id]
    response = row.input_ids[row.pooled]
    input_ids = np.concatenate([bos, np.array(opening, dtype=np.int64), response])
    return TokenizedRow(row.id, input_ids, np.arange(len(input_ids)) >= len(input_ids) - len(response), row.truncated)


def _nll_of_batch(batch: list[TokenizedRow], lm: LanguageModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and largest NLL of the pooled tokens of each row, and their number; a row's first token does not count.

    Returns: three tensors (rows,) on the CPU, float64, float64 and int64.
    Raises: SkillbasisError: the model gives NaN or infinity for a row.
    """
    import torch

    input_ids, attention, response = (torch.from_numpy(array).to(lm.device) for array in pad_batch(batch, 0))
    padding = lm.right_padding(attention)
    predicted = response[:, 1:]  # (rows, tokens - 1): the token at t is predicted at t - 1
    first = int(predicted.any(dim=0).nonzero()[0])  # logits of what no row answers are not needed
    with torch.inference_mode():
        logits = lm.model(
            input_ids=input_ids, use_cache=False, logits_to_keep=input_ids.shape[1] - first, **padding
        ).logits[:, :-1]
        kept = predicted[:, first:]
        nll = torch.zeros(kept.shape, device=lm.device)
        nll[kept] = torch.nn.functional.cross_entropy(
            logits[kept].float(), input_ids[:, 1 + first :][kept], reduction="none"
        )
        counts = kept.sum(dim=1)
        mean, largest = nll.sum(dim=1) / counts, nll.amax(dim=1)
    broken = (~mean.isfinite()).tolist()
    if any(broken):
        raise SkillbasisError(
            f"the model gives NaN or infinity for row {batch[broken.index(True)].id!r}; try --dtype float32, "
            "or drop the row"
        )
    return mean.double().cpu(), largest.double().cpu(), counts.cpu()
