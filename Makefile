# The one source of commands, for people, hooks and CI alike.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format setup lock

demo: setup ## sets up, then runs the whole line on the built-in demo shop
	$(BIN)/rankyard demo

test: setup ## sets up, then runs every test
	$(BIN)/pytest -q

check: setup ## format, lint, types, import contracts, dead code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture

format: setup ## puts the code into its one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: .venv/ready ## .venv from requirements.lock, and the command .venv/bin/rankyard

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rankyard needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; call make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv || { echo "python3 -m venv failed: install your system'\''s venv package (Debian: python3-venv)"; exit 2; }
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	@command -v java > /dev/null || echo "no Java: training.engine spark cannot run, its test is skipped (Debian: openjdk-17-jre-headless)"
	@command -v redis-server > /dev/null || echo "no redis-server: the tests of the shared cache are skipped (Debian: redis-server)"
	@command -v promtool > /dev/null || echo "no promtool: the tests of deploy/ are skipped (Debian: prometheus)"
	touch .venv/ready

lock: ## resolves pyproject.toml anew, in a clean environment, into requirements.lock
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --disable-pip-version-check --quiet '.[serve,redis,otel,numba,train,spark,triton,dev]'
	.venv-lock/bin/python -m pip freeze --exclude rankyard | sed -E 's/^(torch==[0-9.]+)\+cpu/\1/' > requirements.lock
	rm -rf .venv-lock
