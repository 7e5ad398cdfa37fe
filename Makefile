# make builds; make demo shows what it is for; make test passes every test.

GO ?= go

.PHONY: build test e2e proof fuzz check bench demo clean deps

build:
	$(GO) build -o bin/chainfs ./cmd/chainfs

# Installs what the tests and the demo call. Without apt it is up to you.
deps:
	@.ci/deps qemu-utils fuse3 xfsprogs btrfs-progs attr acl strace

# Everything, end to end included: that needs root, and mounts.
test: deps build
	$(GO) test -race ./chain/... ./cmd/... ./fs/... ./qemu ./store/...
	$(GO) test -race -run Concurrent ./qemu/qcow2
	$(GO) test -timeout 20m ./qemu/qcow2
	$(GO) test -count=1 -timeout 30m ./e2e/...

e2e: deps build
	$(GO) test -count=1 -timeout 30m ./e2e/...

# The random tests at full length and with new seeds, of which "make test" runs a part
# with fixed ones: 2,000 random chains against QEMU and 12,000 power cuts, thousands of
# moves against the model of chains, hundreds with real daemons.
proof: deps
	$(GO) test -count=1 -timeout 60m -v -run 'TestRandom' ./chain -seed 0 -rounds 3000
	$(GO) test -count=1 -timeout 120m -v -run 'TestE2ERandom' ./e2e -seed 0 -moves 400 -later-moves 300
	$(GO) test -count=1 -timeout 120m -v -run 'TestProof$$|PowerCuts$$|Faults$$|AtRandom$$' ./qemu/qcow2 -seed 0 -chains 2000 -cuts 12000

# Each fuzz target for FUZZTIME.
FUZZTIME ?= 5m
fuzz:
	@for target in $$($(GO) test -list '^Fuzz' ./qemu/qcow2 | grep ^Fuzz); do \
		$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x ./qemu/qcow2 || exit 1; \
	done

check:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "these files are not formatted: gofmt -w ."; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags failpoints ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 -tags failpoints ./cmd/...
	$(GO) test -count=1 ./e2e/imports

demo:
	@.ci/deps qemu-utils fuse3
	@$(MAKE) --no-print-directory build
	@docs/demo.sh bin/chainfs

clean:
	rm -rf bin

# Ratios and figures, each measured side by side in this one run. Takes minutes.
bench: deps build
	$(GO) test -count=1 -timeout 60m -run '^$$' -bench . -benchtime 1x ./e2e
