# Everything a developer runs. `make` alone lists the targets.

DIST    ?= dist
GO      ?= go
VERSION ?= $(patsubst v%,%,$(shell git describe --always --dirty 2>/dev/null || echo unknown))
COMMIT  ?= $(shell git rev-parse --quiet --verify HEAD 2>/dev/null || echo unknown)

VIEW    ?= auto
KERNEL  ?=
SUITE   ?= full
FORCE   ?=
MACHINES ?=

# The time of every entry of a bundle: that of the commit, so that everybody builds the same bytes.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH

# The version is ours to set, and git may refuse to read a checkout that belongs to another user, as root's builds meet.
export GOFLAGS += -buildvcs=false

bundle_dir = $(DIST)/cvmfs-graphdriver-plugin-$(VERSION)

.PHONY: help build programs bundle kubernetes demo bench bench-snapshotter bench-convert bench-start bench-scale soak test test-engines test-unit test-kernels test-kubernetes lint packages release clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Programs of one commit are the same bytes everywhere. Their build id is the stamp that a bundle's version is compared with.
programs = CGO_ENABLED=0 $(GO) build -trimpath \
	-ldflags '-s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -buildid=cvmfs-graphdriver/$(VERSION)/$(COMMIT)'

# Architectures that `build` makes the plugin for.
ARCHS ?= amd64 arm64

build: programs ## build the programs into dist/bin, and the plugin for each architecture into dist/bin/ARCH
	$(foreach arch,$(ARCHS),mkdir -p $(DIST)/bin/$(arch) && GOARCH=$(arch) $(programs) -o $(DIST)/bin/$(arch)/ ./cmd/cvmfs-graphdriver-plugin &&) true

programs: # those of this machine
	@mkdir -p $(DIST)/bin
	$(programs) -o $(DIST)/bin/ ./cmd/...

bundle: programs ## make the plugin bundle of this machine, a folder and an archive, in dist
	$(DIST)/bin/cvmfs-graphdriver bundle build --plugin $(DIST)/bin/cvmfs-graphdriver-plugin --output $(DIST)

# IMAGE=registry.example.org/cvmfs-snapshotter also pushes the image there, with the credentials of ~/.docker/config.json.
IMAGE ?=

kubernetes: ## make the image of Kubernetes' nodes for each architecture, the chart and the manifests, in dist
	$(foreach arch,$(ARCHS),mkdir -p $(DIST)/bin/$(arch) && GOARCH=$(arch) $(programs) -o $(DIST)/bin/$(arch)/ \
		./cmd/cvmfs-node ./cmd/cvmfs-snapshotter ./cmd/cvmfs-graphdriver &&) true
	$(GO) run ./packaging/kubernetes -version '$(VERSION)' -arch $(subst $(space),$(comma),$(ARCHS)) \
		-programs $(DIST)/bin -output $(DIST) -push '$(IMAGE)'

demo: bundle ## convert an image and run both in private engines, old and new (root; fetches packages; takes ENGINE=/path/to/dockerd)
	@$(GO) build -o $(DIST)/test/demo ./test/demo
	@exec $(DIST)/test/demo -bundle $(bundle_dir) -snapshotter $(DIST)/bin/cvmfs-snapshotter -converter $(DIST)/bin/docker2cvmfs

bench: bundle ## compare with the engine's overlay2, as ratios (root; VIEW=erofs or fuse forces one)
	@CGO_ENABLED=0 $(GO) build -o $(DIST)/test/bench ./test/bench
	@exec $(DIST)/test/bench -bundle $(bundle_dir) -view $(VIEW)

bench-snapshotter: bundle ## compare the snapshotter with containerd's overlayfs, as ratios (root; VIEW as with bench)
	@CGO_ENABLED=0 $(GO) build -o $(DIST)/test/bench ./test/bench
	@exec $(DIST)/test/bench -snapshotter $(DIST)/bin/cvmfs-snapshotter -view $(VIEW)

bench-convert: programs ## compare converting an image with unpacking it, as ratios (fetches Debian packages)
	@$(GO) build -o $(DIST)/test/bench-convert ./test/bench/convert
	@exec $(DIST)/test/bench-convert -converter $(DIST)/bin/docker2cvmfs

# START says more: START='-images python,gcc -links none -rounds 1'. RESULTS is the file that keeps what was measured. QUICK=1 is one
# small image, which may not fetch more than it should.
START   ?=
QUICK   ?=
RESULTS ?= $(DIST)/bench-start/results.json

bench-start: bundle ## measure how long images take to start where nothing of them is (root; fetches Debian packages)
	@mkdir -p $(dir $(RESULTS))
	@CGO_ENABLED=0 $(GO) build -o $(DIST)/test/bench-start ./test/bench/start
	@exec $(DIST)/test/bench-start -bundle $(bundle_dir) -snapshotter $(DIST)/bin/cvmfs-snapshotter \
		-converter $(DIST)/bin/docker2cvmfs -results $(RESULTS) $(if $(QUICK),-quick) $(START)

# The results are those of bench-start. START says more: START='-nodes 1,10 -composed 10000x1 -containers 0'.
bench-scale: bundle ## measure what grows: nodes behind one proxy, large images, containers at one time (root; needs a squid in the cache folder)
	@mkdir -p $(dir $(RESULTS))
	@CGO_ENABLED=0 $(GO) build -o $(DIST)/test/bench-start ./test/bench/start
	@exec $(DIST)/test/bench-start -scale -bundle $(bundle_dir) -snapshotter $(DIST)/bin/cvmfs-snapshotter \
		-converter $(DIST)/bin/docker2cvmfs -results $(RESULTS) $(START)

# Random sequences are other ones each time; a failing one names its number.
soak: ## have containers read for ten minutes in more than the cache may hold, and drivers do random work (root; SOAK=30m is longer)
	SOAK=$(or $(SOAK),10m) CVMFS_TEST_NO_SKIP=1 $(GO) test -count=1 -timeout=2h -v -run '^TestSoak$$' ./cvmfs/objectfs ./cvmfs/objects
	CONFORMANCE_SEED=$$(date +%s) CONFORMANCE_SEQUENCES=200 CVMFS_TEST_NO_SKIP=1 $(GO) test -count=1 -timeout=2h \
		-run '^TestRandomSequences' ./cmd/cvmfs-graphdriver-plugin ./cmd/cvmfs-snapshotter

# Lint has vetted. What only debuggers read is left out: it takes a third of the time of linking, once a package.
test: lint packages ## run linters and every test (root for those that mount or run an engine)
	$(GO) run ./test/report -count=1 -vet=off -ldflags=-w -timeout=60m ./...

test-engines: packages ## run the tests of engines with each engine and view that they are for (root)
	CVMFS_TEST_EVERY_ENGINE=1 $(GO) run ./test/report -count=1 -timeout=2h ./test/e2e

# KERNEL=6.1,6.12 runs some kernels of the table. SUITE=parts, whole (the halves of all) or ci runs fewer tests, figures times the view,
# host and newest-host boot hosts with systemd. FORCE=1 runs also what has passed with the same programs, MACHINES=1 one at a time.
test-kernels: ## run the tests that have to do with the kernel on older and newer ones, in virtual machines (root; fetches Debian packages)
	@$(GO) build -o $(DIST)/test/kernels ./test/kernels
	@exec $(DIST)/test/kernels -kernels '$(KERNEL)' -suite '$(SUITE)' $(if $(FORCE),-force) $(if $(MACHINES),-machines $(MACHINES)) -output $(DIST)/kernels

# In a network of its own: the cluster's ports are nobody else's. What is fetched and built is there before.
test-kubernetes: ## run chart and manifests in a cluster of one node with systemd (root; builds Kubernetes: ten minutes, once)
	$(GO) run ./test/packages -kubernetes
	CGO_ENABLED=0 $(GO) test -c -tags guest -o $(DIST)/test/kubernetes ./test/kubernetes
	cd test/kubernetes && unshare --net $(CURDIR)/$(DIST)/test/kubernetes -test.v -test.timeout 30m

# Tests that need root, or what `packages` fetches, skip by themselves; lint has vetted. The race detector needs a C compiler. It watches
# our code and not the loops of SQLite, of compression, of passwords and of long numbers, which take ten times as long with it. These
# packages share no generic atomics with ours: of equal instances of those the linker takes any, and one that isn't watched lets it report
# races where none are. The detector lets each process wait a second before it ends, for races that are being reported, programs that
# tests run included; a tenth of one does.
unwatched = $(foreach lib,modernc.org/sqlite/lib modernc.org/memory github.com/klauspost/compress/... golang.org/x/crypto/... \
	crypto/internal/fips140/bigmod math/big compress/flate,-gcflags='$(lib)=-race=false')

test-unit: ## run the tests that need no root, with the race detector
	GORACE=atexit_sleep_ms=100 CGO_ENABLED=1 $(GO) test -race -short -vet=off -ldflags=-w -timeout=30m $(unwatched) ./...

lint: ## check the form of the code
	@changed=$$($(GO) tool gofumpt -l .); test -z "$$changed" || { echo "gofumpt would change:"; echo "$$changed"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) tool -modfile=.golangci.mod golangci-lint run

packages: ## fetch what demo and tests run into a cache folder (CVMFS_TEST_CACHE); tests that lack it skip
	-$(GO) run ./test/packages
	-$(GO) run ./test/kernels -fetch -kernels 6.1,6.12

# Everything that is given to others, in a folder of its own that is whole or absent. SIGN_KEY=minisign.key signs its SHA256SUMS, with
# $MINISIGN_PASSWORD.
MAINTAINER ?= cvmfs-graphdriver maintainers <maintainers@cvmfs-graphdriver.invalid>
SIGN_KEY   ?=
release_dir = $(DIST)/release
making_dir  = $(DIST)/.release
host_arch   = $(shell $(GO) env GOHOSTARCH)
comma      := ,
space      := $(subst ,, )

release: ## make all that a release consists of in dist/release: programs, bundles, SBOMs, deb and rpm packages, what clusters get, sums
	rm -rf $(release_dir) $(making_dir)
	$(foreach arch,$(sort $(ARCHS) $(host_arch)),\
		mkdir -p $(DIST)/bin/$(arch) && GOARCH=$(arch) $(programs) -o $(DIST)/bin/$(arch)/ ./cmd/... &&) true
	$(DIST)/bin/$(host_arch)/cvmfs-graphdriver bundle build --format tar.gz,tar.zst --output $(making_dir) \
		$(foreach arch,$(ARCHS),--plugin $(DIST)/bin/$(arch)/cvmfs-graphdriver-plugin)
	$(foreach arch,$(ARCHS),$(foreach name,cvmfs-graphdriver cvmfs-snapshotter docker2cvmfs,\
		cp $(DIST)/bin/$(arch)/$(name) $(making_dir)/$(name)-$(VERSION)-$(arch) &&)) true
	$(GO) run ./packaging/kubernetes -version '$(VERSION)' -arch $(subst $(space),$(comma),$(ARCHS)) -programs $(DIST)/bin \
		-output $(making_dir)
	$(GO) run ./packaging -version '$(VERSION)' -arch $(subst $(space),$(comma),$(ARCHS)) -maintainer '$(MAINTAINER)' \
		-programs $(DIST)/bin -bundles $(making_dir) -output $(making_dir) -sign '$(SIGN_KEY)'
	mv $(making_dir) $(release_dir)

clean: ## remove what was built
	rm -rf $(DIST)
