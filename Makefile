# `make quickstart` and `make test` do all their set-up; everything else builds on the same environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ZERO := .venv-zero
# A worker for each core, with one thread; a module's tests stay together, since they share what it makes.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile

.PHONY: quickstart test slow faults zero soak setup check fix docs embedded bench bench-prepare bench-memory bench-saving bench-precision bench-sharing bench-starting bench-forecast bench-levers bench-step bench-attention bench-scaling bench-begin bench-size forgetting

quickstart: setup  ## install, fine-tune the embedded tiny model, show before and after
	$(BIN)/fulltune quickstart

test: setup  ## all tests but the slow ones
	$(PYTEST) -m "not slow and not faults"

slow: setup  ## the slow tests alone
	$(PYTEST) -m slow

faults: setup  ## fault injection at length: killed at every write, full disks, damage (docs/reliability.md)
	$(PYTEST) -m faults tests/faults tests/distributed

zero: $(ZERO)/.ready  ## DeepSpeed's engines, in an environment that has it
	OMP_NUM_THREADS=1 $(ZERO)/bin/python -m pytest tests/distributed -k "zero or deepspeed"

soak: setup  ## one run and 200 faults (ARGS: --seed 1 --write puts the result into docs/reliability.md)
	$(BIN)/python -m tests.faults.soak $(ARGS)

setup: $(VENV)/.ready  ## the environment of constraints.txt

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# That of constraints.txt and DeepSpeed besides. Not the same one: where it is installed, transformers loads it at every
# save through accelerate, which would cost each of some hundred processes of the tests five seconds.
$(ZERO)/.ready: $(VENV)/.ready
	$(PYTHON) -m venv $(ZERO)
	echo 'import site; site.addsitedir("$(abspath $(VENV))/lib/'$$(ls $(VENV)/lib)'/site-packages")' > $(ZERO)/lib/$$(ls $(ZERO)/lib)/site-packages/shared.pth
	$(ZERO)/bin/python -m pip install --quiet --constraint constraints.txt deepspeed
	touch $@

check: setup  ## format, lint, types, floors, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

fix: setup  ## what can be mended by a program
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## the pages that are generated from the code
	$(BIN)/python -m tools.make_docs
	$(BIN)/python -m tools.make_scale

embedded: setup  ## the embedded model and data, from nothing (20 minutes)
	$(BIN)/python -m tools.make_embedded

bench: setup  ## training beside that of others, whole processes (ARGS: see benchmarks/README.md)
	$(BIN)/python -m benchmarks.train $(ARGS)

bench-prepare: setup  ## data preparation beside that of others (ARGS: see benchmarks/README.md)
	$(BIN)/python -m benchmarks.prepare $(ARGS)

bench-memory: setup  ## memory of data preparation by the number of rows
	$(BIN)/python -m benchmarks.memory $(ARGS)

bench-saving: setup  ## time that saving takes away from training, beside a plain script
	$(BIN)/python -m benchmarks.saving $(ARGS)

bench-precision: setup  ## every precision against float32 on a real run
	$(BIN)/python -m benchmarks.precision $(ARGS)

bench-sharing: setup  ## memory of each process of several, by engine
	$(BIN)/python -m benchmarks.sharing $(ARGS)

bench-starting: setup  ## memory that each process of several needs to start
	$(BIN)/python -m benchmarks.starting $(ARGS)

bench-forecast: setup  ## what was forecast of memory beside what was held
	$(BIN)/python -m benchmarks.forecast $(ARGS)

bench-levers: setup  ## what each lever for memory leaves of the peak of a run, and what it costs
	$(BIN)/python -m benchmarks.levers $(ARGS)

bench-step: setup  ## time of an update in one process, beside a plain loop over the transformers model
	$(BIN)/python -m benchmarks.step $(ARGS)

bench-begin: setup  ## seconds to the first update, beside imports and weights alone
	$(BIN)/python -m benchmarks.begin $(ARGS)

bench-size: setup  ## time of an update by the number of rows
	$(BIN)/python -m benchmarks.size $(ARGS)

bench-attention: setup  ## attention by itself, beside torch's own kernel
	$(BIN)/python -m benchmarks.attention $(ARGS)

bench-scaling: setup  ## what a token costs as examples and vocabularies grow
	$(BIN)/python -m benchmarks.scaling $(ARGS)

forgetting: setup  ## what fine-tuning makes a small model forget, and how much each cure undoes (docs/retention.md)
	$(BIN)/python -m benchmarks.forgetting $(ARGS)
