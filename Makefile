# make demo: install, then train all three models on the CPU. make lab: open the notebooks here. make test: run the tests.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo install lab test notebooks assets screenshots study stamp clean

demo: install
	@echo "1 of 3: BERT on Python's documentation, about 4 minutes on two cores"
	$(RUN) transformer.py bert --preset small --out runs/bert
	@echo "2 of 3: ViT on 5,000 handwritten digits, about 2 minutes"
	$(RUN) transformer.py vit --preset small --out runs/vit
	@echo "3 of 3: GPT on Python's documentation, about 4 minutes"
	$(RUN) transformer.py gpt --preset small --out runs/gpt
	@echo
	@$(RUN) -m utils.training.report runs/bert runs/vit runs/gpt

# The packages, once, in an environment of their own: activate it with `source .venv/bin/activate`.
install: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt requirements-no-deps.txt constraints.txt
	@echo "Installing the packages into .venv: a minute or two, once"
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --requirement requirements-dev.txt --constraint constraints.txt
	$(RUN) -m pip install --no-deps --requirement requirements-no-deps.txt --constraint constraints.txt
	@touch .venv/installed

# JupyterLab on the notebooks of this folder.
lab: install
	$(RUN) -m pip install --quiet jupyterlab --constraint constraints.txt
	$(RUN) -m jupyterlab notebooks

# Two processes with one thread each: with more threads they would wait for each other.
test: install
	$(RUN) -m ruff check .
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2

# Run the notebooks whole and keep their outputs.
notebooks: install
	$(RUN) -m utils.maintenance.notebooks

# The pictures in assets/: one drawn, the others taken from the notebooks.
assets: install
	$(RUN) -m utils.maintenance.assets

# Pictures of the widgets at work on the models of `make demo`, taken in Chromium.
screenshots: install
	$(RUN) -m pip install --quiet --requirement requirements-browser.txt --constraint constraints.txt
	$(RUN) -m utils.maintenance.browser

# The table of utils/training/README.md: what data of one's own lead to. About an hour for one seed on two cores.
study: install
	$(RUN) -m utils.maintenance.study

# Write this repository's OWNER/REPO (of `git remote`, or REPO=owner/name) into every badge and notebook.
stamp: install
	$(RUN) -m utils.maintenance.stamp $(REPO)

clean:
	rm -rf .venv runs
