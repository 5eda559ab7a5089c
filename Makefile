# Needs git, make and a Python of 3.11 or later. Node.js and a browser are brought along where the
# machine has none. `make help` lists the targets.

PYTHON   ?= python3
HOST     ?= 127.0.0.1
PORT     ?= 8000
DATABASE ?= sqlite:///var/reattach.db
SEEDS    ?= 200
SOAK     ?= 600
CONNECTIONS ?= 2000
KILLS    ?= 300
ROUNDS   ?= 3
JOBS     ?= 3
APP      ?= examples.gap_resolution.app:reattach

BIN := .venv/bin
# Node.js of the machine, or of PyPI: tools/node.py decides.
NPM  := $(BIN)/python tools/node.py npm
NODE := $(BIN)/python tools/node.py node
PIP  := $(BIN)/python -m pip --disable-pip-version-check

# Every file below a folder that is not itself made from others.
sources = $(shell find $(1) -type d \( -name node_modules -o -name dist \) -prune -o -type f -print 2>/dev/null)

CLIENT := packages/client
# Its tests that start a server.
LIVE   := live.test.ts sse.test.ts token.test.ts anonymous.test.ts
REACT  := packages/react
PAGE   := examples/gap_resolution
INSPECTOR := packages/inspector
INSPECTOR_PAGES := src/reattach/server/inspector/pages
# A package is built as soon as it is there.
BUILT  := $(if $(wildcard $(CLIENT)/package.json),$(CLIENT)/dist/index.js) \
          $(if $(wildcard $(REACT)/package.json),$(REACT)/dist/index.js) \
          $(if $(wildcard $(PAGE)/web/package.json),$(PAGE)/pages/index.html) \
          $(if $(wildcard $(INSPECTOR)/package.json),$(INSPECTOR_PAGES)/index.html)

.PHONY: help install run run-full test test-full test-browsers simulate soak storm history bench lint size format types reference wheel pins lock clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | \
	    while IFS='|' read -r target what; do printf '%-16s%s\n' "$$target" "$$what"; done

install: .venv/.installed node_modules/.installed $(BUILT) ## everything into .venv and node_modules; packages and pages built

run: install ## the example at http://HOST:PORT (127.0.0.1:8000; HOST=0.0.0.0 serves a phone)
	@mkdir -p var
	$(BIN)/reattach serve --app $(APP) --host $(HOST) --port $(PORT) --database $(DATABASE)

run-full: install ## the same on PostgreSQL and Valkey, with two nodes: at PORT and the one after it
	$(BIN)/python -m tools.run_full --app $(APP) --host $(HOST) --port $(PORT)

test: install ## every test: vitest, then pytest with a real browser and real kills
	$(NODE) tools/chromium.mjs
	$(NPM) test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# A whole Chromium and Firefox are fetched into .cache where the machine has none.
test-browsers: install ## what needs a whole Chromium, and Firefox: hidden, throttled, frozen, stopped pages
	$(BIN)/python tools/browsers.py
	REATTACH_TEST_BROWSERS=1 $(BIN)/python -m pytest tests/browser/test_life.py tests/browser/test_lines.py

# Where a test calls something the server it is two nodes then, and who comes to it comes to either.
test-full: install ## the tests of servers, clients and pages on PostgreSQL and Valkey, with two nodes
	$(NODE) tools/chromium.mjs
	REATTACH_TEST_STORE=full $(BIN)/python -m pytest -n $(JOBS) --dist loadfile \
	    tests/server tests/client tests/examples tests/faults tests/browser
	$(BIN)/python -m tests.support.live_full run $(BIN)/python tools/node.py \
	    npx vitest run $(addprefix $(CLIENT)/test/,$(LIVE))

# One seed in ten is played by the built TypeScript client.
simulate: install ## SEEDS random stories (200) in which everything breaks; FIRST=n begins at a seed
	$(BIN)/python -m reattach.testing.simulator --seeds $(SEEDS) $(if $(FIRST),--first $(FIRST)) \
	    --typescript "$(NODE) $(CLIENT)/sim/peer.mjs"

soak: install ## SOAK seconds (600) of load while nodes, Valkey and PostgreSQL are killed; KILLS (300) under a browser
	REATTACH_SOAK_SECONDS=$(SOAK) $(BIN)/python -m pytest tests/faults/test_soak.py tests/runtime/test_long_history.py \
	    tests/faults/test_live_nodes.py
	REATTACH_TEST_KILLS=$(KILLS) $(BIN)/python -m pytest -s tests/browser/test_kills.py tests/browser/test_lines.py
	REATTACH_TEST_NAP=60 $(BIN)/python -m pytest tests/browser/test_life.py -k stopped

storm: install ## CONNECTIONS (2000) come back while both nodes are restarted, one after the other
	REATTACH_STORM_CONNECTIONS=$(CONNECTIONS) $(BIN)/python -m pytest tests/faults/test_storm.py

# `make test` plays the same at a small size, and without the million.
history: install ## versions, restores, erasure and storage at full size: 50 kills, 1,000,000 commits
	REATTACH_TEST_HISTORY=2000 REATTACH_TEST_MOMENTS=50 REATTACH_TEST_WRITES=60 REATTACH_TEST_COMMITS=1000000 \
	    $(BIN)/python -m pytest -s tests/faults/test_history.py tests/faults/test_restore_storm.py \
	    tests/faults/test_erasure.py tests/faults/test_storage.py

# A minute, most of it to fill the database.
inspect-many: install ## how long the inspector takes with 100,000 sessions, one of 50,000 commits
	REATTACH_INSPECT_SESSIONS=100000 $(BIN)/python -m pytest tests/server/test_inspector_size.py

# Medians over ROUNDS, on an otherwise idle machine: about seven minutes.
bench: install ## how fast it is on this machine, into docs/performance.md
	$(BIN)/python -m bench --rounds $(ROUNDS)

lint: install ## style and types of Python and TypeScript; a warning is an error
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/wire_types.py --check
	$(BIN)/python tools/cli_reference.py --check
	$(NPM) run lint
	$(NPM) run check
	$(NPM) run packages
	$(NPM) run size
	$(NODE) tools/reference.mjs --check

size: install ## what the client and its React adapter cost a page, against their bounds
	$(NPM) run size -- --report

format: install ## puts the sources in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(NPM) run format

types: install ## the client's message types and docs/cli.md anew, after a change in what they are made of
	$(BIN)/python tools/wire_types.py
	$(BIN)/python tools/cli_reference.py

reference: install ## docs/reference-*.md anew, after a change in a docstring of the packages
	$(NODE) tools/reference.mjs

wheel: install ## dist/*.whl, with the built pages inside
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

pins: ## constraints.txt anew, with the newest versions that pyproject.toml allows
	rm -rf .cache/pins
	$(PYTHON) -m venv .cache/pins
	.cache/pins/bin/python -m pip --disable-pip-version-check install --quiet -e '.[dev,examples,node]'
	{ sed -n '/^#/p' constraints.txt; \
	    .cache/pins/bin/python -m pip --disable-pip-version-check freeze --exclude-editable; \
	} > .cache/pins/constraints.txt
	mv .cache/pins/constraints.txt constraints.txt
	rm -rf .cache/pins

lock: .venv/.installed ## package-lock.json after a change in a package.json
	$(NPM) install --package-lock-only

clean: ## removes what was installed and built; keeps var/, where the data is
	rm -rf .venv node_modules .cache dist .hypothesis packages/*/dist packages/*/node_modules \
	    examples/*/pages examples/*/web/node_modules $(INSPECTOR_PAGES)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Reattach needs Python 3.11 or later; %s is %s. Name another one: make PYTHON=python3.12 ..." % (sys.executable, sys.version.split()[0]))'
	@# Half an environment, or one whose Python is gone, is made anew.
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(PIP) install --quiet -c constraints.txt hatchling editables
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[dev,examples]'
	touch $@

node_modules/.installed: .venv/.installed .npmrc package.json package-lock.json $(wildcard packages/*/package.json examples/*/web/package.json)
	$(NPM) ci
	touch $@

$(CLIENT)/dist/index.js: node_modules/.installed tsconfig.base.json $(call sources,$(CLIENT))
	$(NPM) run build --workspace $(CLIENT)
	touch $@

$(REACT)/dist/index.js: $(CLIENT)/dist/index.js $(call sources,$(REACT))
	$(NPM) run build --workspace $(REACT)
	touch $@

$(INSPECTOR_PAGES)/index.html: node_modules/.installed tsconfig.base.json $(call sources,$(INSPECTOR))
	$(NPM) run build --workspace $(INSPECTOR)
	touch $@

$(PAGE)/pages/index.html: $(CLIENT)/dist/index.js $(REACT)/dist/index.js $(call sources,$(PAGE)/web)
	$(NPM) run build --workspace $(PAGE)/web
	touch $@
