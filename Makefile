# Every target makes its own .venv; nothing needs to be installed by hand. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:

VENV ?= .venv
BIN := $(VENV)/bin
# The first interpreter that is supported; `make PYTHON=python3.13 test` chooses another.
SUPPORTED := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
  $$p -c '$(SUPPORTED)' >/dev/null 2>&1 && { echo $$p; break; }; done)
PYTHON_312 := $(shell for p in python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python3.12); do \
  $$p -c '$(SUPPORTED)' >/dev/null 2>&1 && { echo $$p; break; }; done)
CPUS := $(shell nproc 2>/dev/null || echo 2)
WORKERS ?= $(shell echo $$(( $(CPUS) < 8 ? $(CPUS) : 8 )))
PIP := -m pip install -qq --disable-pip-version-check
APT_PACKAGES := opencv-doc gnome-user-docs ffmpeg shellcheck
QUICK = $(shell grep -rl 'mark.quick' tests --include='test_*.py')
BENCHMARKS ?= model rollout hf_io video loader packing data_prep evals
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

# ---- environments: one stamp per set of packages, renewed when setup.py changes. A stamp carries the time at which its recipe
# began: a setup.py that changes while pip runs is newer.

$(VENV)/.core: setup.py pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11, 3.12 or 3.13 with venv is needed; set PYTHON=..."; exit 1; }
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	touch $@.new
	$(BIN)/python $(PIP) -e .
	mv $@.new $@

$(VENV)/.dev: $(VENV)/.core
	touch $@.new
	$(BIN)/python $(PIP) -e '.[data,train,rewards,eval,serve,synthesis,dev]'
	mv $@.new $@

# The reference implementations that the tests compare with. torchvision wants a torch build of its own, hence --no-deps.
$(VENV)/.parity: $(VENV)/.dev
	touch $@.new
	$(BIN)/python $(PIP) torch==2.13.0
	$(BIN)/python $(PIP) --no-deps torchvision==0.28.0
	mv $@.new $@

# What the tests marked `quick` need.
$(VENV)/.quick: $(VENV)/.core
	touch $@.new
	$(BIN)/python $(PIP) pytest pytest-xdist hypothesis setuptools
	mv $@.new $@

.PHONY: apt
apt:  ## real videos and tools for the tests, where apt-get may be used
	@missing=$$(for p in $(APT_PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done | xargs)
	if [ -z "$$missing" ]; then exit 0; fi
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	  echo "not installed: $$missing (needs root and apt-get); the tests that want them say so and skip"; exit 0
	fi
	apt-get update -qq >/dev/null 2>&1 || true
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null 2>&1 \
	  || echo "apt-get could not install: $$missing; the tests that want them say so and skip"

# ---- what people run

.PHONY: demo
demo: $(VENV)/.core  ## make a long synthetic video, ask a question on it, write out/demo.html
	@export JAX_COMPILATION_CACHE_DIR=$${JAX_COMPILATION_CACHE_DIR-.cache/jax} JAX_PLATFORMS=$${JAX_PLATFORMS-cpu}
	$(BIN)/python -m vo3.clueworld.demo --out out

.PHONY: picture
picture: demo  ## renew the README's pictures from the demo's page (needs chromium)
	@mkdir -p docs
	for scheme in 1:light 0:dark; do
	  chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --force-device-scale-factor=1.5 \
	    --blink-settings=preferredColorScheme=$${scheme%%:*} --window-size=1200,990 \
	    --screenshot=docs/demo-$${scheme##*:}.png file://$(CURDIR)/out/demo.html 2>/dev/null
	done

.PHONY: test
test: $(VENV)/.parity apt lint  ## lint, the whole test suite, and the quick subset on Python 3.12
	$(PYTEST)
	$(MAKE) --no-print-directory test-quick

.PHONY: test-quick
test-quick:  ## the tests marked `quick` on Python 3.12, when there is one
	@if [ -z "$(PYTHON_312)" ]; then echo "test-quick: left out, no python3.12 found"; exit 0; fi
	if [ "$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = 3.12 ]; then
	  echo "test-quick: left out, $(VENV) is Python 3.12 already"; exit 0
	fi
	$(MAKE) --no-print-directory PYTHON=$(PYTHON_312) VENV=.venv-3.12 .venv-3.12/.quick
	.venv-3.12/bin/python -m pytest -n $(WORKERS) --dist loadfile -m 'quick and not soak' $(QUICK)

.PHONY: test-tfds
test-tfds:  ## TFDS's own test of the seeker_173k builder, in an environment with TensorFlow (1.5 GB)
	[ -x .venv-tfds/bin/python ] || $(PYTHON) -m venv .venv-tfds
	.venv-tfds/bin/python $(PIP) -e '.[data]' pytest hypothesis tensorflow-cpu dill dm-tree
	JAX_PLATFORMS=cpu .venv-tfds/bin/python -m pytest tests/data_prep/test_seeker_173k_tfds.py

.PHONY: test-beam
test-beam:  ## the synthesis on Beam, one process and two workers, in an environment with Apache Beam
	[ -x .venv-beam/bin/python ] || $(PYTHON) -m venv .venv-beam
	.venv-beam/bin/python $(PIP) -e '.[data,synthesis,beam]' pytest hypothesis psutil
	JAX_PLATFORMS=cpu .venv-beam/bin/python -m pytest -p no:cacheprovider -m 'soak or not soak' tests/data_prep/test_beam.py

# Evaluators that vo3 plugs into, each in an environment of its own: their pins are not ours. Without their dependencies, which are many,
# but with what their own modules import.
.PHONY: lmms-eval
lmms-eval: .venv-lmms-eval/.ready
.venv-lmms-eval/.ready: setup.py
	[ -x $(@D)/bin/python ] || $(PYTHON) -m venv $(@D)
	touch $@.new
	$(@D)/bin/python $(PIP) -e . torch==2.13.0 accelerate datasets evaluate httpx jsonlines pytablewriter sacrebleu scikit-learn \
	  loguru tenacity tiktoken pydantic python-dotenv openai nltk pyarrow opencv-python-headless tqdm-multiprocess sympy latex2sympy2 decord 'filelock<3.30'
	$(@D)/bin/python $(PIP) --no-deps lmms-eval==0.7.3
	mv $@.new $@

# VLMEvalKit itself is on no package index: give a checkout. Its modules import torchvision's operators, hence torch as torchvision wants it.
.PHONY: vlmevalkit
vlmevalkit: .venv-vlmevalkit/.ready
.venv-vlmevalkit/.ready: setup.py
	[ -x $(@D)/bin/python ] || $(PYTHON) -m venv $(@D)
	touch $@.new
	$(@D)/bin/python $(PIP) -e . torch torchvision accelerate datasets pandas matplotlib openpyxl xlsxwriter requests tqdm python-dotenv tabulate \
	  termcolor validators sty portalocker timeout-decorator json_repair openai nltk scikit-learn scipy scikit-image opencv-python-headless decord \
	  imageio sympy rouge rouge_score editdistance levenshtein einops tiktoken qwen-vl-utils jieba math_verify pylatexenc num2words apted \
	  beautifulsoup4 zss geopy colormath lxml unidecode nest_asyncio fuzzysearch ftfy distance pronouncing sacrebleu 'setuptools<80'
	$(@D)/bin/python $(PIP) --no-deps timm evaluate torchmetrics lightning-utilities lpips ipdb cairosvg playwright matplotlib-venn squarify \
	  openai-clip pycocoevalcap
	mv $@.new $@

.PHONY: soak
soak: $(VENV)/.parity apt  ## what takes longer than the test suite may: kill tests, fuzzing, load, every chip
	$(BIN)/python -m pytest -m soak -n 0

.PHONY: lint
lint: $(VENV)/.dev  ## ruff and, where installed, shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	if command -v shellcheck >/dev/null; then git ls-files '*.sh' .ci/run | xargs -r shellcheck; fi

.PHONY: format
format: $(VENV)/.dev  ## let ruff rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench-attention
bench-attention: $(VENV)/.parity  ## the attention kernels beside their peers, one table
	@$(BIN)/python -m benchmarks.attention

.PHONY: bench-maxtext
bench-maxtext: $(VENV)/.dev  ## our 7B step beside MaxText's, compiled for one slice (needs Python 3.12, 3 GB)
	@[ -x .venv-maxtext/bin/python ] || $(PYTHON_312) -m venv .venv-maxtext
	.venv-maxtext/bin/python $(PIP) 'maxtext[tpu]'
	$(BIN)/python -m benchmarks.maxtext

.PHONY: bench
bench: $(VENV)/.parity  ## side-by-side measurements, one table
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name; done

# (folder, seed)
define train
	$(BIN)/python -m vo3.clueworld.recipe --workdir=$(1) --seed=$(2)
	$(BIN)/python -m vo3.train.grpo --config=configs/rl_clueworld.py --workdir=$(1)/rl --config.init_from=$(1)/export --config.seed=$(2)
endef
SEED ?= 0
RUN ?= out/clueworld
.PHONY: clueworld
clueworld: $(VENV)/.dev  ## train the embedded model again, with the recipe that made it: fine-tuning, then RL; SEED=1 RUN=out/one is another
	$(call train,$(RUN),$(SEED))

# Resumable; one after the other, as each takes all cores.
RL := out/clueworld-rl
SEEDS ?= 0 1 2
WORLDS ?= 84
.PHONY: clueworld-rl
clueworld-rl: $(VENV)/.dev  ## RL of the embedded model over SEEDS, asked before and after on held-out worlds
	@for seed in $(SEEDS); do
	  $(BIN)/python -m vo3.train.grpo --config=configs/rl_clueworld.py --workdir=$(RL)/$$seed --config.seed=$$seed
	done
	ask() { $(BIN)/python -m vo3.clueworld.evaluate --worlds=$(WORLDS) --videos=out/clueworld-eval/videos "$$@"; }
	ask --workdir=$(RL)/asked/before --checkpoint=clueworld-sft
	for seed in $(SEEDS); do ask --workdir=$(RL)/asked/$$seed --checkpoint=$(RL)/$$seed/export; done
	$(BIN)/python -m vo3.train.rl_curves --out=$(RL)/curves.svg $(SEEDS:%=$(RL)/%/log.jsonl)
	$(BIN)/python -m vo3.clueworld.gains --before=$(RL)/asked/before/agent $(SEEDS:%=$(RL)/asked/%/agent) | tee $(RL)/gains.md

RUNS := out/clueworld-seeds
.PHONY: clueworld-seeds
clueworld-seeds: WORLDS = 170
clueworld-seeds: $(VENV)/.dev  ## the whole recipe over SEEDS, asked on held-out worlds, one table
	@ask() { $(BIN)/python -m vo3.clueworld.evaluate --worlds=$(WORLDS) --videos=out/clueworld-eval/videos "$$@"; }
	for seed in $(SEEDS); do
	  run=$(RUNS)/$$seed
	  $(call train,$$run,$$seed)
	  ask --workdir=$$run/asked --checkpoint=$$run/rl/export
	  ask --workdir=$$run/asked-sft --checkpoint=$$run/export
	done
	folders() { echo $(SEEDS:%=$(RUNS)/%/$$1/agent) | tr ' ' ,; }
	$(BIN)/python -m vo3.clueworld.tables "agent=$$(folders asked)" "before RL=$$(folders asked-sft)" | tee $(RUNS)/table.md

.PHONY: clueworld-baselines
clueworld-baselines: $(VENV)/.dev  ## train the one-turn baselines of the embedded model by the same recipe
	@for view in coarse middle fine coarse-only; do
	  $(BIN)/python -m vo3.clueworld.recipe --view $$view --workdir out/clueworld-$$view
	done

.PHONY: clueworld-pictures
clueworld-pictures: $(VENV)/.core  ## renew the pictures of docs/clueworld.md from a world and the training log
	$(BIN)/python -m vo3.clueworld.pictures --out docs

.PHONY: ablate
ablate: $(VENV)/.dev  ## the first ablation in the micro-world, one table
	$(BIN)/python -m benchmarks.ablate --config=configs/ablate.py --workdir=out/ablate

.PHONY: repository
repository:  ## REPOSITORY=you/vo3: write the address that this is published at into the notebooks and their badges
	@[[ "$(REPOSITORY)" =~ ^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$$ ]] || { echo "set REPOSITORY=owner/name"; exit 2; }
	before=$$(grep -oE 'research.google.com/github/[^/]+/[^/]+' README.md | head -1 | cut -d/ -f3-)
	sed -i "s#github\(.com\)\?/$$before#github\1/$(REPOSITORY)#g" README.md notebooks/*.ipynb

.PHONY: clean
clean:  ## remove what the other targets made
	rm -rf $(VENV) .venv-3.12 .venv-tfds .venv-beam .venv-maxtext .venv-lmms-eval .venv-vlmevalkit .cache out build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
