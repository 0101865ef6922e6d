package order

// Event is what this package tells the rest of the world: a fact, named in the
// past tense. Three methods make a plain struct an event.
type Event interface {
	EventType() string   // the name on the wire: it never changes, whatever becomes of the Go type
	SchemaVersion() int  // from day one; it grows with an incompatible change
	AggregateID() string // events of one aggregate are handled in the order of their transactions
}

// Placed says that a customer has ordered something.
type Placed struct {
	CustomerID string `json:"customer_id"`
	Version    int64  `json:"version"` // of the customer's account: 1, 2, 3, ...
	OrderID    int64  `json:"order_id"`
	SKU        string `json:"sku"`
	Quantity   int    `json:"quantity"`
	Cents      int64  `json:"cents"`
}

func (Placed) EventType() string     { return "order.placed" }
func (Placed) SchemaVersion() int    { return 1 }
func (e Placed) AggregateID() string { return e.CustomerID }

// Paid says that an order is paid and can be shipped.
type Paid struct {
	CustomerID string `json:"customer_id"`
	Version    int64  `json:"version"`
	OrderID    int64  `json:"order_id"`
	SKU        string `json:"sku"`
	Quantity   int    `json:"quantity"`
}

func (Paid) EventType() string     { return "order.paid" }
func (Paid) SchemaVersion() int    { return 1 }
func (e Paid) AggregateID() string { return e.CustomerID }

// Cancelled says that a customer does not want an order any more.
type Cancelled struct {
	CustomerID string `json:"customer_id"`
	Version    int64  `json:"version"`
	OrderID    int64  `json:"order_id"`
	SKU        string `json:"sku"`
	Quantity   int    `json:"quantity"`
}

func (Cancelled) EventType() string     { return "order.cancelled" }
func (Cancelled) SchemaVersion() int    { return 1 }
func (e Cancelled) AggregateID() string { return e.CustomerID }
