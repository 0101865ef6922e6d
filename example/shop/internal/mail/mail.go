// Package mail writes to customers.
package mail

import (
	"context"
	"fmt"
)

// Sender takes a letter to a mail server, which may well be away.
type Sender interface {
	Send(ctx context.Context, to, subject string) error
}

// Office writes the letters.
type Office struct {
	sender Sender
}

// New makes the office.
func New(sender Sender) *Office { return &Office{sender: sender} }

// Confirm tells a customer that an order has arrived.
func (o *Office) Confirm(ctx context.Context, customerID string, orderID int64) error {
	return o.send(ctx, customerID, fmt.Sprintf("We have your order %d", orderID))
}

// Receipt tells a customer that a payment has arrived.
func (o *Office) Receipt(ctx context.Context, customerID string, orderID, cents int64) error {
	return o.send(ctx, customerID, fmt.Sprintf("Receipt of %d.%02d for order %d", cents/100, cents%100, orderID))
}

func (o *Office) send(ctx context.Context, customerID, subject string) error {
	if err := o.sender.Send(ctx, customerID+"@example.org", subject); err != nil {
		return fmt.Errorf("write %q to customer %s: %w", subject, customerID, err)
	}
	return nil
}
