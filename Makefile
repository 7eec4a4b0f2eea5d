# Every command starts from a fresh clone: it makes a virtual environment and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
WHEELHOUSE ?= dist
SMOKE ?= oldest,newest
export MPLBACKEND ?= Agg

.PHONY: install demo test docs fuzz wheel sdist smoke lint format gpu-check bench bench-report ablate-report clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first: the kernels are built against the torch that is installed. Editable, so that a rebuild is incremental.
install: $(BIN)/python
	$(BIN)/python -m pip install --quiet "$(TORCH)" "setuptools>=77" wheel ninja
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[joint,bench,test,docs,wheel,lint]"
	$(BIN)/python -m cosegflow.info

demo: install
	$(BIN)/cosegflow demo --out report

test: export NVCC_APPEND_FLAGS = -Werror all-warnings
test: install
	$(BIN)/python -m pytest -n auto tests

# The pages of docs/ and the API as a site, build/docs/index.html. Warnings are errors.
docs: install
	$(BIN)/python -m sphinx -b html -W --keep-going -q -d build/doctrees docs build/docs

# The C++ entry points under random params and sanitizers, for SECONDS; half of it over the simulated CUDA kernels.
SECONDS ?= 600
SEED ?= $(shell date +%s)
fuzz: install
	for kind in cpu hostsim; do \
		"$$($(BIN)/python csrc/fuzz/build.py $$kind)" --seed $(SEED) --seconds $$(($(SECONDS) / 2)) || exit 1; \
	done

# A manylinux wheel, audited; build/lib is what setuptools collects it in, and never empties.
wheel: install
	rm -rf build/lib.* build/wheel $(WHEELHOUSE)/*.whl
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	$(BIN)/python tests/audit_wheel.py build/wheel/*.whl --out $(WHEELHOUSE)

sdist: install
	rm -rf $(WHEELHOUSE)/*.tar.gz
	$(BIN)/python -c "from setuptools.build_meta import build_sdist; build_sdist('$(WHEELHOUSE)')" > /dev/null
	@ls -l $(WHEELHOUSE)/*.tar.gz

# The wheel under the oldest and the newest torch and Python that there are (docs/wheels.md), in environments of its own.
smoke: wheel
	$(PYTHON) tests/install_matrix.py --wheel $(WHEELHOUSE)/*.whl --torch $(SMOKE)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell git ls-files 'csrc/*.h' 'csrc/*.cuh' 'csrc/*.cu' '*.cpp')

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell git ls-files 'csrc/*.h' 'csrc/*.cuh' 'csrc/*.cu' '*.cpp')

# On a machine with a GPU: tests, sanitizers and benchmarks on it, in MINUTES; call again to go on where it stopped.
# WHEEL=path takes a wheel that was built elsewhere; PYTHON is any python3 with torch >= 2.10.
MINUTES ?= 8
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py --minutes $(MINUTES) $(if $(WHEEL),--wheel $(WHEEL)) $(if $(ONLY),--only $(ONLY)) \
		$(if $(OUT),--out $(OUT)) $(if $(PEERS),--peers $(PEERS))

# On this machine's CPU (or GPU, where there is one); a CSV and a report below bench/.
bench: install
	$(BIN)/cosegflow bench

# Tables and plots of README and docs, from the committed files below benchmarks/results/.
bench-report: install
	$(BIN)/python -m benchmarks.publish
	$(BIN)/python -m benchmarks.check.verified
	$(BIN)/python -m benchmarks.model

# Tables and plots of docs/results.md, from the newest benchmarks/results/ablation_cpu_*.csv.
ablate-report: install
	$(BIN)/python -m cosegflow.ablation.report

clean:
	rm -rf build dist report bench .pytest_cache .mypy_cache .ruff_cache *.egg-info cosegflow/*.so cosegflow/_build_info.json
