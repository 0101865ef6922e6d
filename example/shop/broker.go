package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// broker is what carries the shop's events to its handlers: the shop is wired the
// same way whichever it is. Of the files broker_*.go, read the one that you use.
type broker interface {
	// Publisher makes what a relay sends events with, and a router its poison. Its
	// user closes it.
	Publisher() (message.Publisher, error)
	// Subscriber makes what a router gets events from. Its user closes it.
	Subscriber(logger *slog.Logger) (message.Subscriber, error)
	// Declare creates topics with all that belongs to them. Nothing else does:
	// none comes into being because an event names it.
	Declare(ctx context.Context, topics []string) error

	inspection
}

// shopGroup is who reads: each group of programs gets every event.
const shopGroup = "shop"

// A kind of broker, and the variable that says where one is.
type kind struct {
	name, variable string
	// open connects to it. What the shop makes there begins with prefix.
	open func(ctx context.Context, address, prefix string) (broker, error)
}

var kinds = []kind{
	{"redis", "POSTBUS_REDIS_URL", openRedis},
	{"kafka", "POSTBUS_KAFKA_BROKERS", openKafka},
	{"rabbitmq", "POSTBUS_RABBITMQ_URL", openRabbitMQ},
	{"sqs", "POSTBUS_SQS_URL", openSQS},
}

// openBroker opens the broker of that name.
func openBroker(ctx context.Context, name, prefix string) (broker, error) {
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == name })
	if i < 0 {
		return nil, fmt.Errorf("there is no broker %q: -broker takes %s", name, strings.Join(kindNames(), ", "))
	}
	at, err := address(kinds[i].variable)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // a server that is there answers sooner
	defer cancel()
	return kinds[i].open(ctx, at, prefix)
}

func kindNames() (names []string) {
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}
