"""What it takes to bake a steering vector into a checkpoint of a billion parameters, and what the result costs to run.

    python benchmarks/bake.py --out docs/results/bake.json     # some minutes, 8 GB of memory, 6 GB of disk
    python benchmarks/bake.py --quick                          # half a minute; checks that it runs

The checkpoint is a random Llama in bfloat16 in the shape of Llama-3.2-1B. Two runs, each a process of its own: `write`
streams the checkpoint alone; `bake` does all of it, with both models run to compare them. Memory is the peak of what is
resident, mapped files included, less what it was after the imports. Then a small Llama and what was baked of it
generate the same number of tokens in turns, in one process, each first as often as second; the ratio is over pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ALPHA = 0.5


@dataclass(frozen=True)
class Size:
    """The model that is baked, and how much is generated."""

    hidden_size: int = 2048
    n_blocks: int = 16
    intermediate_size: int = 8192
    n_heads: int = 32
    vocabulary: int = 128_256
    small_hidden_size: int = 512
    """Of the model that generates; it has 8 blocks."""
    batch_size: int = 16
    new_tokens: int = 64
    pairs: int = 30
    threads: int = 2


QUICK = Size(
    hidden_size=256,
    n_blocks=4,
    intermediate_size=1024,
    n_heads=8,
    vocabulary=2048,
    small_hidden_size=128,
    new_tokens=8,
    pairs=4,
    threads=1,
)
WHATS = ("make", "write", "bake", "generate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON of the result")
    parser.add_argument("--quick", action="store_true", help="a small model, a few turns")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are put; they are removed at the end")
    parser.add_argument("--run", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = QUICK if options.quick else Size()
    if options.run is not None:  # how this script calls itself
        what, folder = options.run
        (Path(folder) / f"{what}.json").write_text(json.dumps(RUNS[what](size, Path(folder))))
        return

    from skillbasis.artifact import write_json
    from skillbasis.engine import machine

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        runs = {what: in_process(what, Path(folder), size, options.quick) for what in WHATS}
    record = {
        "what": "baking a steering vector into a checkpoint; memory over the imports, in GB (10^9 bytes)",
        "command": "python benchmarks/bake.py" + (" --quick" if options.quick else ""),
        "machine": machine(),
        "versions": versions(),
        "load_average_before": load,
        "size": asdict(size),
        **runs,
    }
    if options.out is not None:
        write_json(options.out, record)
    print_table(record)


def in_process(what: str, folder: Path, size: Size, quick: bool) -> dict[str, Any]:
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(size.threads)) | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--run", what, str(folder), *(["--quick"] if quick else [])]
    subprocess.run(command, env=environment, check=True)
    return dict(json.loads((folder / f"{what}.json").read_text()))


def make(size: Size, folder: Path) -> dict[str, Any]:
    """Saves the random Llama in bfloat16 and a vector for it at its inner blocks."""
    shape: dict[str, Any] = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_hidden_layers": size.n_blocks,
        "num_attention_heads": size.n_heads,
        "num_key_value_heads": size.n_heads // 4,
    }
    save_llama(folder / "model", shape, folder / "vector.safetensors", "bfloat16")
    n_bytes = sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors"))
    return {"parameters": n_bytes // 2, "checkpoint_gb": gb(n_bytes)}


def write(_size: Size, folder: Path) -> dict[str, Any]:
    """Streams the checkpoint, without looking whether it is the steered model."""
    import torch

    from skillbasis.steer.bake import write_checkpoint
    from skillbasis.steer.checkpoint import Checkpoint
    from skillbasis.steer.vectors import SteeringVector
    from skillbasis.steer.ways import choose_way

    vector = SteeringVector.load(folder / "vector.safetensors")
    (folder / "written").mkdir()
    torch.zeros(1)

    def act() -> None:
        source = Checkpoint.open(folder / "model")
        write_checkpoint(source, choose_way(source), vector, ALPHA, folder / "written")

    return measured(act)


def bake(_size: Size, folder: Path) -> dict[str, Any]:
    """The whole command: the original's logits, the checkpoint, its logits."""
    from transformers import AutoModelForCausalLM  # noqa: F401  imported before memory is first looked at

    from skillbasis.steer.bake import bake as run_bake
    from skillbasis.steer.vectors import SteeringVector

    vector = SteeringVector.load(folder / "vector.safetensors")
    steps: list[tuple[str, float]] = []
    records: list[dict[str, Any]] = []

    def note(step: str) -> None:
        steps.append((step, time.perf_counter()))

    def act() -> None:
        records.append(run_bake(folder / "model", vector, ALPHA, folder / "baked", on_step=note))

    result = measured(act)
    ends = [moment for _, moment in steps[1:]] + [time.perf_counter()]
    seconds = {step: round(end - start, 2) for (step, start), end in zip(steps, ends, strict=True)}
    kept = ("dtype", "max_difference", "max_logit", "rms_movement", "share", "argmax_agreement", "passed")
    return result | {"steps": seconds, "verification": {key: records[0]["verification"][key] for key in kept}}


def generate(size: Size, folder: Path) -> dict[str, Any]:
    """Generates with a small Llama and with what was baked of it, in turns."""
    import numpy as np
    import torch

    from skillbasis.lm import load_model
    from skillbasis.statistics import mean_estimate
    from skillbasis.steer.bake import bake as run_bake
    from skillbasis.steer.vectors import SteeringVector

    torch.set_num_threads(size.threads)
    shape: dict[str, Any] = {
        "vocab_size": 2048,
        "hidden_size": size.small_hidden_size,
        "intermediate_size": 4 * size.small_hidden_size,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    }
    save_llama(folder / "small", shape, folder / "small.safetensors", "float32")
    run_bake(folder / "small", SteeringVector.load(folder / "small.safetensors"), ALPHA, folder / "small-baked")
    models = [load_model(folder / name).model for name in ("small", "small-baked")]
    ids = torch.arange(3, 3 + size.batch_size * 32).reshape(size.batch_size, 32)
    options: dict[str, Any] = {"max_new_tokens": size.new_tokens, "min_new_tokens": size.new_tokens, "do_sample": False}

    def seconds(model: Any) -> float:
        started = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return time.perf_counter() - started

    for model in models:
        seconds(model)
    pairs = []
    for turn in range(size.pairs):
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        took = {which: seconds(models[which]) for which in order}
        pairs.append((took[0], took[1]))
    times = np.array(pairs)  # (pairs, unsteered and baked)
    ratio = mean_estimate(np.log(times[:, 0] / times[:, 1]))  # of speeds: baked over unsteered
    n_tokens = size.batch_size * size.new_tokens
    return {
        "parameters": sum(p.numel() for p in models[0].parameters()),
        "tokens_per_second_unsteered": round(n_tokens / float(np.median(times[:, 0])), 1),
        "tokens_per_second_baked": round(n_tokens / float(np.median(times[:, 1])), 1),
        "speed_ratio": {name: float(np.exp(getattr(ratio, name))) for name in ("mean", "low", "high")},
        "pairs": size.pairs,
    }


RUNS: dict[str, Callable[[Size, Path], dict[str, Any]]] = {
    "make": make,
    "write": write,
    "bake": bake,
    "generate": generate,
}


def save_llama(path: Path, shape: dict[str, Any], vector_path: Path, dtype: str) -> None:
    """Saves a random tied Llama with the embedded reasoner's tokenizer, and a random vector at its inner blocks."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from skillbasis.lm import load_model
    from skillbasis.steer.vectors import make_vector
    from skillbasis.world.assets import reasoner_path

    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    config = LlamaConfig(**shape, tie_word_embeddings=True, max_position_embeddings=8192)
    LlamaForCausalLM(config).save_pretrained(path)
    torch.set_default_dtype(torch.float32)
    AutoTokenizer.from_pretrained(reasoner_path()).save_pretrained(path)
    blocks = range(1, shape["num_hidden_layers"] - 1)
    slices = 0.1 * np.random.default_rng(0).standard_normal((len(blocks), shape["hidden_size"]))
    identity = load_model(path, dtype=dtype).identity
    make_vector("random", list(blocks), slices, 1.0, identity, {"kind": "random"}).save(vector_path)


def measured(act: Callable[[], None]) -> dict[str, Any]:
    """Seconds, and the peak of resident memory over what it was before."""
    before, started = peak_rss(), time.perf_counter()
    act()
    return {"seconds": round(time.perf_counter() - started, 2), "peak_gb": gb(peak_rss() - before)}


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gb(n_bytes: int) -> float:
    return round(n_bytes / 1e9, 3)


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version()} | {n: version(n) for n in ("torch", "transformers", "safetensors")}


def print_table(record: dict[str, Any]) -> None:
    made, ratio = record["make"], record["generate"]["speed_ratio"]
    print(f"checkpoint of {made['parameters'] / 1e9:.2f} billion parameters, {made['checkpoint_gb']:.2f} GB")
    for what in ("write", "bake"):
        print(f"{what:6} {record[what]['seconds']:8.2f} s, peak {record[what]['peak_gb']:.3f} GB over the imports")
    for step, seconds in record["bake"]["steps"].items():
        print(f"       {seconds:8.2f} s  {step}")
    print(f"compared: {record['bake']['verification']}")
    speed = f"{ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    print(f"generation, speed of baked / unsteered: {speed} over {record['generate']['pairs']} pairs")


if __name__ == "__main__":
    main()
