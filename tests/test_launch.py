"""Training in several processes: DDP as it is, FSDP with accelerate's gate for the CPU lifted (tests/launched.py)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from skillbasis.artifact import lock
from skillbasis.errors import SkillbasisError, UsageError
from skillbasis.lm import load_model
from skillbasis.train import LoraSettings, TrainingSettings, fine_tune
from skillbasis.train.launch import Processes, join, n_launched, own_device
from tiny import tiny_lm, user

LAUNCHED = Path(__file__).with_name("launched.py")
# 21 rows in batches of 8: the last batch is filled up, and a process alone would have fewer rows than the other.
ROWS = [
    (user(f"what is {'three plus ' * (i % 4)}{i}?"), f"the answer is \\boxed{{{3 * (i % 4) + i}}}") for i in range(21)
]
SETTINGS = TrainingSettings(learning_rate=2e-3, epochs=2.0, batch_size=8, micro_batch_size=2, max_length=128)
LORA = TrainingSettings(**vars(SETTINGS) | {"lora": LoraSettings(rank=4, alpha=8, dropout=0.0)})
OPTIONS = ("--lr", "2e-3", "--epochs", "2", "--batch-size", "8", "--micro-batch-size", "2", "--max-length", "128")
# What `accelerate config` writes for FSDP2 on the GPUs of one machine.
FSDP = """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: {states}
  fsdp_cpu_ram_efficient_loading: false
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
num_machines: 1
num_processes: 2
use_cpu: true
"""

# One process


def test_alone_there_is_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "ACCELERATE_USE_CPU", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    alone = join(on_gpu=False)
    assert alone == Processes(0, 1) and alone.first and n_launched() == 1 and own_device() is None
    assert alone.once(lambda: 7) == 7
    with pytest.raises(SkillbasisError, match="full"):
        alone.once(lambda: (_ for _ in ()).throw(SkillbasisError("the disk is full")))
    alone.wait()


def test_a_launcher_that_starts_one_process_for_several_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that `accelerate launch --cpu --num_processes 2` makes."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UsageError, match="single process.*torchrun --nproc_per_node N"):
        join(on_gpu=False)


@pytest.mark.parametrize(("batch_size", "n", "steps"), [(64, 1, 32), (64, 8, 4), (16, 8, 1), (6, 3, 1)])
def test_the_batch_is_shared_out(batch_size: int, n: int, steps: int) -> None:
    settings = TrainingSettings(batch_size=batch_size, micro_batch_size=2)
    assert settings.accumulation_steps(n) == steps
    assert settings.micro_batch_size * settings.accumulation_steps(n) * n == batch_size


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(UsageError, match=r"batch_size 64 .* over all 3 processes .* = 6; choose"):
        TrainingSettings(batch_size=64, micro_batch_size=2).accumulation_steps(3)


# Several

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model (whose input and output embeddings are tied) and the rows as a file."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("launch")
    lm = tiny_lm(initializer_range=0.1, tie_word_embeddings=True)
    lm.model.save_pretrained(path / "tiny")
    lm.tokenizer.save_pretrained(path / "tiny")
    lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in ROWS]
    (path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for states in ("FULL_STATE_DICT", "SHARDED_STATE_DICT"):
        (path / f"{states}.yaml").write_text(FSDP.format(states=states))
    return path


@pytest.fixture(scope="module")
def alone(folder: Path) -> Callable[[TrainingSettings], Path]:
    """Trains in this process, once per settings."""

    def train(settings: TrainingSettings) -> Path:
        out = folder / ("alone-lora" if settings.lora else "alone")
        return fine_tune(load_model(folder / "tiny", device="cpu"), ROWS, settings, out)

    return train


def free_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def run(
    launcher: list[str], folder: Path, out: Path, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Trains under a launcher."""
    train = ["train", folder / "rows.jsonl", "--model", folder / "tiny", "--out", out, *OPTIONS, *options]
    return subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, train)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def torchrun(*program: str) -> list[str]:
    return ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port(), *program]


def accelerate(*options: str) -> list[str]:
    return ["accelerate.commands.launch", "--main_process_port", free_port(), *options]


def weights(path: Path, name: str = "model") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path / f"{name}.safetensors")


def losses(path: Path) -> list[float]:
    values: list[float] = json.loads((path / "losses.json").read_text())
    return values


def check_same(path: Path, alone: Path, name: str = "model") -> None:
    """The same losses and weights but for the order of sums in float32; the same files, and nothing else."""
    assert len(losses(path)) == 6
    assert losses(path) == pytest.approx(losses(alone), rel=1e-5)
    ours, theirs = weights(path, name), weights(alone, name)
    assert {key: (value.shape, value.dtype) for key, value in ours.items()} == {
        key: (value.shape, value.dtype) for key, value in theirs.items()
    }
    for key, value in ours.items():
        # Adam makes a full step of entries whose gradient is all rounding, so single entries may differ.
        assert (value - theirs[key]).abs().mean() < 1e-5, key
    assert {file.name for file in path.iterdir()} == {file.name for file in alone.iterdir()}
    assert {file.name for file in path.parent.iterdir() if path.name in file.name} == {path.name, f".{path.name}.lock"}


@slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_train_what_one_does(
    folder: Path, alone: Callable[..., Path], tmp_path: Path, launcher: str
) -> None:
    multi = accelerate("--multi_gpu", "--num_processes", "2", "-m", "skillbasis")
    done = run(torchrun("-m", "skillbasis") if launcher == "torchrun" else multi, folder, tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("fine-tuned on 21 rows") == 1
    check_same(tmp_path / "out", alone(SETTINGS))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["processes"] == 2


@slow
def test_adapters_are_trained_by_two_processes(folder: Path, alone: Callable[..., Path], tmp_path: Path) -> None:
    options = ("--lora-rank", "4", "--lora-alpha", "8", "--lora-dropout", "0")
    done = run(torchrun("-m", "skillbasis"), folder, tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    check_same(tmp_path / "out", alone(LORA), "adapter_model")


@slow
@pytest.mark.parametrize("states", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_a_sharded_model_is_saved_whole(folder: Path, alone: Callable[..., Path], tmp_path: Path, states: str) -> None:
    """Killed on the way and gone on with, too."""
    launcher = accelerate("--config_file", str(folder / f"{states}.yaml"), str(LAUNCHED))
    killed = run(launcher, folder, tmp_path / "out", TEST_FSDP_ON_CPU="1", TEST_KILL_AT="4")
    assert killed.returncode != 0 and not (tmp_path / "out").exists()
    (checkpoint,) = (tmp_path / "out.partial" / "checkpoints").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-3" and any(checkpoint.glob("pytorch_model_fsdp*")), "it was sharded"
    with pytest.raises(SkillbasisError, match=r"was begun with FSDP; go on with the launcher"):
        fine_tune(load_model(folder / "tiny", device="cpu"), ROWS, SETTINGS, tmp_path / "out")
    done = run(launcher, folder, tmp_path / "out", TEST_FSDP_ON_CPU="1")
    assert done.returncode == 0, done.stderr[-3000:]
    check_same(tmp_path / "out", alone(SETTINGS))


@slow
def test_fsdp_on_the_cpu_is_told_to_shard_nothing(folder: Path, alone: Callable[..., Path], tmp_path: Path) -> None:
    launcher = accelerate("--config_file", str(folder / "FULL_STATE_DICT.yaml"), "-m", "skillbasis")
    done = run(launcher, folder, tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("does not shard over cpu processes: every one of the 2 holds the whole model") == 1
    check_same(tmp_path / "out", alone(SETTINGS))


@slow
def test_what_the_first_process_refuses_ends_all(folder: Path, tmp_path: Path) -> None:
    with lock(tmp_path / "out"):
        done = run(torchrun("-m", "skillbasis"), folder, tmp_path / "out")
    assert done.returncode != 0 and "another process is working on" in done.stderr
    assert not (tmp_path / "out.partial").exists()
    done = run(torchrun("-m", "skillbasis"), folder, tmp_path / "out", "--batch-size", "6")
    assert done.returncode != 0 and "over all 2 processes and is no multiple of" in done.stderr
    assert not (tmp_path / "out.partial").exists()
