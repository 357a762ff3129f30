# Every target goes through all modules of the repository.
MODULES := $(sort $(dir $(shell git ls-files 'go.mod' '*/go.mod')))
GOBIN   := $(CURDIR)/bin
STATICCHECK := $(GOBIN)/staticcheck
FUZZTIME ?= 60s

.PHONY: help test race lint bench bench-short bench-micro fuzz stress partition reboot cross cross-more test-386 steady cover

help:   ## print the targets
	@grep -E '^[a-z-]+: ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/'

test:   ## run the tests
	@for m in $(MODULES); do (cd $$m && go test ./...) || exit 1; done

race:   ## run the tests under the race detector
	@for m in $(MODULES); do (cd $$m && go test -race ./...) || exit 1; done

lint: $(STATICCHECK)   ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "not gofmt-ed"; exit 1; }
	@for m in $(MODULES); do (cd $$m && go vet ./... && $(STATICCHECK) ./...) || exit 1; done

$(STATICCHECK):
	GOBIN=$(GOBIN) go install honnef.co/go/tools/cmd/staticcheck@v0.8.2

bench:   ## compare with other frameworks: tables, results and a plot in bench/out (about 30 minutes)
	@mkdir -p bench/out && cd bench && go run . -o out/results.json -svg out/performance.svg

bench-short:   ## the main systems and workloads in two minutes
	@cd bench && go run . -short

bench-micro:   ## run the micro benchmarks
	@for m in $(MODULES); do (cd $$m && go test -run '^$$' -bench . -benchmem ./...) || exit 1; done

fuzz:   ## fuzz every target for FUZZTIME each (60s)
	@for pkg in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "$$pkg $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$pkg || exit 1; \
	  done; done

stress:   ## attacks and loads in full, one after the other (about 5 minutes)
	@go test ./internal/stress -stress.long -v -count=1 -parallel 1 -timeout 20m
	@go test . -race -run TestCloseRaces -race-rounds 10000 -count=1

partition:   ## cut networks with the default timeouts (Linux, 2 minutes)
	@go test ./internal/partition -run TestPartition -partition -v -count=1 -timeout 5m

reboot:   ## 50 reboots, and 50 new starts, under 500 pulls a second of 20 clients; 1,000 clients of a server that is killed (2 minutes)
	@go test . -run 'TestReboot$$|TestTerminate$$' -v -count=1 -reboots 50 -reboot-clients 20 -reboot-pause 40ms
	@go test . -run 'TestKilledAndStartedAgain$$' -v -count=1 -killed-clients 1000 -killed-for 12s -killed-check

# Nested modules are built only, and not those that have whole servers of others in them, which take minutes to
# compile for each platform.
CROSS := windows/amd64 darwin/arm64 linux/386
CROSS_MORE := js/wasm wasip1/wasm plan9/amd64 freebsd/amd64
CROSS_BUILT := $(filter-out ./ bench/ examples/chat/,$(MODULES))

cross:   ## vet for the other platforms that people run servers and clients on
	@for p in $(CROSS); do \
	  GOOS=$${p%/*} GOARCH=$${p#*/} go vet ./... || exit 1; \
	  for m in $(CROSS_BUILT); do (cd $$m && GOOS=$${p%/*} GOARCH=$${p#*/} go build -o /dev/null ./...) || exit 1; done; \
	done

cross-more:   ## vet for still other platforms (some minutes)
	@for p in $(CROSS_MORE); do GOOS=$${p%/*} GOARCH=$${p#*/} go vet ./... || exit 1; done

test-386:   ## run the tests where an int has 32 bits
	@internal/bits32/run

steady:   ## run the tests 50 times beside two busy loops, every second time with GOMAXPROCS=1 (hours)
	@internal/steady/run 50

cover:   ## print each package's coverage
	@go test -cover . ./codec ./packet ./socket ./tptest ./plugin/...
