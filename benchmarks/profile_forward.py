"""Where the time of a bare forward pass goes: the share of each operator, and how near products are to their limit.

python benchmarks/profile_forward.py --out docs/results/forward-profile.json     # half a minute
"""

from __future__ import annotations

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaModel

from skillbasis.artifact import write_json
from skillbasis.engine import machine

SHAPES = ((1, 1024), (8, 128))  # rows x tokens: one batch of extraction's default size on a processor
HIDDEN, INTERMEDIATE, BLOCKS = 512, 1472, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON of the result")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=BLOCKS,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    model = LlamaModel(config).eval()
    record = {
        "what": "a bare forward pass of the decoder: seconds, share of each operator, and products by themselves",
        "command": "python benchmarks/profile_forward.py",
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "threads": options.threads,
        "product_gflops": round(product_gflops(), 1),
        "passes": [measure(model, *shape) for shape in SHAPES],
    }
    for entry in record["passes"]:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in list(entry["shares"].items())[:6])
        print(f"{entry['rows']} x {entry['tokens']}: {entry['gflops_of_products']} GFLOP/s in products; {shares}")
    print(f"a product by itself: {record['product_gflops']} GFLOP/s")
    if options.out is not None:
        write_json(options.out, record)


def measure(model: LlamaModel, rows: int, tokens: int) -> dict[str, object]:
    """Runs and profiles one pass."""
    ids = torch.randint(3, 8000, (rows, tokens))
    with torch.inference_mode():
        seconds = best(lambda: model(input_ids=ids, use_cache=False))
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            model(input_ids=ids, use_cache=False)
    times = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}  # microseconds
    total = sum(times.values())
    products = 2 * rows * tokens * BLOCKS * (4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE)
    shares = sorted(((name, value / total) for name, value in times.items()), key=lambda item: -item[1])
    return {
        "rows": rows,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "gflops_of_products": round(products / (times["aten::mm"] * 1e3), 1),
        "shares": {name: round(share, 4) for name, share in shares if share > 0.005},
    }


def product_gflops() -> float:
    """Of the largest product of a block, alone."""
    a, b = torch.randn(1024, HIDDEN), torch.randn(INTERMEDIATE, HIDDEN)
    return 20 * 2 * 1024 * HIDDEN * INTERMEDIATE / 1e9 / best(lambda: [a @ b.T for _ in range(20)])


def best(work: object, n: int = 5) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(n):
        started = time.perf_counter()
        work()  # type: ignore[operator]
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
