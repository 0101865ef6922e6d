package payment

// Event is a fact of this package. See package order: every domain has its own
// few lines of this, and needs nobody else's.
type Event interface {
	EventType() string
	SchemaVersion() int
	AggregateID() string
}

// Received says that a customer has paid for an order.
type Received struct {
	CustomerID string `json:"customer_id"`
	Version    int64  `json:"version"` // of the customer's wallet: 1, 2, 3, ...
	OrderID    int64  `json:"order_id"`
	Cents      int64  `json:"cents"`
}

func (Received) EventType() string     { return "payment.received" }
func (Received) SchemaVersion() int    { return 1 }
func (e Received) AggregateID() string { return e.CustomerID }
