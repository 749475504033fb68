# The front door. Everything it makes is in .lab/ (or LAB_HOME) and runs/.
LAB_HOME ?= $(CURDIR)/.lab
export LAB_HOME
# A Python that Airflow and papermill support; name another with make PYTHON=/path/to/python3.12 …
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11; do \
	if $$p -c 'import venv, ensurepip' >/dev/null 2>&1; then echo $$p; exit; fi; done; echo python3)
BIN := $(LAB_HOME)/control/bin

.DEFAULT_GOAL := help
.PHONY: help setup lab notebook test lint lock clean

help:  ## Show what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo "Then, for everything else: . .lab/control/bin/activate   and   labs --help   fab --list"

setup:  ## Make the control environment (once; the other targets do it by themselves)
	@$(PYTHON) provision/bootstrap.py

lab: setup  ## Run every lab that needs only this machine, and print where the report is
	@$(BIN)/labs run $(LABS)

notebook: setup  ## Install Airflow if it is not there, and open JupyterLab
	@test -f "$(LAB_HOME)/installation.json" || $(BIN)/fab install postgres
	@cd notebooks && $(BIN)/jupyter lab

test: setup  ## Run all tests: units, notebooks, and the labs on a real Airflow
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python -m pytest $(TESTS)

lint: setup  ## Check and format the code, strip notebook outputs
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/nbstripout notebooks/*.ipynb

lock: setup  ## Resolve the locked requirements again
	@$(BIN)/python -m provision.lock_requirements

clean:  ## Stop everything and remove what was made (results in runs/ stay)
	@if [ -x "$(BIN)/fab" ]; then $(BIN)/fab destroy; \
	elif [ -d "$(LAB_HOME)" ]; then $(MAKE) --no-print-directory setup && $(BIN)/fab destroy; fi
	@rm -rf "$(LAB_HOME)/control" "$(LAB_HOME)/lock"
	@rmdir "$(LAB_HOME)" 2>/dev/null || true
	@echo "Results are kept in runs/."
