# `make` alone prints the targets. Needs Go; everything else installs itself.

GO          ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# Two packages at a time suit two cores. `make lint` has vetted already.
TESTFLAGS   ?= -race -vet=off -p 2 -timeout 10m
PACKAGES    ?= ./...
FUZZTIME    ?= 30s

# What carries the demo's events.
BROKER      ?= redis
BROKERS     := redis kafka rabbitmq sqs

.DEFAULT_GOAL := help
.PHONY: help demo test test-brokers lint fuzz servers-up servers-down servers-status go-is-there bench soak

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

demo: go-is-there ## run the example shop; BROKER=redis, kafka, rabbitmq or sqs
	@$(if $(filter $(BROKERS),$(BROKER)),,echo "BROKER=$(BROKER): give one of $(BROKERS)" >&2; exit 2)
	@$(GO) run ./dev/servers up postgres15 $(BROKER:sqs=elasticmq)
	@. ./.dev/env && $(GO) run ./example/shop -broker $(BROKER)

test: servers-up ## start the servers and run all tests, with the race detector
	@. ./.dev/env && $(GO) test $(TESTFLAGS) $(PACKAGES)

# The adapters with the race detector, the stock components without it: they have races of their own.
test-brokers: servers-up ## all of the brokers' conformance suite, stock Watermill components included
	@rm -rf .dev/brokers; . ./.dev/env; export POSTBUS_TEST_LONG=1 POSTBUS_TEST_BROKERS="$$PWD/.dev/brokers"; result=0; \
	$(GO) test -race -vet=off -count=1 -p 1 -timeout 60m -run '^TestConformance' ./broker/... || result=1; \
	( cd internal/stocktest && $(GO) test -count=1 -timeout 60m ./... ) || result=1; \
	$(GO) run ./internal/brokertest/table .dev/brokers && exit $$result

lint: go-is-there ## formatting, go vet, staticcheck
	@unformatted=$$("$$($(GO) env GOROOT)/bin/gofmt" -l .); \
	if [ -n "$$unformatted" ]; then echo "not formatted; run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

fuzz: go-is-there ## run every fuzz test for FUZZTIME (30s)
	@set -e; for package in $$($(GO) list $(PACKAGES)); do \
		for name in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "$$package $$name"; \
			$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) $$package; \
		done; \
	done

servers-up: go-is-there ## start what the tests need (Docker Compose, or local processes)
	@$(GO) run ./dev/servers up

servers-down: go-is-there ## stop what servers-up has started
	@$(GO) run ./dev/servers down

servers-status: go-is-there ## show which servers run, where, and whether they answer
	@$(GO) run ./dev/servers status

go-is-there:
	@version=$$($(GO) env GOVERSION 2>/dev/null) || version=none; \
	minor=$${version##*go1.}; minor=$${minor%%[!0-9]*}; \
	if [ "$${minor:-0}" -lt 25 ]; then \
		echo "Postbus needs Go 1.25 or later, and this shell finds $$version: install Go, or put it into PATH." >&2; exit 1; \
	fi; \
	for name in GOCACHE GOMODCACHE; do \
		folder=$$($(GO) env $$name); \
		if [ -z "$$folder" ] || [ "$$folder" = off ] || ! mkdir -p "$$folder" 2>/dev/null; then \
			echo "Go keeps what it builds and downloads below HOME ('$$HOME'), and the folder for $$name ('$$folder') cannot be made:" \
				"set HOME to a folder of yours, or both GOCACHE and GOMODCACHE." >&2; exit 1; \
		fi; \
	done

bench: servers-up ## measure ours beside peers and limits; QUICK=1, ONLY=drain.null,wake
	@cd bench && $(GO) build -o ../.dev/bin/bench . && . ../.dev/env && exec ../.dev/bin/bench $(BENCHFLAGS)

bench-brokers: servers-up ## what the adapters do on Kafka, RabbitMQ, SQS and Redis; QUICK=1, ONLY=publish.kafka
	@cd bench && $(GO) build -o ../.dev/bin/bench . && . ../.dev/env && exec ../.dev/bin/bench -brokers $(BENCHFLAGS)

soak: servers-up ## what takes minutes: two comparisons, and retention beside its alternatives
	@cd bench && $(GO) build -o ../.dev/bin/bench . && . ../.dev/env && ../.dev/bin/bench -soak $(BENCHFLAGS)
	@if [ -z "$$ONLY" ]; then . ./.dev/env && POSTBUS_MEASURE=1 POSTBUS_MEASURE_SECONDS=$${QUICK:+5} \
		$(GO) test -count=1 -run '^TestMeasureRetention$$' -v -timeout 30m ./outbox; fi
