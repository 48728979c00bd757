# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps

.PHONY: demo test equivalence check clean install

demo: $(STAMPS)/demo
	$(BIN)/retain demo

test: $(STAMPS)/demo $(STAMPS)/browser
	$(BIN)/python -m pytest -q

# The runs that must agree, as a table of deviations, each with a planted fault; part of `make test`.
equivalence: $(STAMPS)/demo
	$(BIN)/python -m pytest -q tests/equivalence

check: $(STAMPS)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(STAMPS)/dev

# torch first and alone: then a CPU wheel is taken where pip finds one.
$(STAMPS)/torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	$(BIN)/pip install --quiet $$(grep '^torch==' constraints.txt)
	touch $@

$(STAMPS)/dev: $(STAMPS)/torch pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

$(STAMPS)/demo: $(STAMPS)/dev requirements-demo.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements-demo.txt
	touch $@

# One test opens the report in a browser. Where nobody can install one, it says so and is skipped.
APT := DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -q -y -o Acquire::Retries=1 -o Acquire::http::Timeout=20
BROWSER := chromium chromium-driver

$(STAMPS)/browser: $(STAMPS)/torch
	command -v chromedriver > /dev/null || \
	  { test "$$(id -u)" = 0 && { $(APT) install $(BROWSER) || { $(APT) update && $(APT) install $(BROWSER); }; } > /dev/null; } || \
	  echo "no chromium and chromedriver here: the browser test will be skipped"
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
