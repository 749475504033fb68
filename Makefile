# The front door. Everything it makes is in .lab/ (or LAB_HOME) and runs/.
# A Python that Airflow and papermill support; name another with make PYTHON=/path/to/python3.12 …
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11; do \
	if $$p -c 'import venv, ensurepip' >/dev/null 2>&1; then echo $$p; exit; fi; done; echo python3)
override LAB_HOME := $(shell $(PYTHON) -c 'import os, sys; print(os.path.abspath(os.path.expanduser(sys.argv[1])))' "$(or $(LAB_HOME),.lab)")
export LAB_HOME
BIN := $(LAB_HOME)/control/bin

.DEFAULT_GOAL := help
.PHONY: help setup lab notebook test test-cluster lint lock clean

help:  ## Show what can be made
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22
	@echo "Then, for everything else: . .lab/control/bin/activate   and   labs --help   fab --list"

setup:  ## Make the control environment (once; the other targets do it by themselves)
	@$(PYTHON) provision/bootstrap.py

lab: setup  ## Run every lab that needs only this machine, and print where the report is
	@"$(BIN)/labs" run $(LABS)

notebook: setup  ## Start Airflow, on PostgreSQL unless another variant is installed, and open JupyterLab
	@said() { sed -n "s/^ \"$$1\": \"\(.*\)\",*$$/\1/p" "$(LAB_HOME)/installation.json" 2>/dev/null | grep . || echo "$$2"; }; \
	"$(BIN)/fab" install "$$(said variant postgres)" --target "$$(said target local)"
	@cd notebooks && "$(BIN)/jupyter" lab $$([ "$$(id -u)" != 0 ] || echo --allow-root)

test: setup  ## Run all tests: units, notebooks, and the labs on a real Airflow
	@"$(BIN)/ruff" check . && "$(BIN)/ruff" format --check . && "$(BIN)/python" -m pytest $(TESTS)

test-cluster: setup  ## Run the tests that bring up the three machines, with whichever provider there is
	@"$(BIN)/python" -m pytest $(or $(TESTS),tests/cluster $(wildcard tests/nodes))

lint: setup  ## Check and format the code, strip notebook outputs
	@"$(BIN)/ruff" check --fix . && "$(BIN)/ruff" format . && "$(BIN)/nbstripout" notebooks/*.ipynb

lock: setup  ## Resolve the locked requirements again
	@"$(BIN)/python" -m provision.lock_requirements

clean:  ## Stop everything and remove what was made (results in runs/ stay)
	@[ -x "$(BIN)/fab" ] || [ ! -d "$(LAB_HOME)" ] || $(MAKE) --no-print-directory setup
	@[ ! -e "$(LAB_HOME)/nodes" ] && [ ! -e "$(LAB_HOME)/vagrant" ] && [ ! -e .vagrant/machines ] || "$(BIN)/fab" destroy --target vagrant
	@[ ! -x "$(BIN)/fab" ] || "$(BIN)/fab" destroy
	@rm -rf "$(LAB_HOME)/control" "$(LAB_HOME)/lock"
	@[ "$$(ls -A "$(LAB_HOME)" 2>/dev/null)" != made-by-airflow-executor-labs ] || rm -r "$(LAB_HOME)"
	@echo "Results are kept in runs/."
