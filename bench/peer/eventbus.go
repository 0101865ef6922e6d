package peer

import (
	"context"
	"fmt"

	evbus "github.com/asaskevich/EventBus"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/workload"
)

// EventBus is asaskevich/EventBus with one synchronous handler. Its events have no id
// and no time.
func EventBus() harness.Runner {
	return harness.Runner{Name: "eventbus", Run: func(_ context.Context, rows int) (float64, error) {
		bus := evbus.New()
		calls := 0
		if err := bus.Subscribe("order.placed", func(workload.Order) { calls++ }); err != nil {
			return 0, err
		}
		order := workload.OrderOf(0)
		rate := workload.Loop(rows, func() { bus.Publish("order.placed", order) })
		if calls != rows {
			return 0, fmt.Errorf("EventBus has called its handler %d times instead of %d", calls, rows)
		}
		return rate, nil
	}}
}
