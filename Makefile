# make demo: train all three models on the CPU. make test: run the tests. make notebooks: run the notebooks, keep outputs.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo test notebooks assets screenshots stamp clean .venv

demo: .venv
	$(RUN) transformer.py bert --preset small --out runs/bert
	$(RUN) transformer.py vit --preset small --out runs/vit
	$(RUN) transformer.py gpt --preset small --out runs/gpt
	@echo
	@$(RUN) -m utils.report runs/bert runs/vit runs/gpt

# One thread each for two workers: they would only wait for each other with more.
test: .venv
	$(RUN) -m ruff check .
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2

.venv: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt requirements-no-deps.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --requirement requirements-dev.txt --constraint constraints.txt
	$(RUN) -m pip install --quiet --no-deps --requirement requirements-no-deps.txt --constraint constraints.txt
	@touch .venv/installed

notebooks: .venv
	$(RUN) -m utils.notebooks

# The README's pictures: one drawn, the others taken from the notebooks.
assets: .venv
	$(RUN) -m utils.assets

# The widgets at work on the models of `make demo`, in Chromium.
screenshots: .venv
	$(RUN) -m pip install --quiet --requirement requirements-browser.txt --constraint constraints.txt
	$(RUN) -m utils.browser

# Writes this repository's OWNER/REPO (of `git remote`, or REPO=owner/name) into every badge and notebook.
stamp: .venv
	$(RUN) -m utils.stamp $(REPO)

clean:
	rm -rf .venv runs
