package peer

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/workload"
)

// CQRS is Watermill's cqrs component on its gochannel, which holds Publish until the
// handler has acked, so that it returns when the handler has run, as ours does.
func CQRS() harness.Runner {
	return harness.Runner{Name: "cqrs", Run: runCQRS}
}

func runCQRS(ctx context.Context, rows int) (float64, error) {
	logger := watermill.NopLogger{}
	channel := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, logger)
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return 0, err
	}
	marshaler := cqrs.JSONMarshaler{GenerateName: cqrs.StructName}
	events, err := cqrs.NewEventBusWithConfig(channel, cqrs.EventBusConfig{
		GeneratePublishTopic: func(p cqrs.GenerateEventPublishTopicParams) (string, error) { return p.EventName, nil },
		Marshaler:            marshaler, Logger: logger,
	})
	if err != nil {
		return 0, err
	}
	processor, err := cqrs.NewEventProcessorWithConfig(router, cqrs.EventProcessorConfig{
		GenerateSubscribeTopic: func(p cqrs.EventProcessorGenerateSubscribeTopicParams) (string, error) { return p.EventName, nil },
		SubscriberConstructor: func(cqrs.EventProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return channel, nil
		},
		Marshaler: marshaler, Logger: logger,
	})
	if err != nil {
		return 0, err
	}
	var calls atomic.Int64
	err = processor.AddHandlers(cqrs.NewEventHandler("count", func(context.Context, *workload.Order) error { calls.Add(1); return nil }))
	if err != nil {
		return 0, err
	}
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- router.Run(ctx) }()
	select {
	case <-router.Running():
	case err := <-ended:
		stop()
		return 0, err
	}
	order := workload.OrderOf(0)
	var fault error
	rate := workload.Loop(rows, func() {
		if err := events.Publish(ctx, order); err != nil {
			fault = err
		}
	})
	stop()
	if err := <-ended; fault == nil {
		fault = err
	}
	if fault == nil && calls.Load() != int64(rows) {
		fault = fmt.Errorf("the cqrs component has called its handler %d times instead of %d", calls.Load(), rows)
	}
	return rate, fault
}
