# Everything runs inside .venv, which is made from the hashed lock; only Python >= 3.11, make and git are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-full test-next test-all lint format types bench accelerator lock clean

demo: $(READY)  ## train the default language model on the embedded corpus and sample from it (about 3 minutes)
	$(BIN)/python experiments/language_model.py --run runs/demo

test: $(READY)  ## the main law of every module (at most 8 minutes on 2 cores)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not full"

test-full: $(READY)  ## further laws, precisions and options, then the suite on a newer Python
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "full and not slow"
	$(MAKE) test-next

test-next:  ## the suite on a newer Python (3.12+, a newer jax), where one is found
	$(PYTHON) tests/next_python.py

test-all: $(READY)  ## everything, with the soak tests (many minutes)
	$(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## the benchmarks: ratios against flax, jax.nn and, where installed, torch (most of an hour)
	$(BIN)/python benchmarks/recurrence.py
	$(BIN)/python benchmarks/linear_recurrence.py
	$(BIN)/python benchmarks/linear_attention.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/regions.py
	$(BIN)/python benchmarks/detection.py
	$(BIN)/python benchmarks/throughput.py --preset cpu
	$(BIN)/python benchmarks/decoding.py --parts small steps

# Not from .venv, whose jax has no GPU: PYTHON is an interpreter with jax[cuda13], flax, optax, orbax and the other needs.
accelerator:  ## ops checked, cuDNN, training steps in bfloat16 and throughput on one GPU (10 minutes; PYTHON with a CUDA jax)
	$(PYTHON) benchmarks/accelerator.py

lock:  ## resolve requirements.lock again (needs uv)
	uv pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url --no-header \
	  --extra plots --extra text --extra translation --extra images --extra export --extra pretrained --extra vision \
	  --extra tensorboard --extra wandb --extra dev -o requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"jaxseq needs Python >= 3.11; {sys.executable} is {v.major}.{v.minor}: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf $(VENV) .venv-next
