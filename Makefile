# Longshore. `make help` tells all; variables are checked by the launcher (qemu/src/settings.rs).

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
# Where rustup puts cargo, for shells that have not read its profile yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

# The launcher and the engines read these from their environment.
export CPUS MEM IOAT CHANNELS WHERE CBVER IRQ IOMMU NUMA EDU ACCEL ICOUNT PASSTHROUGH QEMU V
export FIRMWARE MEDIA MACHINE CPU X2APIC HPET
export CMD APPEND FAULT ENGINE KERNEL BIOS ACPI ANSWER SERIAL SCREEN TIMEOUT GDB DEV HOW SKIPS SHORT

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BARE := x86_64-unknown-none
LAUNCHER := build/longshore-qemu
IMAGE := cargo build --quiet -p longshore-boot --profile kernel --target $(BARE)
# install(1) writes a new file: a running machine keeps the one that it was started from.
INSTALL := install -C

.PHONY: run test debug hot-remove hot-add yank check doc clean help build tools kernel toolchain
.PHONY: bench demo iso soak loom miri mutants fuzz

run debug demo: settings build
	@$(LAUNCHER) $@

test: build
	@$(LAUNCHER) test

bench: settings build
	@$(LAUNCHER) bench

# The bootable image, by GRUB, which is fetched where the machine has none.
iso: build
	@KERNEL= $(LAUNCHER) iso

hot-remove hot-add yank: tools
	@$(LAUNCHER) $@

# Everything under build/.
build: tools kernel

# A bad variable is said before the kernel is built.
.PHONY: settings
settings: tools
	@$(LAUNCHER) settings

tools: toolchain
	@cargo build --quiet --release -p longshore-qemu -p ioat-model
	@mkdir -p build
	@$(INSTALL) $(TARGET_DIR)/release/longshore-qemu $(LAUNCHER)
	@$(INSTALL) $(TARGET_DIR)/release/ioat-model build/ioat-model

# The image; the same with the in-kernel test suites; that without hot removal. All with their
# symbol tables.
kernel: tools
	@$(IMAGE)
	@$(call finish,longshore)
	@$(IMAGE) --features ktest
	@$(call finish,longshore-test)
	@$(IMAGE) --no-default-features --features ktest
	@$(call finish,longshore-nohotplug)

define finish
set -e; new=build/.$(1).elf.new; cp $(TARGET_DIR)/$(BARE)/kernel/longshore $$new; \
$(LAUNCHER) symbols $$new >build/$(1).symbols; \
if grep -q 'cut to' build/$(1).symbols; then cat build/$(1).symbols; fi; \
mv $$new build/$(1).elf
endef

# rustup itself fetches the pinned toolchain; what is missing of it is fetched here.
toolchain:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust with rustup, https://rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "a C linker is missing: install gcc, on Debian and Ubuntu with 'apt install gcc libc6-dev'" >&2; exit 1; }
	@if [ ! -d "$$(rustc --print sysroot)/lib/rustlib/$(BARE)" ]; then \
	    command -v rustup >/dev/null || { echo "the Rust target $(BARE) is missing and there is no rustup to add it: see https://rustup.rs" >&2; exit 1; }; \
	    rustup target add $(BARE); \
	fi

# Formatting, lints of every crate on host and bare metal, and the rules that no lint knows.
check: toolchain
	cargo fmt --all --check
	cargo clippy --quiet --all-targets -- -D warnings
	cargo clippy --quiet -p hal --features host --all-targets -- -D warnings
	cargo clippy --quiet -p longshore-boot --target $(BARE) -- -D warnings
	cargo clippy --quiet -p longshore-boot --features ktest --target $(BARE) -- -D warnings
	cargo clippy --quiet -p longshore-boot --no-default-features --features ktest --target $(BARE) -- -D warnings
	cargo clippy --quiet -p dmaengine --no-default-features --all-targets -- -D warnings
	cargo clippy --quiet -p vcm --no-default-features --all-targets -- -D warnings
	@qemu/check-crates.sh

doc: toolchain
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --quiet --no-deps --document-private-items --workspace \
	    --exclude longshore --exclude longshore-boot --features hal/host
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --quiet --no-deps --document-private-items \
	    -p longshore --target $(BARE)

clean:
	cargo clean
	rm -rf build

# Models of concurrency, in every order that the memory model allows; three preemptions find what
# is known to be found. The tests that are no models cannot run in this build.
loom: toolchain
	LOOM_MAX_PREEMPTIONS=3 RUSTFLAGS="--cfg loom" cargo test --quiet --target-dir $(TARGET_DIR)/loom \
	    -p dma-fence -p dmaengine -p dma-buf -p ioat --lib models::

# Miri: undefined behaviour and data races, in what runs on the host. The host's threads end with
# the process, and what they hold then is no leak. This Miri breaks down where a device has written
# a part of a word that the driver writes next, unless it takes memory for strong: the bounce buffer
# of `edu`.
NIGHTLY := nightly-2026-05-20
MIRI := cargo +$(NIGHTLY) miri test --quiet --target-dir $(TARGET_DIR)/miri
MIRI_PROPTEST := -Zmiri-env-set=PROPTEST_CASES=4 -Zmiri-env-set=PROPTEST_DISABLE_FAILURE_PERSISTENCE=1
.PHONY: nightly
nightly: toolchain
	@rustup component list --toolchain $(NIGHTLY) --installed 2>/dev/null | grep -q ^miri || \
	    rustup toolchain install $(NIGHTLY) --profile minimal --component miri --component rust-src

miri: nightly
	MIRIFLAGS="-Zmiri-strict-provenance $(MIRI_PROPTEST)" $(MIRI) -p dma-fence -p ioat-spec
	MIRIFLAGS="-Zmiri-strict-provenance -Zmiri-ignore-leaks $(MIRI_PROPTEST)" $(MIRI) --lib \
	    -p hal -p vcm -p vtd -p dmaengine -p dma-buf -p ioat -p pciehp --features hal/host
	MIRIFLAGS="-Zmiri-strict-provenance -Zmiri-ignore-leaks -Zmiri-disable-weak-memory-emulation \
	    $(MIRI_PROPTEST)" $(MIRI) --lib -p edu --features hal/host

# The long forms of tests that `make test` runs for seconds: the protocol of the drain at full size,
# engines that go and come for SOAK seconds, and leave their slots CYCLES times; 255 CPUs.
SOAK ?= 600
CYCLES ?= 500
.PHONY: soak-drain soak-removal soak-cpus
soak: soak-drain soak-removal soak-cpus
soak-drain: toolchain
	LONGSHORE_DRAIN=full cargo test --quiet --release -p dmaengine --test drain_check -- --nocapture
soak-removal: build
	LONGSHORE_SOAK=$(SOAK) LONGSHORE_CYCLES=$(CYCLES) cargo test --quiet -p longshore-qemu --test soak -- --include-ignored --nocapture
soak-cpus: build
	cargo test --quiet -p longshore-qemu --test machines -- --ignored --nocapture soak_

# Changes to the code that some test must notice: those that cargo-mutants makes
# (.cargo/mutants.toml), whose status 3 means that some hung, and those that it cannot
# (drivers/mutations.txt). Tests built for it are run once each: optimising them takes longer.
MUTANTS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/longshore/cargo-mutants-27.1.0
mutants: tools nightly
	@[ -x $(MUTANTS)/bin/cargo-mutants ] || \
	    cargo install --quiet --locked --version 27.1.0 --root $(MUTANTS) cargo-mutants
	@status=0; MUTANTS_NIGHTLY=$(NIGHTLY) $(TARGET_DIR)/release/mutations drivers/mutations.txt $(ONLY) || status=1; \
	$(if $(ONLY),,CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=0 \
	    $(MUTANTS)/bin/cargo-mutants mutants --jobs 2 --output build $(FILES:%=--re %) || [ $$? = 3 ] || status=1;) \
	exit $$status

fuzz:
	@echo "make $@ is not there yet" >&2; exit 2

help:
	@echo "make run                 boots Longshore in QEMU with its engines; Ctrl-A X ends it"
	@echo "make run CMD='a; b'      runs console commands, then powers off; fails unless all end in ok"
	@echo "make test                everything that must pass"
	@echo "make bench               measures, Linux beside it; SHORT=1: less than two minutes"
	@echo "make demo                engines leave while they copy, told as it happens"
	@echo "make debug               as run, stopped for gdb on port GDB"
	@echo "make hot-remove DEV=ioat0, hot-add DEV=ioat0, yank DEV=ioat0"
	@echo "                         HOW=kill|power|allones|freeze"
	@echo "                         to the machine that runs"
	@echo "make iso                 build/longshore.iso: BIOS and UEFI, CD and USB stick; Secure Boot must"
	@echo "                         be off"
	@echo "make soak                the long tests: soak-drain, soak-removal (SOAK=600 seconds,"
	@echo "                         CYCLES=500 of removal and addition), soak-cpus"
	@echo "make loom, miri, mutants models of concurrency; the crates that run on the host, under Miri;"
	@echo "                         changes to the code that tests must notice (ONLY=, FILES= choose)"
	@echo "make check, doc, clean   formatting and lints; documentation; removes what was built"
	@echo
	@echo "Variables and their defaults:"
	@echo "  CPUS=4 MEM=512M        the machine"
	@echo "  IOAT=2 CHANNELS=4 CBVER=3.2 (3.3, 3.4) IRQ=msi (msix, intx)"
	@echo "                         engines, and what each is like"
	@echo "  WHERE=port (root)      engines behind ports, or in the root complex, as functions of 00:04"
	@echo "  PASSTHROUGH=BB:DD.F    a real engine of this host as well, by VFIO and KVM"
	@echo "  NUMA=1                 nodes: CPUs, memory and engines are spread over them"
	@echo "  EDU=0                  QEMU's educational devices: slow, 28 address lines"
	@echo "  FAULT=                 'SPEC' or 'ioatN:SPEC' words: engines that misbehave, see"
	@echo "                         build/ioat-model --help"
	@echo "  ANSWER=                milliseconds for which QEMU waits for an engine's answer (5000;"
	@echo "                         500 for those that are to freeze)"
	@echo "  ENGINE=                another engine program in place of build/ioat-model"
	@echo "  FIRMWARE=direct (bios, uefi)"
	@echo "                         what boots the machine: QEMU itself, or firmware from build/longshore.iso"
	@echo "  MEDIA=cd (usb)         what the latter is to it: a CD or a USB stick"
	@echo "  MACHINE=q35 (pc)       pc: i440fx, one bus without slots, no extended configuration space"
	@echo "  CPU=max                a model of QEMU's; X2APIC=on, off where it is not to say"
	@echo "  HPET=on (off)          a timer on the board"
	@echo "  ACCEL=tcg (kvm)        what executes guest code"
	@echo "  ICOUNT=0 (1)           an instruction takes a nanosecond: the clock counts them"
	@echo "  APPEND= KERNEL=        more words for the kernel command line; another image, as"
	@echo "                         build/longshore-test.elf, the one with the in-kernel suites"
	@echo "  BIOS=                  other firmware for QEMU, as qboot.rom, which leaves PCI to the kernel"
	@echo "  ACPI=                  a file with ACPI tables in place of the firmware's, the root pointer"
	@echo "                         first, all by their addresses from 0x90000 on"
	@echo "  SERIAL=terminal (socket, none)"
	@echo "                         the console here, or on build/run/serial.sock; no serial port"
	@echo "  SCREEN=off (on)        a VGA adapter, for firmware to leave a picture on"
	@echo "  QEMU=                  a QEMU of 10.1 or newer; found or fetched when not given"
	@echo "  TIMEOUT=600            seconds that CMD may take"
	@echo "  SKIPS=0                how many tests may be skipped for want of a package"
	@echo "  V=1                    prints the command lines of QEMU and engines"
