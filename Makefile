# Everything this project can do. `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where pip finds torch. On Linux the default index's build includes CUDA (2 GB). Without a GPU, set
# TORCH_INDEX=https://download.pytorch.org/whl/cpu, which may lack other packages in the versions of CONSTRAINTS.
TORCH_INDEX ?=
CONSTRAINTS := deploy/constraints.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)
MODEL ?= wgan
# The model's own options, for `make train` and `make evaluate`. Some models need them: style needs --styles or
# --add-style, the painter --content and --style.
OPTIONS ?=

.PHONY: help setup demo test check fix generate serve train evaluate bench load-tune overload load load-report images constraints clean

help:  ## this list
	@grep -E '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | awk -F ':.*  ## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# Each stamp is newer than the files it was installed from, so that a second call installs nothing. Without
# python3-venv Debian creates an environment without pip, which is completed once python3-venv is installed.
$(VENV)/.serving: pyproject.toml clients/pyproject.toml $(CONSTRAINTS)
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PIP) '.[serving]' --editable './clients[video]'
	touch $@

$(VENV)/.everything: $(VENV)/.serving
	$(if $(TORCH_INDEX),$(PIP) --no-deps 'torch==2.13.0' --index-url $(TORCH_INDEX))
	$(PIP) '.[dev]' --editable './clients[video]'
	touch $@

setup: $(VENV)/.everything  ## install everything into .venv: serving, clients, training, tests

demo: $(VENV)/.serving  ## the shortest way to a picture: start the server, render out/walk.gif, stop
	$(BIN)/python clients/walk.py --steps 20 --out out/walk.gif

# Tests run in the order of their files, because the e2e tests, the longest, then come first.
test: check  ## install everything, check, run all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.everything  ## check lint, types and generated files; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m training.generate --check

fix: $(VENV)/.everything  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(VENV)/.everything  ## regenerate config.pbtxt, Jobs and the SDK's tensor table from the specs
	$(BIN)/python -m training.generate

serve: $(VENV)/.serving  ## serve the committed models on 127.0.0.1:8000 (HTTP), :8001 (gRPC), :8002 (metrics)
	$(BIN)/python -m serving.embedded

train: $(VENV)/.everything  ## train MODEL=wgan into runs/, or resume; some models need OPTIONS='--styles DIR'
	$(BIN)/python -m training.run $(MODEL) --resume $(OPTIONS)

evaluate: $(VENV)/.everything  ## evaluate the last checkpoint of MODEL=wgan, with the OPTIONS that it was trained with
	$(BIN)/python -m training.run $(MODEL) --evaluate runs/$(MODEL)/checkpoints/last.pt $(OPTIONS)

bench: $(VENV)/.everything  ## the ratios of the README: serving against ONNX Runtime, training against plain float32
	$(BIN)/python -m tests.load.bench_serving
	$(BIN)/python -m tests.load.bench_serving --model classifier
	$(BIN)/python -m tests.load.bench_serving --model style
	$(BIN)/python -m tests.load.bench_serving --model upscaler
	$(BIN)/python -m tests.load.bench_serving --model colorizer
	$(BIN)/python -m tests.load.bench_start
	$(BIN)/python -m tests.load.bench_quantized
	$(BIN)/python -m tests.load.bench_training
	$(BIN)/python -m tests.load.bench_training --network four-conv --out out/bench_four_conv.png
	$(if $(ATELIER_DATA),$(BIN)/python -m tests.load.bench_painter)
	$(if $(ATELIER_DATA),$(BIN)/python -m tests.load.bench_fast_slow)

load-tune: $(VENV)/.everything  ## find the best batching, instances and threads for MODEL=wgan; writes tests/load/evidence
	$(BIN)/python -m tests.load.tune $(MODEL)

overload: $(VENV)/.everything  ## ten minutes at twice the capacity of MODEL=wgan: goodput and latency
	$(BIN)/python -m tests.load.overload $(MODEL)

load: $(VENV)/.everything  ## MODEL=wgan under load: 1, 8, 32 callers, then rates up to what these reached; page in out/load
	$(BIN)/python -m tests.load --model $(MODEL)

load-report: $(VENV)/.everything  ## every way to serve every model, side by side (35 minutes), into README and deploy/README
	$(BIN)/python -m tests.load --report --write README.md --write deploy/README.md

images:  ## build the CPU images with podman or docker
	deploy/images/build.sh

# In an environment of its own, as the packages in $(VENV) may be years old. A CPU build of torch says so in its version.
constraints:  ## rewrite deploy/constraints.txt: the newest packages that pyproject.toml allows; test afterwards
	rm -rf out/newest
	$(PYTHON) -m venv out/newest
	$(if $(TORCH_INDEX),out/newest/bin/python -m pip install --quiet --no-deps 'torch==2.13.0' --index-url $(TORCH_INDEX))
	out/newest/bin/python -m pip install --quiet '.[dev]' './clients[local,video]'
	{ grep '^#' $(CONSTRAINTS); out/newest/bin/python -m pip freeze --all | sed -E '/ @ /d; /^(pip|setuptools|tensorrt)/d; s/[+]cpu$$//'; } > out/newest/constraints.txt
	mv out/newest/constraints.txt $(CONSTRAINTS)

clean:  ## remove .venv and out/; runs/ stays
	rm -rf $(VENV) out
