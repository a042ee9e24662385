"""`skillbasis steer ...` on the embedded reasoner: what each command leaves, says and refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from shell import done, skillbasis
from skillbasis.basis import SkillBasis
from skillbasis.lm import load_model
from skillbasis.steer import SteeringVector, direction_vector
from skillbasis.steer.formats import from_gguf
from skillbasis.world.assets import reasoner_path

torch.set_num_threads(1)

COMMANDS = ["vectors", "bake", "verify", "gguf", "easysteer", "audit", "sweep"]
SAMPLE = ("--rollouts", "4", "--temperature", "0.8", "--max-tokens", "40")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Activations, a basis of four directions, answers of the reasoner, and one baked checkpoint."""
    folder = tmp_path_factory.mktemp("steer")
    corpus = ("embedded", "--model", "embedded", "--limit", "200", "--span", "response")
    done("extract", *corpus, "--out", folder / "acts")
    done("discover", folder / "acts", "--k", "4", "--out", folder / "basis")
    answers = ("--model", "embedded", "--task", "embedded:pool", "--limit", "24", *SAMPLE)
    done("evaluate", *answers, "--out", folder / "answers")
    done("steer", "bake", "--model", "embedded", "--basis", folder / "basis", "--direction", "1-", "--alpha", "4",
         "--out", folder / "baked")  # fmt: skip
    done("steer", "vectors", "--basis", folder / "basis", "--direction", "0+", "--out", folder / "v.safetensors")
    shutil.copytree(reasoner_path(), folder / "quantised")
    config = json.loads((folder / "quantised" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "quantised" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    assert "Usage: " in done("steer", command, "--help")
    assert command in done("steer", "--help")


def test_a_vector_of_a_direction_is_kept_with_all_that_it_needs(work: Path, tmp_path: Path) -> None:
    file = tmp_path / "v.safetensors"
    shown = done("steer", "vectors", "--basis", work / "basis", "--direction", "2-", "--blocks", "2", "--unit", "std",
                 "--alpha", "3", "--out", file)  # fmt: skip
    vector, basis = SteeringVector.load(file), SkillBasis.load(work / "basis")
    expected = 3 * direction_vector(basis, 2, "-", unit="std", blocks=[2]).values
    np.testing.assert_allclose(vector.values, expected, rtol=1e-6)
    assert (vector.name, vector.block_ids, vector.unit) == ("d2-", (2,), "std")
    assert vector.origin["alpha_folded_in"] == 3 and vector.origin["basis"] == basis.fingerprint
    vector.check_model(load_model("embedded"))
    assert re.fullmatch(r".*v\.safetensors: d2-, unit std; alpha 1 adds by block 2: [\d.]+\n", shown)


def test_a_weighted_sum_of_directions(work: Path, tmp_path: Path) -> None:
    file = tmp_path / "v.safetensors"
    done("steer", "vectors", "--basis", work / "basis", "--direction", "3*0+,4*2-", "--out", file)
    directions = SkillBasis.load(work / "basis").directions
    np.testing.assert_allclose(SteeringVector.load(file).values, 0.6 * directions[0] - 0.8 * directions[2], atol=1e-6)


def test_vectors_of_the_model_s_own_answers_and_of_rows(work: Path, tmp_path: Path) -> None:
    model = ("--model", "embedded")
    done("steer", "vectors", "--success", work / "answers", *model, "--out", tmp_path / "s.safetensors")
    done("steer", "vectors", "--gradient", work / "answers", *model, "--blocks", "2", "--unit", "relative",
         "--out", tmp_path / "g.safetensors")  # fmt: skip
    ids = [json.loads(line)["id"] for line in _rows(work)]
    (tmp_path / "some.txt").write_text("\n".join(ids[:20]))
    done("steer", "vectors", "--difference", work / "acts", "--plus", tmp_path / "some.txt",
         "--out", tmp_path / "d.safetensors")  # fmt: skip
    made = {name: SteeringVector.load(tmp_path / f"{name}.safetensors") for name in "sgd"}
    assert [vector.origin["kind"] for vector in made.values()] == ["success", "gradient", "mean-difference"]
    assert made["g"].block_ids == (2,) and made["s"].block_ids == (1, 2)


def _rows(work: Path) -> list[str]:
    from skillbasis.activations import ActivationStore

    return [json.dumps({"id": row_id}) for row_id in ActivationStore.open(work / "acts").ids]


def test_a_vector_file_steers_an_evaluation(work: Path, tmp_path: Path) -> None:
    file = tmp_path / "v.safetensors"
    done("steer", "vectors", "--basis", work / "basis", "--direction", "0+", "--unit", "relative", "--out", file)
    task = ("--model", "embedded", "--task", "embedded", "--limit", "8", *SAMPLE)
    by_file = done("evaluate", *task, "--steer", f"{file}:0.6", "--steer-scope", "last-prompt", "--out", tmp_path / "a")
    by_name = done("evaluate", *task, "--steer", f"{work / 'basis'}:0+:0.6", "--steer-scope", "last-prompt",
                   "--steer-unit", "relative", "--out", tmp_path / "b")  # fmt: skip
    assert by_file == by_name
    assert by_file != done("evaluate", *task, "--out", tmp_path / "c")
    record = json.loads((tmp_path / "a" / "summary.json").read_text())["settings"]["intervention"]
    assert record["vector"] == SteeringVector.load(file).fingerprint and record["scope"] == "last-prompt"


def test_a_baked_checkpoint_is_verified_and_audited(work: Path) -> None:
    shown = done("steer", "verify", work / "baked")
    assert re.search(r"logits in float32 differ from the hooked original's by at most [\de.-]+ \(allowed", shown)
    shown = done("steer", "audit", work / "baked", "--base", "embedded", "--basis", work / "basis")
    assert "a constant offset, and no other changed weight" in shown
    assert re.search(r"nearest is direction 1, cosine -1\.0000 over 2 shared blocks .* alpha -?4", shown)
    assert "identical" in done("steer", "audit", "embedded", "--base", "embedded")


def test_a_tampered_checkpoint_fails(work: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(work / "baked", tmp_path / "baked")
    file = tmp_path / "baked" / "model-00002-of-00002.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.bias"].zero_()
    save_file(tensors, file, {"format": "pt"})
    result = skillbasis("steer", "verify", tmp_path / "baked")
    assert result.code == 1 and re.fullmatch(r"error: .*differ.*\n", result.err), result.err


def test_relative_strength_is_made_constant_for_other_engines(work: Path, tmp_path: Path) -> None:
    shared = ("--basis", work / "basis", "--direction", "0+", "--unit", "relative", "--alpha", "0.2")
    refused = skillbasis("steer", "gguf", *shared, "--out", tmp_path / "x.gguf")
    assert refused.code == 2 and "--calibrate" in refused.err and not (tmp_path / "x.gguf").exists()
    done("steer", "gguf", *shared, "--model", "embedded", "--calibrate", "embedded", "--calibration-rows", "20",
         "--out", tmp_path / "x.gguf")  # fmt: skip
    norms = from_gguf(tmp_path / "x.gguf", load_model("embedded")).norms
    assert (norms > 0.2).all(), "a fifth of the norm of the stream, which is far above 1 here"


def test_easysteer_gets_its_scope(work: Path, tmp_path: Path) -> None:
    done("steer", "easysteer", "--basis", work / "basis", "--direction", "0+", "--scope", "generated",
         "--out", tmp_path / "es")  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "es").iterdir()) == ["steering.json", "vector.gguf"]


BAKE = "bake --model embedded --out {new} --basis {work}/basis"
EXPORT = "gguf --out {new}.gguf --basis {work}/basis "
REFUSED = {
    BAKE: (2, r"say which direction of the basis, with --direction"),
    BAKE + " --direction 9+": (2, r"direction 9 does not exist; the basis has 0 to 3"),
    BAKE + " --direction up": (2, r"'up' is no direction; write a number and a sign"),
    BAKE + " --direction 1+ --alpha nan": (2, r"alpha must be a finite number"),
    BAKE + " --direction 1+ --alpha 1e39": (2, r"logits of 'embedded' are not finite; use a smaller alpha"),
    BAKE + " --direction 1+ --unit relative": (2, r"relative.*--calibrate"),
    BAKE + " --direction 1+ --blocks 7": (2, r"has no block 7; it has \[1, 2\]"),
    BAKE + " --direction 1+ --blocks all": (2, r"--blocks 'all' is no list of block ids"),
    BAKE + " --direction 1+ --increments half": (2, r"unknown increments 'half'"),
    BAKE + " --direction 1+ --vector {work}/none.safetensors": (2, r"say what to steer along"),
    "bake --model {qwen3} --out {new} --basis {work}/basis --direction 0+": (2, r"cannot carry a vector in the bias"),
    "bake --model {llama} --out {new} --basis {work}/basis --direction 0+": (1, r"d0\+ was made for model 'embedded'"),
    "bake --model {quantised} --out {new} --basis {work}/basis --direction 0+": (2, r"is quantised, .* give the check"),
    EXPORT + "--direction 0+ --alpha 1e39": (2, r"d0\+ at alpha 1e\+39 is too large for float32; use a smaller alpha"),
    EXPORT + "--direction 0+ --alpha 1e38 --model {llama}": (1, r"the basis was found on model 'embedded'"),
    "gguf --out {new}.gguf --vector {vector} --model {llama}": (1, r"was made for model 'embedded' .*, not for"),
    "vectors --out {new}.safetensors --basis {work}/basis --direction 0+ --alpha 1e39": (2, r"too large for float32"),
    "vectors --out {new}.safetensors --basis {work}/basis --direction 0+ --alpha 0": (2, r"adds nothing"),
    "easysteer --out {new} --basis {work}/basis --direction 0+ --alpha 1e39": (2, r"too large for float32"),
    "bake --model embedded --out {new} --vector {work}/none.safetensors": (2, r"there is no steering vector at"),
    "verify {work}/basis": (2, r"basis"),
    "audit {work}/baked --base {qwen3}": (2, r"hidden"),
    "vectors --out {new}.safetensors": (2, r"give one of --basis, --success, --gradient, --difference"),
    "vectors --out {new}.bin --basis {work}/basis --direction 0+": (2, r"no .safetensors file"),
    "vectors --out {new}.safetensors --success {work}/answers": (2, r"--success reads the model's states .* --model"),
    "vectors --out {new}.safetensors --gradient {work}/answers --model embedded": (2, r"give --blocks"),
    "vectors --out {new}.safetensors --difference {work}/acts": (2, r"give their ids with --plus"),
    "gguf --out {new}.gguf --basis {work}/basis --direction 0+ --blocks 0": (2, r"has no block 0"),
}


@pytest.mark.parametrize(("command", "code", "message"), [(c, *expected) for c, expected in REFUSED.items()])
def test_a_refusal_leaves_nothing(
    command: str, code: int, message: str, work: Path, tmp_path: Path, model_path: Callable[..., Path]
) -> None:
    paths = {"work": work, "new": tmp_path / "new", "vector": work / "v.safetensors", "quantised": work / "quantised"}
    paths |= {name: model_path(name) for name in ("qwen3", "llama") if f"{{{name}}}" in command}
    result = skillbasis("steer", *(word.format(**paths) for word in command.split()))
    assert (result.code, result.out) == (code, ""), result.err
    assert re.fullmatch(r"error: [^\n]+\n", result.err) and re.search(message, result.err), result.err
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
