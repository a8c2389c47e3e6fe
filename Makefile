# Every way to run something here; the README, CI and a desk use the same targets.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
DATA   := examples/avatars/data
FACES  := components/validate_data/face_detection_short_range.tflite
EXTRAS := data,training,evaluation,gate,registry,server,serving,avatars,cluster,containers,dev
# Two torch processes that share two cores need their threads told apart.
export OMP_NUM_THREADS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install engine data retrain shuffled plain serve images ui lint test test-all test-cluster test-containers test-drills test-servers servers fuzz tiny-models clean

help: ## List all targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

install: $(VENV)/.installed $(FACES) ## Create the virtual environment and install everything, pinned

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo 'installing into $(VENV), everything pinned: two to four minutes, a few GB'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

# The face detector, out of mediapipe's wheel, which brings much that is not needed here.
$(FACES): | $(VENV)/.installed
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
	  --platform manylinux_2_28_x86_64 --python-version 311 --dest build/faces mediapipe==0.10.21
	$(BIN)/python -m zipfile -e build/faces/mediapipe-*.whl build/faces
	cp build/faces/mediapipe/modules/face_detection/$(notdir $@) $@
	rm -r build/faces
	$(BIN)/python -m components.validate_data.faces

data: $(DATA)/new/metadata.jsonl $(DATA)/shuffled/metadata.jsonl ## Draw the portraits to train on

$(DATA)/new/metadata.jsonl: | $(VENV)/.installed
	$(BIN)/python -m examples.avatars.data --out $(DATA)/new

$(DATA)/shuffled/metadata.jsonl: | $(VENV)/.installed
	$(BIN)/python -m examples.avatars.data --out $(DATA)/shuffled --shuffle-captions

retrain: install data ## Run the main job on the embedded default: avatars
	$(BIN)/triptych retrain --config examples/avatars/retrain.yaml

shuffled: install data ## The same on shuffled captions, after retrain: the gate must reject it
	$(BIN)/triptych retrain --config examples/avatars/shuffled-captions.yaml

plain: install data ## The same without replay and selection, after retrain: the gate must not promote what forgets
	$(BIN)/triptych retrain --config examples/avatars/plain.yaml

images: install ## Build both images of the steps, on the Docker engine that runs
	$(BIN)/python -m infra.images.build

serve: install ## Serve the champion of the work folder: an HTTP API and a page, http://127.0.0.1:8000
	$(BIN)/triptych serve

ui: install ## MLflow's pages on what the runs left
	$(BIN)/triptych ui

lint: install ## Formatting, style, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

HERE := not containers and not servers and not drill

test: install data ## Most tests that need no container engine and no servers, in minutes
	$(BIN)/pytest -m '$(HERE) and not slow' --ignore=tests/apiserver --numprocesses 2 --dist loadgroup

test-all: install data ## All of them
	$(BIN)/pytest -m '$(HERE)' --ignore=tests/apiserver --numprocesses 2 --dist loadgroup

test-cluster: install ## The manifests and doctor on a real API server (KUBEBUILDER_ASSETS, TRIPTYCH_CRDS), submit on KFP's API
	$(BIN)/pytest tests/apiserver tests/cluster --ignore=tests/cluster/test_trainjob.py

test-containers: install data engine servers ## The pipeline in containers, and all that needs Debian's services
	$(BIN)/pytest -m '(containers or servers) and not drill' tests/containers tests/servers tests/serving

test-drills: install data engine servers ## What takes too long for every change: each step's container lost in both ways, an upgrade
	$(BIN)/pytest -m drill tests/containers tests/pipelines

test-servers: install servers ## The governed MLflow server and the page of serve: SQLite, PostgreSQL, S3, a browser
	$(BIN)/pytest -m servers tests/servers tests/serving

servers: # Debian's PostgreSQL and Chromium, where a root user lacks them
	{ ls /usr/lib/postgresql/*/bin/initdb && command -v chromium && command -v chromedriver; } > /dev/null 2>&1 || \
	{ apt-get update -q && apt-get install -q -y --no-install-recommends postgresql chromium chromium-driver; }

engine: # Tests' Docker engine: Debian's, and debootstrap, where a root user has neither and no engine is given
	test -n "$$DOCKER_HOST" || { command -v dockerd && command -v debootstrap; } > /dev/null || \
	{ apt-get update -q && apt-get install -q -y --no-install-recommends docker.io debootstrap; }

fuzz: install ## Feed broken images and metadata to their readers, each for FUZZ seconds (60)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz.images -max_total_time=$(or $(FUZZ),60)
	$(BIN)/python -m tests.fuzz.metadata -max_total_time=$(or $(FUZZ),60)

tiny-models: install ## Train the embedded default's models anew (about two hours)
	$(BIN)/python -m examples.avatars.train

clean: ## Remove what runs and builds left (ledger, keys and models too), not the virtual environment
	rm -rf .triptych build $(DATA)
