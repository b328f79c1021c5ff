# The few things a person or CI does with the project; CMake does the work. On a bare Debian 12 `make demo` and
# `make test` need nothing but make and this folder.
BUILD ?= build
ASAN_BUILD ?= build-asan
BUILD_TYPE ?= RelWithDebInfo
PREFIX ?= /usr/local
JOBS ?= $(shell nproc)
# How long CTest lets each fuzzer run.
FUZZ_SECONDS ?= 3

export CTEST_OUTPUT_ON_FAILURE := 1

.PHONY: help build demo test test-all bench install deb deps clean check

help:
	@echo 'make build     builds build/bin/lararium'
	@echo 'make demo      installs what is needed, builds, boots a guest and shows what Lararium sees in it'
	@echo 'make test      installs what is needed, runs unit, golden, sanitizer and fuzz tests and a short matrix of guests'
	@echo 'make test-all  the same with all guests'
	@echo 'make bench     measures what docs/spec.md promises (PEERS=folder: beside others, see bench/prepare_peers)'
	@echo 'make check     what to run before a commit: format, layers, clang-tidy, unit tests (tools/presubmit)'
	@echo 'make install   installs to $$DESTDIR$$PREFIX ($(PREFIX))'
	@echo 'make deb       builds a Debian package in $(BUILD)'
	@echo 'make deps      installs the packages that all of this needs'
	@echo 'make clean     removes what was built'

build:
	@tools/install_dependencies --check build
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=$(BUILD_TYPE) -DLARARIUM_TESTS=OFF
	cmake --build $(BUILD) --parallel $(JOBS)

demo:
	tools/install_dependencies build demo
	$(MAKE) build
	tools/demo --program $(BUILD)/bin/lararium

# The tests of the sanitizer build are part of the same CTest run; cmake/sanitizer_tests.cmake includes them. Unit tests
# are built and run with sanitizers only; `make test-all` and tools/presubmit run those of the plain build, too.
test: TEST_TARGETS = guest_test_programs
test: test-build
	ctest --test-dir $(BUILD) --parallel $(JOBS) --label-regex '^(golden|sanitizer|fuzz|ci)$$' --no-tests=error \
	  --repeat until-pass:2

test-all: test-build
	ctest --test-dir $(BUILD) --parallel $(JOBS) --no-tests=error

.PHONY: test-build
test-build:
	tools/install_dependencies build test
	cmake -S . -B $(ASAN_BUILD) -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER=clang++-19 \
	  -DCMAKE_CXX_FLAGS_RELWITHDEBINFO='-O0 -gline-tables-only' \
	  -DLARARIUM_SANITIZE=address,undefined -DLARARIUM_FUZZ=ON -DLARARIUM_FUZZ_SECONDS=$(FUZZ_SECONDS)
	cmake --build $(ASAN_BUILD) --parallel $(JOBS)
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=$(BUILD_TYPE) -DLARARIUM_TESTS=ON \
	  -DLARARIUM_SANITIZER_BUILD=$(abspath $(ASAN_BUILD))
	cmake --build $(BUILD) --parallel $(JOBS) $(addprefix --target ,$(TEST_TARGETS))

bench:
	tools/install_dependencies build demo bench
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=$(BUILD_TYPE) -DLARARIUM_BENCH=ON
	cmake --build $(BUILD) --parallel $(JOBS)
	bench/run --build $(BUILD) $(if $(PEERS),--peers $(PEERS))

check:
	tools/presubmit

install: build
	DESTDIR=$(DESTDIR) cmake --install $(BUILD) --prefix $(PREFIX) --strip

deb:
	tools/install_dependencies build package
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=$(BUILD_TYPE) -DLARARIUM_TESTS=OFF
	cmake --build $(BUILD) --parallel $(JOBS)
	cd $(BUILD) && cpack -G DEB

deps:
	tools/install_dependencies build test demo package

clean:
	rm -rf $(BUILD) $(ASAN_BUILD)
