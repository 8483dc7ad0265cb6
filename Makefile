# Everything a user or a developer does here, each in a line or two; `make` lists it.
PREFIX ?= /usr/local
VENV ?= .venv
ARGS ?= trace tcpconnect --host
GIVEN = $(if $(filter file,$(origin ARGS)),,$(ARGS))
export PREFIX

TARGETS = help run install uninstall check test bench soak fuzz kernels kernel-shell apiserver venv
# Some of our folders are called almost as a target is, and make says of those that all is done.
$(foreach goal,$(filter-out $(TARGETS),$(MAKECMDGOALS)),\
	$(error Unknown target "$(goal)": `make` lists the targets))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' Makefile

run: install ## install what is missing and trace until Ctrl-C (root); ARGS="trace tcpconnect -c web" for another command
	@exec "$(PREFIX)/bin/ig" $(ARGS)

install: ## install ig and its dependencies (root)
	@sh scripts/setup install

uninstall: ## remove everything that install and test have installed (root)
	@sh scripts/setup uninstall

check: venv ## format, lint, types, import layers and unit tests (no root)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pytest tests/unit

test: ## install the test dependencies and run all tests with a real engine (root); PYTEST="-k name" for some
	@sh scripts/setup tests && sh scripts/venv "$(VENV)"
	PYTHONDONTWRITEBYTECODE=1 $(VENV)/bin/pytest -p no:cacheprovider $(PYTEST)

bench: ## measure the cost of tracing and snapshots (root); BASE=main compares with a commit, ONLY="CPU per event" some figures
	@sh scripts/setup tests && sh scripts/venv "$(VENV)"
ifdef BASE
	$(VENV)/bin/python -m tests.bench.compare "$(BASE)" --only "$(ONLY)" --rounds "$(or $(ROUNDS),9)"
else
	$(VENV)/bin/python -m tests.bench.bench_trace
	$(VENV)/bin/python -m tests.bench.bench_snapshot
	$(VENV)/bin/python -m tests.bench.bench_top
	$(VENV)/bin/python -m tests.bench.bench_index
endif

soak: ## trace containers under full load, and export counts, and account for each connection (root); SECONDS=60
	@sh scripts/setup tests && sh scripts/venv "$(VENV)"
	$(VENV)/bin/python -m tests.bench.soak --seconds "$(or $(SECONDS),600)"
	$(VENV)/bin/python -m tests.bench.soak_export --seconds "$(or $(SECONDS),600)"

fuzz: ## trace random connections and compare the events with what was done (root); SECONDS=60 SEED=1
	@sh scripts/setup tests && sh scripts/venv "$(VENV)"
	$(VENV)/bin/python -m tests.bench.fuzz --seconds "$(or $(SECONDS),60)" $(if $(SEED),--seed "$(SEED)")

kernels: ## run the tests on Debian's 5.10, 6.1, 6.12 and newest kernel in QEMU (root); KERNEL=6.1 for one, ARGS="-k name" or QUICK=1 for some
	@sh scripts/setup kernels && sh scripts/venv "$(VENV)"
	$(VENV)/bin/python -m tests.kernels --kernel "$(KERNEL)" $(if $(QUICK),--quick,$(if $(GIVEN),,--write)) -- $(GIVEN)

kernel-shell: ## a shell on that kernel (root); KERNEL=6.1
	@sh scripts/setup kernels && sh scripts/venv "$(VENV)"
	$(VENV)/bin/python -m tests.kernels --kernel "$(or $(KERNEL),6.1)" --shell

apiserver: ## build a real Kubernetes API server for the tests that skip without one: ten minutes (root)
	@sh scripts/setup apiserver

venv:
	@sh scripts/venv "$(VENV)"

.PHONY: $(TARGETS)
