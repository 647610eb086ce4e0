# Two commands on a fresh machine: `make demo` and `make test`. Both create .venv here and install into it.
# Another Python beside it: `make demo PYTHON=python3.13 VENV=.venv313`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOCKED := test serve evaluate tensorboard inject docs
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1

VLLM_ENV ?= .vllm

.PHONY: install docs demo host-demo test test-vllm test-slice check lock bench weights table2 ablations clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,serve,evaluate]'
	touch $@

# The docs site, into out/site; a warning is an error. Its reference pages are written from the code.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

demo: install
	$(BIN)/cac-align demo --out out/demo

test: install
	$(BIN)/python -m pytest -n 2

# A real vLLM on the CPU (6 GB on disk, a quarter of an hour the first time): the served judge against the one in this process.
test-vllm: install $(VLLM_ENV)/.installed
	CAC_ALIGN_VLLM_PYTHON=$(abspath $(VLLM_ENV))/bin/python $(BIN)/python -m pytest tests/upstream/test_vllm.py

$(VLLM_ENV)/.installed: tests/upstream/install_vllm.sh
	$(PYTHON) -m venv $(VLLM_ENV)
	sh tests/upstream/install_vllm.sh $(VLLM_ENV)/bin/python
	touch $@

# Whole runs of Flow-Factory and flow_grpo on the CPU with the miniature. FLOW_FACTORY_DIR and FLOW_GRPO_DIR name their checkouts,
# UPSTREAM_PYTHON an interpreter that has their dependencies beside ours (docs/trainers/flow_factory.md).
host-demo: install
	$(BIN)/python -m tests.upstream.host_demo --out out/host_demo

# Two minutes of the suite, for one more Python: what reads and writes videos, and what rewards them.
SLICE = tests/core tests/rewards tests/test_config.py

test-slice: install
	$(BIN)/python -m pytest -n 2 $(SLICE)

# Hostile inputs, kills and full disks, for half an hour; by hand, and before a release (docs/reliability.md).
campaign: install
	$(BIN)/python -m tests.campaign.run --minutes 30 --seed $(or $(SEED),1)

# Pins every dependency anew, for every Python and system at once (markers tell them apart): the newest versions that setup.cfg allows.
lock: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv --no-config pip compile --quiet --universal --upgrade --python-version 3.11 $(LOCKED:%=--extra %) --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file constraints.txt.new setup.cfg
	{ echo "# The tested set, written by 'make lock'. torchvision must be the one built for the installed torch."; cat constraints.txt.new; } > constraints.txt
	rm constraints.txt.new

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

bench: install
	for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file; done

# Every shipped weight file from nothing, by one curriculum (about seven hours of two cores; the same command resumes), installed where it is
# as good as research/recipes/expected.json says. What it would do: python -m research.build all --plan (docs/curriculum.md).
weights: install
	$(BIN)/python -m research.build all

# The paper's Table 2 in miniature: three alignments of the small Wan, judged by the oracle (half an hour to forty minutes each on two cores; status 1: trained, but a guard raised an alarm).
# Prints its lines and leaves them in out/table2/table2.md; docs/table2.md holds those that were measured, with their conditions.
table2: install
	for name in miniature_ur miniature miniature_nft; do $(BIN)/cac-align align recipes/align/$$name.yaml || [ $$? -eq 1 ] || exit 1; done
	$(BIN)/python -m research.experiments.table2 out/table2 ur=runs/align/miniature_ur/lora ur+cac=runs/align/miniature/lora ur+cac-nft=runs/align/miniature_nft/lora

# The paper's Table 3 in miniature: ten variants through the three real stages (hours on two cores, resumable); writes docs/ablations.md.
ablations: install
	$(BIN)/python -m research.experiments.ablations out/ablations
	cp out/ablations/ablations.md docs/ablations.md

clean:
	rm -rf out .pytest_cache .ruff_cache
