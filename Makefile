# Everything that is done to yggate from a shell. `make help` lists it.

PREFIX   ?= /usr/local
FUZZTIME ?= 30s

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X github.com/yggate/yggate/gateway.version=$(VERSION)

# The product is built without cgo, and all else with it, so that nothing is
# compiled twice. Only the race detector takes a C compiler.
export CGO_ENABLED = 0
# The version comes from VERSION; Go itself refuses to build in a checkout that
# git distrusts, as in many CI containers.
export GOFLAGS += -buildvcs=false

# How the race detector is run. SQLite is C translated to Go, whose memory is outside
# Go's heap, where the detector does not look; to ask it at each access all the
# same makes it five times slower. Its driver, which is handed our memory, is watched.
C_IN_GO := -race=false -d=checkptr=0
RACE := -race "-gcflags=modernc.org/sqlite/lib=$(C_IN_GO)" "-gcflags=modernc.org/libc/...=$(C_IN_GO)"

STATICCHECK := .cache/staticcheck
DENDRITE    := .cache/dendrite

build: ## build bin/yggate
	go build -trimpath -ldflags "$(LDFLAGS)" -o bin/yggate ./cmd/yggate

install: ## install what `make build` built under $(DESTDIR)$(PREFIX)
	@test -x bin/yggate || { echo "bin/yggate is not there: run make build first" >&2; exit 1; }
	install -D -m 755 bin/yggate $(DESTDIR)$(PREFIX)/bin/yggate

check: lint ## lint, and the tests that take no servers
	go test -vet=off -parallel 8 ./... # they wait more than they work; lint has vetted them

lint: vet $(STATICCHECK) ## gofmt, vet and staticcheck
	$(STATICCHECK) -tags integration ./...

vet:
	@dirty=$$(gofmt -l $$(find . -name "*.go" -not -path "./.*")); test -z "$$dirty" || { printf 'not as gofmt writes it:\n%s\n' "$$dirty" >&2; exit 1; }
	go vet -tags integration ./... # leaves out one constant, told twice, for the race detector

# Vet goes first and alone: it compiles what staticcheck and Dendrite stand on too.
# Neither these two nor apt-get use both cores by themselves, so they share them.
test: vet ## install what is missing, then every test there is and the demo; CI runs this
	$(MAKE) --no-print-directory -j2 deps lint
	$(MAKE) --no-print-directory -j2 test-race test-plain
	DEMO_ONCE=1 $(MAKE) demo

# The gateway's own tests take longest, mostly waiting, so they go first and the others
# beside them. Lint has vetted everything. TestRulesAreNeeded runs in test-plain: it is
# TestSimulation's worlds nine times over, each of which is one goroutine. The gateway's
# take 5 minutes where nothing else runs, and go test would end them after 10.
test-race:
	CGO_ENABLED=1 go test -vet=off -timeout 20m -parallel 4 $(RACE) -skip '^TestRulesAreNeeded$$' -tags integration -count=1 ./gateway ./...

# What runs with the race detector is not run once more without it, but for where that
# leaves something out.
test-plain:
	go test -vet=off -parallel 8 -count=1 ./transports/ygg ./federation/lane/journal

race: ## the tests that take no servers, with the race detector
	CGO_ENABLED=1 go test $(RACE) ./...

SEEDS ?= 100000
sim: ## run SEEDS (100000) simulated worlds against the rules of the durable lanes
	go test -count=1 -timeout 0 -v -run '^TestSimulation$$' ./federation/lane/journal -seeds $(SEEDS)

CHAOS_S ?= 60
chaos: ## kill, cut and fill two gateways for CHAOS_S (60) seconds: nothing acknowledged is lost
	go run ./gateway/internal/chaos -for $(CHAOS_S)s

fuzz: ## run every fuzz target for FUZZTIME (30s) each
	tools/fuzz $(FUZZTIME)

bench: deps ## side by side with what one would pick instead
	go run ./bench/mesh
	go run ./bench/join -beside 10
	go run ./bench/lane
	go run ./gateway/internal/bench

# What a demo of one protocol alone does without.
skip_xmpp   := dendrite,mosquitto
skip_matrix := ejabberd,prosody,mosquitto
skip_mqtt   := ejabberd,prosody,dendrite
demo: export YGGATE_SKIP := $(YGGATE_SKIP),$(skip_$(DEMO))
demo: deps ## two grids on this machine meet and talk; DEMO_ONCE=1 ends after that, DEMO=xmpp, matrix or mqtt shows one protocol
	go run ./gateway/internal/demo

deps: ## install the real servers that tests and demo run, from Debian, and build those it lacks
	tools/deps
	@case ",$$YGGATE_SKIP," in *,dendrite,*) ;; *) $(MAKE) --no-print-directory $(DENDRITE) ;; esac

$(STATICCHECK): tools/go.mod tools/go.sum
	cd tools && go build -o ../$@ honnef.co/go/tools/cmd/staticcheck

# A tool module of its own: what Dendrite stands on is nothing to yggate.
$(DENDRITE): tools/dendrite/go.mod tools/dendrite/go.sum
	@echo "deps: building Dendrite; the first time takes some minutes" >&2
	cd tools/dendrite && go build -ldflags "-s -w" -o ../../$@ github.com/element-hq/dendrite/cmd/dendrite
	@echo "deps: built Dendrite" >&2

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build install check lint vet test test-race test-plain race sim chaos fuzz bench demo deps help
