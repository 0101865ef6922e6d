// Package workload is what all programs of the bench work on: events of 600 bytes over
// 5,000 keys, and logs that are full of them.
package workload

import (
	"context"
	"fmt"
	"strings"

	"github.com/postbus/postbus/events"
)

const (
	// Keys is how many aggregates the events belong to, in turn.
	Keys = 5000
	// Bytes is the length of one encoded event.
	Bytes = 600
)

// Order is the event of the bench.
type Order struct {
	OrderID    string `json:"order_id"`
	TotalCents int64  `json:"total_cents"`
	Note       string `json:"note"`
}

func (Order) EventType() string     { return "order.placed" }
func (Order) SchemaVersion() int    { return 1 }
func (o Order) AggregateID() string { return o.OrderID }

// keys are made once: no program pays for them.
var keys = func() (ks [Keys]string) {
	for i := range ks {
		ks[i] = fmt.Sprintf("order-%05d", i)
	}
	return ks
}()

// note fills the document up to Bytes.
var note = strings.Repeat("n", Bytes-len(Encoded(Order{OrderID: keys[0], TotalCents: 12345})))

// Encoded is the document of one order, under a fresh id.
func Encoded(o Order) []byte {
	e, err := events.New(context.Background(), o)
	if err != nil {
		panic(err)
	}
	// What the clock says to the nanosecond has one to nine digits; all documents
	// are to be of one length, give or take those.
	document, err := e.Encode()
	if err != nil {
		panic(err)
	}
	return document
}

// OrderOf is the i-th event's payload.
func OrderOf(i int) Order {
	return Order{OrderID: keys[i%Keys], TotalCents: 12345, Note: note}
}

// EventOf is the i-th event, ready to be appended.
func EventOf(i int) events.DomainEvent {
	e, err := events.New(context.Background(), OrderOf(i))
	if err != nil {
		panic(err)
	}
	return e
}

// Document is one encoded event, for programs that fill tables of their own.
func Document(i int) []byte { return Encoded(OrderOf(i)) }
