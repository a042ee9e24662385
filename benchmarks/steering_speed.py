"""What steering by hooks costs in time: transformers' own `generate` with and without it, and under two other packages.

    python -m pip install --no-deps --target build/peers steering-vectors repeng gguf     # peers; left out if absent
    python benchmarks/steering_speed.py --out docs/results/steering-speed.json     # ten minutes on an idle machine
    python benchmarks/steering_speed.py --quick                                    # a minute; checks that it runs

Greedy answers of a fixed length to prompts of random tokens, all of one length. All ways run in one process, on models
of their own with the same weights, and take turns in every round, first forwards, then backwards; a way's ratio is to
the unsteered run of its round, so that a change of the machine's speed meets both. Setting a vector up and taking it
away again counts. The vectors are random, 0.3 of the mean norm of the residual stream of each steered block, which are
all but the first and the last. Before anything is timed, ways that do the same must give the same tokens.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from extraction import PEERS, causal_lm, make_llama, versions
from extraction import Size as TextSize

STRENGTH = 0.3  # of the residual norm: enough to change the tokens
UNSTEERED = "unsteered"
OURS = "skillbasis, all tokens"
SAME = (OURS, "steering-vectors, all tokens", "repeng, all tokens")
COMPUTES = {
    UNSTEERED: "transformers' generate on a model loaded by transformers",
    "unsteered, loaded by skillbasis": "the same on the model that skillbasis has loaded and inspected",
    OURS: "steer(scope='all')",
    "skillbasis, last prompt token": "steer(scope='last-prompt'), for which the others have no setting in generation",
    "skillbasis, all tokens, relative": "steer(scope='all') by fractions of the norm of each token's own stream",
    SAME[1]: "SteeringVector.apply, decoder_block",
    SAME[2]: "ControlModel.set_control, reset after it",
}


@dataclass(frozen=True)
class Size:
    """How much is generated."""

    prompt_tokens: int = 64
    new_tokens: int = 32
    rounds: tuple[tuple[int, int], ...] = ((1, 20), (8, 16), (64, 8))
    """Of each batch size."""


QUICK = Size(prompt_tokens=16, new_tokens=8, rounds=((1, 3), (8, 3)))
Way = Callable[[Any], Any]
"""Answers prompts, (rows, prompt tokens) ids. Returns: (rows, new tokens) ids."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON of the result")
    parser.add_argument("--quick", action="store_true", help="a few tokens, few rounds")
    parser.add_argument("--workloads", nargs="+", default=["llama44m", "embedded"], choices=["llama44m", "embedded"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", type=Path, default=PEERS, help="where steering-vectors and repeng were installed to")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}

    import torch

    from skillbasis.artifact import write_json
    from skillbasis.engine import machine

    torch.set_num_threads(options.threads)
    size = QUICK if options.quick else Size()
    with_peers = options.peers.is_dir()
    record: dict[str, Any] = {
        "what": "seconds of transformers' generate, steered and not, in turns in one process; ratios are medians over "
        "rounds of a way's seconds to those of the unsteered run of the same round; those of processor time (all "
        "threads) say the same with less noise where others use the machine",
        "command": "python benchmarks/steering_speed.py" + (" --quick" if options.quick else ""),
        "machine": machine(),
        "versions": versions(options.peers if with_peers else None),
        "threads": options.threads,
        "load_average_before": os.getloadavg()[0],
        "size": asdict(size),
        "computes": {name: what for name, what in COMPUTES.items() if with_peers or name not in SAME[1:]},
        "workloads": {},
    }
    for name in options.workloads:
        with tempfile.TemporaryDirectory() as folder:
            model = "embedded"
            if name == "llama44m":
                make_llama(TextSize(llama_rows=4, longest=40), Path(folder))  # its rows are not read
                model = str(Path(folder) / "model")
            record["workloads"][name] = workload(name, model, size, options.peers if with_peers else None)
    if options.out is not None:
        write_json(options.out, record)


def workload(name: str, model: str, size: Size, peers: Path | None) -> dict[str, Any]:
    """All batch sizes of one model."""
    from skillbasis.lm import load_model

    lm = load_model(model)
    rng = np.random.default_rng(0)
    n_rows = max(batch for batch, _ in size.rounds)
    prompts = rng.integers(10, len(lm.tokenizer), (n_rows, size.prompt_tokens))
    blocks = list(range(1, len(lm.blocks) - 1))
    vectors = slices(lm, prompts, blocks)
    ways = make_ways(lm, model, blocks, vectors, size.new_tokens, peers)
    batches = {}
    for batch, rounds in size.rounds:
        print(f"\n{name}, batch {batch}", flush=True)
        batches[str(batch)] = measure(ways, prompts[:batch], rounds, size.new_tokens)
    return {
        "parameters": sum(weight.numel() for weight in lm.model.parameters()),
        "blocks": len(lm.blocks),
        "steered_blocks": blocks,
        "hidden_size": lm.hidden_size,
        "batches": batches,
    }


def slices(lm: Any, prompts: np.ndarray, blocks: list[int]) -> np.ndarray:
    """(blocks, hidden) random vectors, each a fraction of the norm of the stream at its block."""
    from skillbasis.steer.norms import residual_norms

    texts = lm.tokenizer.batch_decode(prompts[:4].tolist())
    norms = residual_norms(lm, [([{"role": "user", "content": text}], "") for text in texts], blocks)
    values = np.random.default_rng(1).standard_normal((len(blocks), lm.hidden_size))
    values *= STRENGTH * np.array([norms[block] for block in blocks])[:, None] / np.linalg.norm(values, axis=1)[:, None]
    return values.astype(np.float32)


# --- the ways ---


def make_ways(
    lm: Any, model: str, blocks: list[int], values: np.ndarray, new_tokens: int, peers: Path | None
) -> dict[str, Way]:
    from dataclasses import replace

    from skillbasis.steer import SteeringVector, steer

    raw = SteeringVector("random", tuple(blocks), values, "raw", lm.identity)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    relative = replace(raw, values=unit, unit="relative")

    def answer(model: Any, ids: Any) -> Any:
        options = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        mask = ids.new_ones(ids.shape)
        return model.generate(input_ids=ids, attention_mask=mask, **options)[:, ids.shape[1] :]

    def ours(vector: SteeringVector, alpha: float, scope: str) -> Way:
        def run(ids: Any) -> Any:
            with steer(lm, vector, alpha, scope=scope):
                return answer(lm.model, ids)

        return run

    plain = causal_lm(model)[0]
    ways: dict[str, Way] = {
        UNSTEERED: lambda ids: answer(plain, ids),
        "unsteered, loaded by skillbasis": lambda ids: answer(lm.model, ids),
        OURS: ours(raw, 1.0, "all"),
        "skillbasis, last prompt token": ours(raw, 1.0, "last-prompt"),
        "skillbasis, all tokens, relative": ours(relative, STRENGTH, "all"),
    }
    if peers is not None:
        sys.path.insert(0, str(peers))
        by_block = dict(zip(blocks, values, strict=True))
        ways[SAME[1]] = steering_vectors(causal_lm(model)[0], by_block, answer)
        ways[SAME[2]] = repeng(causal_lm(model)[0], by_block, answer)
    return ways


def steering_vectors(model: Any, values: dict[int, np.ndarray], answer: Callable[[Any, Any], Any]) -> Way:
    import torch
    from steering_vectors import SteeringVector

    vector = SteeringVector({block: torch.from_numpy(value) for block, value in values.items()}, "decoder_block")

    def run(ids: Any) -> Any:
        with vector.apply(model):
            return answer(model, ids)

    return run


def repeng(model: Any, values: dict[int, np.ndarray], answer: Callable[[Any, Any], Any]) -> Way:
    if not hasattr(np, "float_"):
        np.float_ = np.float64  # type: ignore[attr-defined]
    from repeng import ControlModel, ControlVector

    controlled = ControlModel(model, list(values))
    vector = ControlVector(model.config.model_type, values)

    def run(ids: Any) -> Any:
        controlled.set_control(vector, 1.0)
        try:
            return answer(controlled, ids)
        finally:
            controlled.reset()

    return run


# --- in turns, and what comes of it ---


def measure(ways: dict[str, Way], prompts: np.ndarray, rounds: int, new_tokens: int) -> dict[str, Any]:
    """Checks the tokens of every way, which also warms it up, then times them in turns."""
    import torch

    ids = torch.from_numpy(prompts)
    tokens = {}
    refused = {}
    for name, run in ways.items():
        try:
            tokens[name] = run(ids)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            if name not in SAME[1:]:
                raise
            refused[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    check(tokens, new_tokens)
    seconds: dict[str, list[float]] = {name: [] for name in tokens}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in tokens}
    for i in range(rounds):
        for name in list(tokens) if i % 2 == 0 else reversed(list(tokens)):
            gc.collect()
            started, cpu_started = time.perf_counter(), time.process_time()
            ways[name](ids)
            seconds[name].append(time.perf_counter() - started)
            cpu_seconds[name].append(time.process_time() - cpu_started)
    results = {}
    for name, runs in seconds.items():
        results[name] = {
            "seconds": round(statistics.median(runs), 4),
            "tokens_per_second": round(len(prompts) * new_tokens / statistics.median(runs), 1),
            "over_unsteered": ratio(runs, seconds[UNSTEERED]),
            "cpu_over_unsteered": ratio(cpu_seconds[name], cpu_seconds[UNSTEERED]),
            "ours_over_this": ratio(seconds[OURS], runs),
            "runs": [round(run, 4) for run in runs],
        }
        over, cpu = results[name]["over_unsteered"], results[name]["cpu_over_unsteered"]
        print(
            f"{name:36}{results[name]['seconds']:>9.3f} s{results[name]['tokens_per_second']:>10,.0f} tokens/s"
            f"{over['ratio']:>8.3f} [{over['low']:.3f}, {over['high']:.3f}] of unsteered"
            f"{cpu['ratio']:>8.3f} [{cpu['low']:.3f}, {cpu['high']:.3f}] in processor time",
            flush=True,
        )
    for name, reason in refused.items():
        print(f"{name:36} cannot answer: {reason}", flush=True)
    same = [name for name in SAME if name in tokens]
    return {"rounds": rounds, "results": results, "same_tokens": same, "cannot_answer": refused}


def check(tokens: dict[str, Any], new_tokens: int) -> None:
    """Holds the tokens of ways that do the same against each other."""
    import torch

    for name, found in tokens.items():
        if found.shape[1] != new_tokens:
            raise SystemExit(f"{name} gave {found.shape[1]} tokens, not {new_tokens}; the rates mean nothing")
        same = OURS if name in SAME else UNSTEERED if name.startswith(UNSTEERED) else None
        if same is not None and not torch.equal(found, tokens[same]):
            raise SystemExit(f"{name} gives other tokens than {same}; they do not do the same, so do not compare them")
        if not name.startswith(UNSTEERED) and torch.equal(found, tokens[UNSTEERED]):
            raise SystemExit(f"{name} gives the tokens of the unsteered model; nothing shows that it steers")


def ratio(runs: list[float], others: list[float]) -> dict[str, float]:
    """Median of the ratios of runs of the same round, with its 95 % interval from 10,000 resamples of the rounds."""
    ratios = np.array(runs) / np.array(others)
    picks = np.random.default_rng(0).integers(0, len(ratios), (10_000, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    return {"ratio": round(float(np.median(ratios)), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


if __name__ == "__main__":
    main()
