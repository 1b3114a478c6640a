# `make run` and `make test` do all of their own set-up; the other verbs do too.
# From elsewhere: `make -C DIR VERB` or `make -f DIR/Makefile VERB`.
HERE := $(dir $(lastword $(MAKEFILE_LIST)))
IN   := cd "$(HERE)" &&
ARGS ?=

.PHONY: help install system run test test-windows check bench test-vm shell-vm clean
.DELETE_ON_ERROR:

help:
	@echo 'make run      run a real container and show its output, exit code and the time of each phase'
	@echo 'make test     run all tests (ARGS="-k name" picks some)'
	@echo 'make test-windows  run the portable suites and those of HCS under Windows Python in Wine (first time: about 1 GB)'
	@echo 'make check    ruff, mypy --strict and the import rules'
	@echo 'make bench    measure against raw crun and runc (ARGS="--json")'
	@echo 'make chaos    kill everything at random instants, compare with the truth (ARGS="--rounds 300 --seed 1")'
	@echo 'make test-vm  run the tests of real containers here and in virtual machines with cgroup v2, and write docs/hosts.md'
	@echo '              (ARGS="--host v2-systemd -k name" picks; root, x86_64); make shell-vm gives a prompt in one'
	@echo 'make install  system packages and .venv; part of every verb above'
	@echo 'make clean    remove .venv, caches and build results'

install: $(HERE).venv/.installed

system:
	@$(IN) tools/install-system.sh

$(HERE).venv/.installed: $(HERE)pyproject.toml $(HERE)tools/make-venv.sh | system
	@$(IN) tools/make-venv.sh

run: install
	@$(IN) tools/demo.sh

test: install
	@$(IN) tools/cgroup-setup.sh .venv/bin/python -m pytest $(ARGS)

test-windows: install
	@$(IN) tools/test-windows.sh $(ARGS)

# What an engine on Windows imports; the rest is Linux's.
ON_WINDOWS := engine/__init__.py engine/engine.py engine/hearing.py engine/inside.py engine/platform.py engine/removal.py \
	engine/runs.py engine/checkpoints.py engine/on_windows.py asking.py books.py capture.py container.py entry.py execs.py host.py \
	journal.py lease.py limits.py record.py recovery.py results.py roots.py scarcity.py signal_names.py spec.py stdin.py \
	sync.py threads.py trees.py watches.py windows_host.py windows_leases.py windows_recovery.py keeper/files.py logs/container.py logs/feeds.py logs/reader.py \
	logs/reading.py logs/sink.py logs/state.py logs/streams.py lifecycle runtimes/hcs store supervisor
# Every conftest.py has the same module name, so those of the folders are checked one by one.
check: install
	@$(IN) .venv/bin/ruff check .
	@$(IN) .venv/bin/ruff format --check .
	@$(IN) .venv/bin/mypy --exclude '^tests/.+/conftest\.py$$' src tests vm chaos $$(ls -d bench 2>/dev/null)
	@$(IN) cd src/lighterman && ../../.venv/bin/mypy --config-file ../../pyproject.toml --platform win32 --follow-imports=silent $(ON_WINDOWS)
	@$(IN) for each in $$(find tests -mindepth 2 -name conftest.py); do .venv/bin/mypy "$$each" || exit 1; done
	@$(IN) .venv/bin/python -m pytest -q tests/test_architecture.py

bench: install
	@$(IN) tools/cgroup-setup.sh .venv/bin/python -m bench $(ARGS)

chaos: install
	@$(IN) tools/cgroup-setup.sh .venv/bin/python -m chaos $(ARGS)

test-vm: install
	@$(IN) tools/install-vm.sh
	@$(IN) .venv/bin/python -m vm test $(ARGS)

shell-vm: install
	@$(IN) tools/install-vm.sh
	@$(IN) .venv/bin/python -m vm shell $(ARGS)

clean:
	@$(IN) rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	@$(IN) find src tests bench chaos vm -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
