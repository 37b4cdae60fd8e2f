# blockrepl: build, try, test. A fresh Debian 12 with Go, gcc, make and git is enough;
# `make deps` (root) installs the NBD clients that the tests talk to.

VERSION ?= 0.1.0-dev
COMMIT  := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
DATE    := $(shell git log -1 --format=%cs 2>/dev/null)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
PACKAGES    := nbdkit qemu-utils libnbd-bin python3-libnbd nbd-client fio fuse3 e2fsprogs xfsprogs gnutls-bin mount iproute2 iptables
FUZZTIME    ?= 20s
SIMTIME     ?= 2m
BUBBLETIME  ?= 1m
CHAOSTIME   ?= 2m
TESTFLAGS   ?=
TESTPACKAGES ?= 2
# One test binary may take this long; all together stay below 15 minutes on two cores.
TESTTIME    ?= 24m

.PHONY: all build run test ci deps fmt vet lint cross race e2e bench fuzz allocs mutants schedules clean

all: build

## build: the program, static, in bin/
build:
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/blockrepl ./cmd/blockrepl

## run: three servers with a volume on this host, and what to do with them
run: build
	bin/blockrepl dev

## test: all tests, with real NBD clients; those with real processes last and alone,
## since they watch the clock
test: deps
	go test $(TESTFLAGS) -p $(TESTPACKAGES) -timeout $(TESTTIME) $$(go list ./... | grep -v /e2e$$)
	go test -count=1 -timeout $(TESTTIME) ./cmd/blockrepl/e2e

## ci: everything that must hold before a change lands
ci: deps fmt vet lint cross build fuzz allocs mutants schedules
	BLOCKREPL_CHAOS=$(CHAOSTIME) $(MAKE) test TESTFLAGS=-race

## mutants: every rule of the state machines broken, one by one, which the simulator must
## find; then those of what is around them, by schedules of whole servers or by a test
mutants:
	go test -count=1 -tags mutants -timeout $(TESTTIME) ./blockrepl/sim -run TestMutants
	go test -count=1 -tags mutants -timeout $(TESTTIME) ./blockrepl/sim/bubble -run 'TestMutants|TestEachMutantIsPlayed'

## schedules: fresh random schedules against the state machines alone (SIMTIME) and against
## whole servers in a bubble (BUBBLETIME), and what fixed ones must have tried; beside each
## other, and without the race detector, which plays a tenth of them
schedules:
	.ci/schedules $(SIMTIME) $(BUBBLETIME)

## allocs: what allocates nothing, which the race detector cannot see
allocs:
	go test -run Allocat ./nbd

## e2e: only the tests with real processes and real clients
e2e: deps
	go test -v -count=1 -timeout $(TESTTIME) ./cmd/blockrepl/e2e

## deps: the programs that tests talk to (apt, when root) and the Go modules;
## BLOCKREPL_NO_CLIENTS=1 does without them, and the tests then too
deps:
	@[ -z "$$BLOCKREPL_NO_CLIENTS" ] || exit 0; missing=; for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" != 0 ]; then echo "missing:$$missing  (as root: apt-get install$$missing)" >&2; exit 1; \
	else export DEBIAN_FRONTEND=noninteractive; apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi
	go mod download

## fmt: refuses files that gofmt would change
fmt:
	@out=$$(git ls-files '*.go' | xargs -r gofmt -l); if [ -n "$$out" ]; then echo "gofmt these:"; echo "$$out"; exit 1; fi

vet:
	go vet ./...

## lint: staticcheck with staticcheck.conf
lint:
	go run $(STATICCHECK) ./...

## cross: static binaries for both architectures that are supported
cross:
	@mkdir -p bin
	CGO_ENABLED=0 GOARCH=amd64 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/blockrepl-linux-amd64 ./cmd/blockrepl
	CGO_ENABLED=0 GOARCH=arm64 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/blockrepl-linux-arm64 ./cmd/blockrepl

## race: all tests but those with real processes, with the race detector
race: deps
	go test -race -p $(TESTPACKAGES) -timeout $(TESTTIME) $$(go list ./... | grep -v /e2e$$)

## bench: side by side with other servers, see bench/
bench: build
	go run ./bench

## fuzz: every fuzz target for FUZZTIME each
fuzz:
	.ci/fuzz $(FUZZTIME)

clean:
	rm -rf bin
