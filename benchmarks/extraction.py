"""Extraction of mean-pooled activations of all blocks, held against other ways to read the same rows.

    python -m pip install --no-deps --target build/peers steering-vectors repeng gguf     # peers; left out if absent
    python benchmarks/extraction.py --out docs/results/extraction.json     # a quarter of an hour on an idle machine
    python benchmarks/extraction.py --quick                                # two minutes; checks that it runs

Every way runs in a fresh process, in turns; the first round tries all batch sizes of a way, later ones its best. All
are warmed up on the four shortest rows, so that imports are not counted. Peak memory is resident memory above what the
process held after that (Linux). What each way computes is in the record, for the peers only read one token of a row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
PEERS = Path(__file__).resolve().parents[1] / "build" / "peers"
VOCABULARY = 8000

COMPUTES = {
    "skillbasis": "extract(), default batches: mean over the tokens after BOS of all blocks, written as an artifact",
    "reference scripts": "one row at a time, causal LM with its head, eager attention, attentions and hidden states of "
    "all layers returned and cached keys and values kept; stacked, then the mean over the tokens after BOS",
    "bare forward": "the decoder alone, no hooks and nothing kept, on tokens made before; length-sorted batches",
    "steering-vectors": "extract_activations, all decoder blocks, pairs of rows: the last token of each row",
    "repeng": "batched_get_hiddens, all layers: the last token of each row (np.float_ is given back to it, which NumPy "
    "2 dropped)",
}


@dataclass(frozen=True)
class Size:
    """How much is read."""

    llama_rows: int = 96
    shortest: int = 20
    longest: int = 1500
    """Tokens of a row of `llama44m`, log-uniform in between."""
    embedded_rows: int = 3_000
    repeats: int = 2


QUICK = Size(llama_rows=12, longest=300, embedded_rows=300, repeats=1)


@dataclass(frozen=True)
class Way:
    """One way to read the rows."""

    name: str
    batch: int | None = None
    """Tokens of a batch for the bare forward, rows for the peers."""
    by_length: bool = False
    """Whether the rows are handed over sorted by length, which neither peer does by itself."""

    @property
    def label(self) -> str:
        """What the best of its batch sizes is reported as."""
        return f"{self.name}, rows sorted by length" if self.by_length else self.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON of the result")
    parser.add_argument("--quick", action="store_true", help="a few rows, once")
    parser.add_argument("--workloads", nargs="+", default=["llama44m", "embedded"], choices=["llama44m", "embedded"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", type=Path, default=PEERS, help="where steering-vectors and repeng were installed to")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # how this script calls itself: folder, way, threads, file
    options = parser.parse_args()
    if options.measure is not None:
        folder, way, n_threads, file = json.loads(options.measure)
        Path(file).write_text(json.dumps(measure(Path(folder), Way(**way), n_threads, options.peers)))
        return

    from skillbasis.artifact import write_json
    from skillbasis.engine import machine

    size = QUICK if options.quick else Size()
    with_peers = options.peers.is_dir()
    record: dict[str, Any] = {
        "what": "extraction of all blocks of the same rows in several ways, each in processes of its own",
        "command": "python benchmarks/extraction.py" + (" --quick" if options.quick else ""),
        "machine": machine(),
        "versions": versions(options.peers if with_peers else None),
        "threads": options.threads,
        "size": asdict(size),
        "computes": {
            name: what for name, what in COMPUTES.items() if with_peers or name not in ("steering-vectors", "repeng")
        },
        "workloads": {},
    }
    for name in options.workloads:
        with tempfile.TemporaryDirectory() as folder:
            made = (make_llama if name == "llama44m" else make_embedded)(size, Path(folder))
            runs = in_rounds(Path(folder), ways(name, with_peers), size, options)
            record["workloads"][name] = made | summary(made, runs, Path(folder))
        print_table(name, record["workloads"][name])
    if options.out is not None:
        write_json(options.out, record)


def ways(workload: str, with_peers: bool) -> list[Way]:
    found = [Way("skillbasis"), Way("reference scripts")]
    found += [Way("bare forward", tokens) for tokens in (1024, 2048, 4096)]
    if with_peers:
        # In the order they come, rows of 20 to 1,500 tokens are read best one by one: padding costs more than it saves.
        alone, sorted_rows = (1, (8,)) if workload == "llama44m" else (32, (32, 128))
        for peer in ("steering-vectors", "repeng"):
            found += [Way(peer, alone), *(Way(peer, n, by_length=True) for n in sorted_rows)]
    return found


# --- what is read ---


def make_llama(size: Size, folder: Path) -> dict[str, Any]:
    """A random Llama of 44 million parameters and rows of random words, one token each; writes them into `folder`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = [f"w{i}" for i in range(VOCABULARY - 3)]
    special = ["<pad>", "<s>", "</s>"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *words])}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=2048
    )
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1472,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rng, rows = np.random.default_rng(0), []
    for i in range(size.llama_rows):
        n_words = round(float(np.exp(rng.uniform(np.log(size.shortest), np.log(size.longest))))) - 1  # and BOS
        text = rng.choice(words, size=n_words)
        cut = max(1, n_words // 5)
        rows.append({"id": f"row-{i}", "prompt": " ".join(text[:cut]), "response": " ".join(text[cut:])})
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return describe_rows(folder, str(folder / "model"), str(corpus), None)


def make_embedded(size: Size, folder: Path) -> dict[str, Any]:
    """The built-in reasoner and the first rows of its pool."""
    return describe_rows(folder, "embedded", "embedded", size.embedded_rows)


def describe_rows(folder: Path, model: str, corpus: str, limit: int | None) -> dict[str, Any]:
    """Writes what the processes need, and tells what is read. Texts: prompt, newline, response (no chat template)."""
    import skillbasis

    lm, rows = skillbasis.load_model(model), skillbasis.load_corpus(corpus, limit=limit).rows
    texts = [
        f"{prompt[-1]['content']}\n{response}"
        for prompt, response in zip(rows["prompt"], rows["response"], strict=True)
    ]
    lengths = [len(ids) for ids in lm.tokenizer(texts)["input_ids"]]
    short = sorted(range(len(texts)), key=lambda i: lengths[i])[:4]
    warm_up = folder / "warm-up.jsonl"
    few = [{"id": str(i), "prompt": rows[i]["prompt"][-1]["content"], "response": rows[i]["response"]} for i in short]
    warm_up.write_text("".join(json.dumps(row) + "\n" for row in few))
    what = {
        "model": model,
        "corpora": {"warm-up": [str(warm_up), None], "all": [corpus, limit]},
        "texts": {"warm-up": [texts[i] for i in short], "all": texts},
        "lengths": lengths,
    }
    (folder / "what.json").write_text(json.dumps(what))
    return {
        "parameters": sum(weight.numel() for weight in lm.model.parameters()),
        "blocks": len(lm.blocks),
        "hidden_size": lm.hidden_size,
        "rows": len(texts),
        "tokens": sum(lengths),
        "tokens_per_row": {"least": min(lengths), "median": statistics.median(lengths), "most": max(lengths)},
    }


# --- the ways, each in a process of its own ---


def measure(folder: Path, way: Way, n_threads: int, peers: Path) -> dict[str, Any]:
    """Reads all rows in one way, after a few short ones to warm up. Returns: seconds, and MB above what was held."""
    import torch

    torch.set_num_threads(n_threads)
    what = json.loads((folder / "what.json").read_text())
    if way.name in ("steering-vectors", "repeng"):
        sys.path.insert(0, str(peers))
    load = os.getloadavg()[0]
    makers = {
        "skillbasis": ours,
        "reference scripts": reference,
        "bare forward": bare,
        "steering-vectors": steering_vectors,
        "repeng": repeng,
    }
    if way.by_length:
        for texts in what["texts"].values():
            texts.sort(key=len, reverse=True)
    with tempfile.TemporaryDirectory() as scratch:
        read = makers[way.name](what, way, Path(scratch))
        read("warm-up")
        held = new_peak()
        started = time.perf_counter()
        vectors = read("all")
        seconds = time.perf_counter() - started
        peak = None if held is None else round(peak_rss_mb() - held)
        if isinstance(vectors, Path):  # ours are on the disk by now
            vectors = stored_vectors(vectors, what["lengths"])
        if vectors is not None:
            np.save(folder / f"{way.name}.npy", vectors)
    return {"seconds": seconds, "peak_rss_mb": peak, "load_average_before": load}


Reading = Callable[[str], "np.ndarray | Path | None"]
"""Reads the rows of a set, `warm-up` or `all`. Returns: (rows, blocks, hidden), the artifact that holds them, or None
where they are not the same vectors as ours."""


def ours(what: dict[str, Any], way: Way, scratch: Path) -> Reading:
    import skillbasis

    lm, settings = skillbasis.load_model(what["model"]), skillbasis.ExtractionSettings(layers="all")
    corpora = {name: skillbasis.load_corpus(path, limit=limit) for name, (path, limit) in what["corpora"].items()}

    def read(rows: str) -> Path:
        return Path(skillbasis.extract(corpora[rows], lm, scratch / rows, settings).path)

    return read


def stored_vectors(path: Path, lengths: list[int]) -> np.ndarray:
    """(rows, blocks, hidden) of a finished artifact, by its documented format; the tokens must be those of all ways."""
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    read = pq.read_table(path / "rows.parquet")["tokens"].to_pylist()
    if read != lengths:
        raise SystemExit(f"extract read {sum(read)} tokens, the other ways {sum(lengths)}; the rates mean nothing")
    return np.concatenate([load_file(shard)["activations"] for shard in sorted(path.glob("shard-*.safetensors"))])


def reference(what: dict[str, Any], way: Way, scratch: Path) -> Reading:
    import torch

    model, tokenizer = causal_lm(what["model"], attn_implementation="eager")

    def read(rows: str) -> np.ndarray:
        vectors = []
        for text in what["texts"][rows]:
            inputs = tokenizer(text, return_tensors="pt")
            with torch.no_grad():
                outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
            states = torch.cat(outputs.hidden_states[1:])  # (blocks, tokens, hidden)
            vectors.append(states[:, 1:].mean(dim=1).numpy())
        return np.stack(vectors)

    return read


def bare(what: dict[str, Any], way: Way, scratch: Path) -> Reading:
    import torch

    import skillbasis

    lm = skillbasis.load_model(what["model"])
    assert way.batch is not None
    prepared: dict[str, list[torch.Tensor]] = {}
    for name, texts in what["texts"].items():
        rows, prepared[name] = sorted(lm.tokenizer(texts)["input_ids"], key=len, reverse=True), []
        while rows:
            n_rows = max(1, way.batch // len(rows[0]))
            batch, rows = [torch.tensor(ids) for ids in rows[:n_rows]], rows[n_rows:]
            prepared[name].append(torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=0))

    def read(rows: str) -> None:
        with torch.inference_mode():
            for ids in prepared[rows]:
                lm.decoder(input_ids=ids, use_cache=False)

    return read


def steering_vectors(what: dict[str, Any], way: Way, scratch: Path) -> Reading:
    from steering_vectors import extract_activations

    model, tokenizer = causal_lm(what["model"])
    assert way.batch is not None
    n = way.batch

    def read(rows: str) -> None:
        # It wants pairs, and reads the first texts of n pairs together, then their second ones.
        texts = what["texts"][rows]
        parts = [texts[i : i + 2 * n] for i in range(0, len(texts), 2 * n)]
        pairs = [pair for part in parts for pair in zip(part[: len(part) // 2], part[len(part) // 2 :], strict=True)]
        extract_activations(model, tokenizer, pairs, layer_type="decoder_block", batch_size=n)

    return read


def repeng(what: dict[str, Any], way: Way, scratch: Path) -> Reading:
    if not hasattr(np, "float_"):
        np.float_ = np.float64  # type: ignore[attr-defined]
    from repeng.extract import batched_get_hiddens

    model, tokenizer = causal_lm(what["model"])
    assert way.batch is not None
    layers = list(range(model.config.num_hidden_layers))

    def read(rows: str) -> None:
        batched_get_hiddens(model, tokenizer, what["texts"][rows], layers, way.batch)

    return read


def causal_lm(model: str, **options: Any) -> tuple[Any, Any]:
    """Model and tokenizer as scripts load them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from skillbasis.world.assets import reasoner_path

    path = str(reasoner_path()) if model == "embedded" else model
    loaded = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options).eval()
    return loaded, AutoTokenizer.from_pretrained(path)


# --- in turns, and what comes of it ---


def in_rounds(
    folder: Path, tried: list[Way], size: Size, options: argparse.Namespace
) -> dict[Way, list[dict[str, Any]]]:
    """Every way once; then the best batch size of each again, forwards and backwards in turns."""
    runs: dict[Way, list[dict[str, Any]]] = {way: [] for way in tried}
    for i in range(size.repeats):
        this = tried if i == 0 else list(best(runs).values())
        for way in this if i % 2 == 0 else this[::-1]:
            runs[way].append(in_process(folder, way, options))
            last = runs[way][-1]
            batch = f" ({way.batch})" if way.batch else ""
            print(f"  {way.label}{batch}: {last['seconds']:.2f} s, {last['peak_rss_mb']} MB", flush=True)
    return runs


def best(runs: dict[Way, list[dict[str, Any]]]) -> dict[str, Way]:
    """The fastest batch size of each way in the first round."""
    found: dict[str, Way] = {}
    for way, measured in runs.items():
        if way.label not in found or measured[0]["seconds"] < runs[found[way.label]][0]["seconds"]:
            found[way.label] = way
    return found


def in_process(folder: Path, way: Way, options: argparse.Namespace) -> dict[str, Any]:
    """Measures in a fresh process, which has its number of threads from its first import on."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(options.threads))
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    result = folder / "result.json"
    what = json.dumps([str(folder), asdict(way), options.threads, str(result)])
    command = [
        sys.executable,
        "-W",
        "ignore::FutureWarning",
        __file__,
        "--measure",
        what,
        "--peers",
        str(options.peers),
    ]
    subprocess.run(command, env=environment, check=True)
    return dict(json.loads(result.read_text()))


def summary(made: dict[str, Any], runs: dict[Way, list[dict[str, Any]]], folder: Path) -> dict[str, Any]:
    """Medians of each way at its best batch size, the ratios of ours to them, and how far our vectors are off."""
    results = {}
    for label, way in best(runs).items():
        measured = runs[way]
        seconds = statistics.median(run["seconds"] for run in measured)
        peaks = [run["peak_rss_mb"] for run in measured]
        results[label] = {
            "batch": way.batch,
            "seconds": round(seconds, 3),
            "runs": [round(run["seconds"], 3) for run in measured],
            "tokens_per_second": round(made["tokens"] / seconds, 1),
            "peak_rss_mb": None if None in peaks else round(statistics.median(peaks)),
            "load_average_before": max(run["load_average_before"] for run in measured),
            "first_round_seconds_by_batch": {
                str(other.batch): round(tried[0]["seconds"], 3)
                for other, tried in runs.items()
                if other.label == label and other.batch is not None
            },
        }
    mine, theirs = results["skillbasis"], results["reference scripts"]
    peaks = mine["peak_rss_mb"], theirs["peak_rss_mb"]
    return {
        "results": results,
        "tokens_per_second_of_ours_over": {
            label: round(result["seconds"] / mine["seconds"], 3)
            for label, result in results.items()
            if label != "skillbasis"
        },
        "peak_memory_of_ours_over_reference_scripts": None if None in peaks else round(peaks[0] / max(1, peaks[1]), 3),
        "largest_relative_difference_to_reference_scripts": relative_difference(
            np.load(folder / "skillbasis.npy"), np.load(folder / "reference scripts.npy")
        ),
    }


def relative_difference(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Largest |a - b| / |b| of the vectors of rows and blocks; the last block is left out, for theirs is normed."""
    difference = np.linalg.norm(mine[:, :-1] - theirs[:, :-1], axis=2)
    return float((difference / np.linalg.norm(theirs[:, :-1], axis=2)).max())


def new_peak() -> float | None:
    """Starts the peak of resident memory anew. Returns: what is resident now, in MB; None where it cannot be done."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    clear.write_text("5")  # Linux: the peak becomes what is resident now
    return peak_rss_mb()


def peak_rss_mb() -> float:
    """Largest resident memory of this process since its peak was started, in 10^6 bytes (Linux).

    Not `getrusage`, whose peak begins with that of the process that started this one.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024 / 1e6


def versions(peers: Path | None) -> dict[str, str]:
    from importlib.metadata import distributions, version

    found = {"python": platform.python_version()}
    found |= {name: version(name) for name in ("skillbasis", "torch", "transformers", "tokenizers", "numpy")}
    if peers is not None:
        installed = {d.metadata["Name"].replace("_", "-"): d.version for d in distributions(path=[str(peers)])}
        found |= {name: installed[name] for name in ("steering-vectors", "repeng")}
    return found


def print_table(name: str, workload: dict[str, Any]) -> None:
    print(f"\n{name}: {workload['rows']:,} rows, {workload['tokens']:,} tokens, {workload['parameters']:,} parameters")
    for label, result in workload["results"].items():
        ratio = workload["tokens_per_second_of_ours_over"].get(label)
        against = "" if ratio is None else f"   ours / this {ratio:.2f}"
        batch = "" if result["batch"] is None else f" (batch {result['batch']})"
        print(
            f"{label + batch:52}{result['seconds']:>9.2f} s{result['tokens_per_second']:>11,.0f} tokens/s"
            f"{result['peak_rss_mb'] or 0:>8,} MB{against}"
        )
    print(f"peak memory, ours / reference scripts: {workload['peak_memory_of_ours_over_reference_scripts']}")
    print(f"largest relative difference: {workload['largest_relative_difference_to_reference_scripts']:.1e}\n")


if __name__ == "__main__":
    main()
