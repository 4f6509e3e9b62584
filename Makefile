PYTHON ?= python3
VENV ?= .venv
VENV_PATH := $(abspath $(VENV))
BIN := $(VENV_PATH)/bin
PINS := setup.cfg pyproject.toml constraints.txt

.PHONY: demo test lint types

demo: $(VENV_PATH)/demo.stamp
	$(BIN)/sbi-run

test: lint types
	$(BIN)/pytest

lint: $(VENV_PATH)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy knows no package_dir, so it reads the rooms through links, arranged as they are installed
types: $(VENV_PATH)/test.stamp
	rm -rf $(VENV_PATH)/types
	mkdir -p $(VENV_PATH)/types/sbi_core
	ln -s $(CURDIR)/sbi_core/* $(CURDIR)/simulators $(CURDIR)/estimators $(CURDIR)/design $(CURDIR)/conf $(VENV_PATH)/types/sbi_core
	cd $(VENV_PATH)/types && $(BIN)/mypy --config-file $(CURDIR)/setup.cfg --cache-dir $(VENV_PATH)/mypy -p sbi_core

$(VENV_PATH)/demo.stamp: $(PINS)
	$(PYTHON) -m venv $(VENV_PATH)
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV_PATH)/test.stamp: $(PINS)
	$(PYTHON) -m venv $(VENV_PATH)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@
