# Two commands for every day: make demo, make test. The gate, .ci/run, adds make integration.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test integration lint wheel docs fuzz clean

# The installed package, not this source tree: python puts the current folder first.
demo: .venv-demo/ready
	mkdir -p demo
	cd demo && ../.venv-demo/bin/python -m poan_runtime.commands.demo --out .

# The plain install: numpy, nibabel, pillow, onnxruntime, each by its hash. No torch.
.venv-demo/ready: pyproject.toml requirements/plain.txt $(shell find poan_runtime -name '*.py' -o -name '*.onnx' -o -name '*.json')
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/plain.txt
	.venv-demo/bin/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps .
	touch $@

# A process for each core, each with whole files: what a file's tests share is made once.
test: .venv/ready
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m "not slow and not integration"

# What takes seconds each: real servers and schedulers, whole exports, kills, full disks.
integration: .venv/ready
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m "slow or integration"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A wheel in dist/, proven in an empty environment outside of the repository.
wheel:
	PYTHON=$(PYTHON) .ci/wheel

# The pages as a site in build/site; a dead link fails.
docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@echo build/site/index.html

.venv-docs/ready:
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check 'mkdocs-material>=9.5,<10' 'mkdocs<2'
	touch $@

# 100,000 spoilt headers, streams, manifests, vectors, graphs, checkpoints and DICOM files.
fuzz: .venv/ready
	$(BIN)/python -m tests.fuzz --cases 100000 --json benchmarks/results/fuzz.json

# torch is pinned, and installed first: a range would fetch a build with CUDA.
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[cpu,dicom,node,openvino,tensorrt-rtx-cu13,classical,train,export,bench,dev]'
	touch $@

clean:
	rm -rf .venv .venv-demo .venv-docs demo build dist *.egg-info
