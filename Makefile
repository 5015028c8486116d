# Every target makes its own virtual environment in .venv the first time and uses it again afterwards.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2
PYTEST_FLAGS ?=
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo demo-atari docs test test-fast format lint type venv emulators
.DELETE_ON_ERROR:

help:
	@echo "make demo        compress the teacher that ships with the project and show the result"
	@echo "make demo-atari  the same for Pong's nano (some minutes)"
	@echo "make test        run every test (PYTEST_FLAGS=... is handed on, WORKERS=2 processes)"
	@echo "make test-fast   the same without the tests that are marked as slow"
	@echo "make format lint type"
	@echo "make docs        write the site to build/site; a warning is an error"
	@echo "make emulators   compilers, emulators, node and a browser, from Debian (as root): their tests skip without"

$(READY): setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[all]"
	touch $@

venv: $(READY)

demo: $(READY)
	$(BIN)/python examples/demo.py

demo-atari: $(READY)
	$(BIN)/python examples/demo.py --atari --out out/demo-atari

# one thread per process: the networks are tiny, and the processes are the parallelism
test test-fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --processor-time $(FAST) $(PYTEST_FLAGS)

test-fast: FAST := -m "not slow"

format: $(READY)
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

# mypy checks that the functions and arguments that benchmarks call exist. It does not check the types inside benchmarks
LOOSE := arg-type assignment import-untyped index method-assign misc operator return-value union-attr unused-ignore var-annotated

type: $(READY)
	$(BIN)/mypy sb3_qpd
	$(BIN)/mypy benchmarks --exclude imitation_peer $(addprefix --disable-error-code=,$(LOOSE))

docs: $(READY)
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/site

# what the tests of exports and of the page use where it is there
emulators:
	apt-get update -qq
	apt-get install -qq -y --no-install-recommends clang gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm \
		gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf qemu-system-misc qemu-user chromium nodejs \
		gcc-avr avr-libc simavr libsimavr-dev arduino-core-avr gcc-xtensa-lx106 picolibc-xtensa-lx106-elf
	apt-get install -qq -y --no-install-recommends micropython || echo "no micropython in this Debian: its tests skip"
