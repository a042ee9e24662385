"""How likely the model finds each response of a corpus: negative log-likelihood per token, given the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..activations.pooling import pad_batch, token_batches, tokenize_rows
from ..artifact import atomic_path
from ..corpus import Corpus
from ..errors import ArtifactError, SkillbasisError, UsageError
from ..lm import LanguageModel

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

    def aligned(self, ids: Sequence[str]) -> Likelihood:
        """The same table in the order of `ids`. Raises: ArtifactError: a row is missing."""
        position = {row_id: i for i, row_id in enumerate(self.ids)}
        missing = [row_id for row_id in ids if row_id not in position]
        if missing:
            raise ArtifactError(
                f"{len(missing)} of {len(ids)} rows have no likelihood, the first is {missing[0]!r}; measure it on the "
                "corpus that you select from"
            )
        order = [position[row_id] for row_id in ids]
        return Likelihood(list(ids), self.mean_nll[order], self.max_nll[order], self.n_tokens[order])

    def save(self, path: str | Path) -> None:
        """Writes Parquet with columns id, mean_nll, max_nll, tokens."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"id": self.ids, "mean_nll": self.mean_nll, "max_nll": self.max_nll, "tokens": self.n_tokens}
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
        return cls(table["id"].to_pylist(), *(table[name].to_numpy() for name in ("mean_nll", "max_nll", "tokens")))


def measure_likelihood(
    corpus: Corpus,
    lm: LanguageModel,
    *,
    max_length: int = 8000,
    batch_tokens: int = 8192,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> Likelihood:
    """Measures the likelihood of every response of a corpus under a model.

    A row of which no response token is left within max_length has NaN and 0 tokens; selections rank it last.

    Raises: SkillbasisError: no row has a response within max_length, or the model gives no finite number for one.
    Cost: one forward pass; logits only of batch_tokens tokens at a time.
    """
    import torch

    max_length = min(max_length, lm.context_length)
    mean_nll, max_nll = np.full(len(corpus), np.nan), np.full(len(corpus), np.nan)
    n_tokens = np.zeros(len(corpus), dtype=np.int64)
    n_done, n_read = 0, 0
    for start in range(0, len(corpus), _CHUNK_ROWS):
        columns = corpus.rows[start : start + _CHUNK_ROWS]
        rows = [
            {"id": i, "prompt": p, "response": r}
            for i, p, r in zip(columns["id"], columns["prompt"], columns["response"], strict=True)
        ]
        tokenized = tokenize_rows(rows, lm, "response", max_length)
        answered = [i for i, row in enumerate(tokenized) if row.pooled[1:].any()]  # nothing predicts the first token
        n_done += len(tokenized) - len(answered)
        lengths = [tokenized[i].n_tokens for i in answered]
        for places in token_batches(lengths, batch_tokens, lm.length_switch):
            indices = [answered[place] for place in places]
            batch = [tokenized[i] for i in indices]
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
            where = [start + i for i in indices]
            mean_nll[where], max_nll[where] = mean.double().cpu(), largest.double().cpu()
            n_tokens[where] = counts.cpu()
            n_done, n_read = n_done + len(batch), n_read + sum(row.n_tokens for row in batch)
            if on_progress:
                on_progress(n_done, len(corpus), n_read)
    if not n_tokens.any():
        raise SkillbasisError(f"no row has a response within {max_length} tokens; raise --max-length")
    return Likelihood(corpus.ids, mean_nll, max_nll, n_tokens)
