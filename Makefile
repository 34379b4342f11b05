# make figures   everything from nothing: environment, executed notebooks, figures/
# make test      the same environment; lint, tests, notebooks
# make lab       JupyterLab on the notebooks
# make browser   every notebook run and every widget used in a headless Chromium, which must be installed (about half
#                an hour on 2 cores); screenshots in build/browser/
# make docs      the reference of the library out of its docstrings, in build/docs/ (offline)
# make wheel     the wheel in a new environment elsewhere, without extras: it restores a picture there
# make methods   every method tuned alike, three seeds, from 64 crops, at equal cost, and from 256 to 1024 crops:
#                figures/methods*.csv (three and a half hours)
# make stability PHOTOGRAPHS=FOLDER   DQC with five seeds on three models, from two budgets: figures/stability*.csv (an hour
#                and three quarters, and a quarter to train the third)
# make table2 REALSR=FOLDER   the paper's rows on the bundled pictures and RealSR's: figures/table2*.csv (12 minutes)
# make table2_whole REALSR=FOLDER   the same on 25 of RealSR's pictures, whole: figures/table2_whole*.csv (an hour)
# make lowbits   every method at 4 to 2 bits, three seeds: figures/low_bits*.csv (an hour)
# make timesteps PHOTOGRAPHS=FOLDER   two methods at four timesteps, three seeds: figures/timesteps*.csv (a quarter of an hour)
# make mixed     two recipes of mixed widths beside W4A4 and W2A2, three seeds: figures/mixed.csv (20 minutes, after lowbits)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export HF_HUB_DISABLE_TELEMETRY = 1
export PYTHONWARNINGS = ignore::DeprecationWarning
# Numbers depend on it in their last bits; and tensors are so small that a second thread mostly waits.
export OMP_NUM_THREADS = 1
export PASSIONSR_STORE = $(CURDIR)/build/store
MODULES = $(subst /,.,$(basename $(filter-out %__init__.py,$(wildcard passionsr_lab/*/*.py))))
NOTEBOOKS := $(sort $(wildcard notebooks/*.py))

.PHONY: figures test lab lint unit notebooks methods stability table2 table2_whole lowbits timesteps mixed slow browser docs wheel clean

figures: $(READY)
	printf '%s\n' $(NOTEBOOKS) | xargs -n 1 -P 2 $(BIN)/python -m passionsr_lab.tools.notebooks refresh

test: lint unit notebooks

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Tests and notebooks run in two processes of one thread each.
unit: export OMP_WAIT_POLICY = passive
unit: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile tests
	$(BIN)/python -m pytest -n 2 --doctest-modules passionsr_lab

notebooks: $(READY)
	$(BIN)/python -m pytest -n 2 --nbmake --nbmake-timeout=900 notebooks
	$(BIN)/python -m passionsr_lab.tools.notebooks check $(NOTEBOOKS)

# Many pairs once, not few of them often: with other pairs a calibration then ends nearly as well.
PAIRS := --pairs 64 --epochs 1
ALL := maxmin,let,let+bias,lbq,lbq+let,passionsr-strict,passionsr,passionsr+e2e,lsq,lsq+,efficientdm,svdquant
TRAINED := lbq,lbq+let,passionsr-strict,passionsr,passionsr+e2e,lsq,lsq+,efficientdm
LONGEST := lbq,lbq+let,passionsr,lsq,efficientdm
LONG = $(BIN)/python -m passionsr_lab compare --epochs 1 --recipes W6A6 --tuned figures/tuning.csv
TABLE := --seeds 3 --jobs 2 --csv figures/methods
methods: $(READY)
	$(BIN)/python -m passionsr_lab tune $(PAIRS) --methods $(ALL) --jobs 2 --csv figures/tuning.csv
	$(BIN)/python -m passionsr_lab compare $(PAIRS) --methods $(ALL) --tuned figures/tuning.csv $(TABLE).csv
	$(BIN)/python -m passionsr_lab compare $(PAIRS) --methods $(TRAINED),svdquant --tuned figures/tuning.csv --cost passionsr \
	    $(TABLE)_cost.csv
	$(BIN)/python -m passionsr_lab compare $(PAIRS) --methods official,lsq-published,efficientdm-published \
	    --recipes W6A6 $(TABLE)_published.csv
	for pairs in 256 512; do $(LONG) --pairs $$pairs --methods $(TRAINED) $(TABLE)_$$pairs.csv || exit; done
	$(LONG) --pairs 1024 --methods $(LONGEST) $(TABLE)_1024.csv
	$(BIN)/python -m passionsr_lab tune --methods q-diffusion --jobs 2 --csv figures/tuning_q_diffusion.csv
	$(BIN)/python -m passionsr_lab compare --methods q-diffusion --tuned figures/tuning_q_diffusion.csv \
	    $(TABLE)_q_diffusion.csv

# Five seeds, of the embedded model at two timesteps and of one of other widths, from two budgets; two threads; and, with the
# same pairs for all, what the order of steps does.
# PHOTOGRAPHS is a folder of photographs of at least 256 x 256 pixels, such as BSDS500's.
STABLE = $(BIN)/python -m passionsr_lab compare --epochs 1 --jobs 2 --csv figures/stability
build/narrow:
	$(BIN)/python -m passionsr_lab train --images $(PHOTOGRAPHS) --out $@ --shape narrow --part 0.1
stability: $(READY) build/narrow
	$(STABLE).csv --pairs 64 --model tiny,tiny@249,build/narrow --methods let,let+bias,passionsr --seeds 5
	OMP_WAIT_POLICY=passive $(STABLE)_threads.csv --pairs 64 --model tiny,build/narrow --recipes W6A6 --methods passionsr \
	    --seeds 5 --threads 1,2
	$(STABLE)_256.csv --pairs 256 --model tiny,tiny@249,build/narrow --methods let,passionsr,passionsr+e2e --seeds 5
	$(STABLE)_order.csv --pairs 256 --pairs-seed 0 --model tiny,tiny@249,build/narrow --methods passionsr --seeds 5

# The paper's Table 2, with LET's start, joint training and SVDQuant; Q-Diffusion from the pairs that its rates were chosen
# with.  REALSR is the folder of RealSR's test pairs (lr/ and hr/): centre crops of all, or every fourth whole, none of
# those that `tools.transfer` looks at.
ROWS := FP,PassionSR-FP,maxmin,let,lsq,efficientdm,svdquant,lbq+let,passionsr
TABLE2 = $(BIN)/python -m passionsr_lab table2 --bits W8A8,W6A6,W4A4 --size 64 --protocol offline --jobs 2
CROPS = --datasets bundled,RealSR=$(REALSR) --crop 128
PART := build/whole_pairs
WHOLE = --datasets RealSR=$(PART)
define paper
	$(TABLE2) $(2) $(PAIRS) --methods $(ROWS) --tuned figures/tuning.csv --out build/$(1)
	$(TABLE2) $(2) --pairs 16 --methods q-diffusion --tuned figures/tuning_q_diffusion.csv --out build/$(1)_q
	cd build; tail -n +3 $(1)_q/table2.csv | cat $(1)/table2.csv - > ../figures/$(1).csv
	cd build; tail -n +2 $(1)_q/table2_means.csv | cat $(1)/table2_means.csv - > ../figures/$(1)_means.csv
endef
table2: $(READY)
	$(call paper,$@,$(CROPS))
table2_whole: $(READY)
	rm -rf $(PART)
	for side in lr hr; do mkdir -p $(PART)/$$side; ls $(REALSR)/$$side | awk 'NR % 4 == 2' \
	    | xargs -I NAME ln -s $(abspath $(REALSR))/$$side/NAME $(PART)/$$side || exit; done
	$(call paper,$@,$(WHOLE))

# Methods for few bits are tuned at W4A4, the others have the rates of `make methods`.
FEW := qartsr,quantvsr,best-merged,best
LOW := maxmin,let,passionsr,lsq,efficientdm,svdquant,$(FEW)
BOTH := --tuned figures/tuning.csv --tuned figures/tuning_low.csv --seeds 3 --jobs 2
lowbits: $(READY)
	$(BIN)/python -m passionsr_lab tune $(PAIRS) --recipes W4A4 --methods $(FEW) --jobs 2 --csv figures/tuning_low.csv
	$(BIN)/python -m passionsr_lab compare $(PAIRS) --recipes W4A4,W3A3,W2A2 --methods $(LOW) $(BOTH) \
	    --csv figures/low_bits.csv
	$(BIN)/python -m passionsr_lab compare --recipes W4A4,W3A3,W2A2 --methods q-diffusion \
	    --tuned figures/tuning_q_diffusion.csv --seeds 3 --jobs 2 --csv figures/low_bits_q_diffusion.csv

# The variants' last layers are not those of t = 999, they were fitted; `refit` is fitted alike, at t = 998, which is the
# same to a network: what differs between it and the others is the timestep alone.
REFIT := build/refit/timesteps/998.safetensors
$(REFIT): $(READY)
	rm -rf build/refit; mkdir -p build; cp -r passionsr_lab/tiny build/refit
	$(BIN)/python -m passionsr_lab train --images $(PHOTOGRAPHS) --start build/refit --out build/refit --timestep 998
TIMES = $(BIN)/python -m passionsr_lab compare $(PAIRS) --methods let,passionsr --seeds 3 --jobs 2 --csv figures/timesteps
timesteps: $(READY) $(REFIT)
	$(TIMES).csv --model tiny,tiny@499,tiny@249,tiny@1
	$(TIMES)_refit.csv --model build/refit@998

MIXED := let,passionsr,efficientdm,svdquant,quantvsr,best
mixed: $(READY)
	$(BIN)/python -m passionsr_lab mixed --budget bit_operations=2.94e12 --name "mixed 4" --out figures/mixed_4.json
	$(BIN)/python -m passionsr_lab mixed --widths 2,3,4,6,8 --budget bit_operations=1.35e12 --name "mixed 2" \
	    --out figures/mixed_2.json
	$(BIN)/python -m passionsr_lab compare $(PAIRS) --recipes W4A4,figures/mixed_4.json,W2A2,figures/mixed_2.json \
	    --methods $(MIXED) $(BOTH) --csv figures/mixed.csv

slow: $(READY)
	$(BIN)/python -m pytest -m slow

browser: $(READY)
	$(BIN)/python tests/browser/run.py

docs: $(READY)
	@$(BIN)/pdoc --docformat google --output-directory build/docs passionsr_lab $(MODULES)

wheel:
	set -e; there=$$(mktemp -d); trap 'rm -rf "$$there"' EXIT; \
	cp -r passionsr_lab pyproject.toml README.md LICENSE $$there; cd $$there; $(PYTHON) -m venv env; \
	pip="env/bin/python -m pip --disable-pip-version-check -q"; export PIP_NO_COMPILE=1; \
	$$pip wheel --no-deps --wheel-dir wheel .; rm -r passionsr_lab; ls -l wheel; \
	$$pip install torch==2.13.0; $$pip install -c $(CURDIR)/requirements.lock wheel/*.whl; \
	env/bin/python -c 'from PIL import Image; import passionsr_lab as lab; \
	Image.radial_gradient("L").resize((32, 24)).save("lr.png"); lab.tiny()(Image.open("lr.png")).save("library.png")'; \
	env/bin/python -m passionsr_lab upscale lr.png command.png; cmp library.png command.png

lab: $(READY)
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

# torch comes first and with its own dependencies: which build it is (CPU, CUDA) is the machine's choice.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "passionsr_lab needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off torch==2.13.0
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --no-deps -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -e .
	touch $(READY)

clean:
	rm -rf $(VENV)
