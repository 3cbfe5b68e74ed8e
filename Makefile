# Two commands do all the set-up:
#   make run    the runtime alone (no torch), the model parts, and a conversation about two photographs
#   make test   everything that the test suite needs, then the suite
PYTHON ?= python3
VENV ?= .venv
TEST_VENV ?= .venv-test
TORCH ?= torch==2.13.0

.PHONY: run test lint clean

run: $(VENV)/.ready
	$(VENV)/bin/sensorium ask "Is there an apple in this picture? Answer yes or no." -a examples/apple.jpg --show
	$(VENV)/bin/sensorium ask "Is there an apple in this picture? Answer yes or no." -a examples/cat.jpg --show
	$(VENV)/bin/sensorium ask "What animal is this?" -a examples/cat.jpg
	$(VENV)/bin/sensorium describe examples/apple.jpg examples/cat.jpg
	@echo 'Try your own: $(VENV)/bin/sensorium ask "What is this?" -a PICTURE'

test: $(TEST_VENV)/.ready
	@$(TEST_VENV)/bin/ruff check src tests benchmarks
	@$(TEST_VENV)/bin/mypy
	@$(TEST_VENV)/bin/pytest

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Sensorium needs Python 3.10 or newer; set PYTHON=python3.x."; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing; on Debian: apt-get install python3-venv."; exit 1; }
	@echo "Installing the runtime into $(VENV) ..."
	@$(VENV)/bin/pip install -q -e .
	@touch $@

$(TEST_VENV)/.ready: pyproject.toml
	@test -x $(TEST_VENV)/bin/python || $(PYTHON) -m venv $(TEST_VENV)
	@echo "Installing the test environment into $(TEST_VENV) ..."
	@$(TEST_VENV)/bin/pip install -q "$(TORCH)"
	@$(TEST_VENV)/bin/pip install -q -e ".[train,hf,data,ray,scale,speech,dev]"
	@touch $@

lint:
	@$(TEST_VENV)/bin/ruff check src tests benchmarks
	@$(TEST_VENV)/bin/ruff format --check src tests benchmarks
	@$(TEST_VENV)/bin/mypy

clean:
	rm -rf $(VENV) $(TEST_VENV)
