package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// madeToFail marks the errors of parts that fail on purpose and recover, so that
// the journal can leave them out.
const madeToFail = "(made to fail)"

// flakyMail is a mail server that refuses every 20th letter once.
type flakyMail struct {
	mu      sync.Mutex
	letters int
	refused map[string]bool
}

func (m *flakyMail) Send(_ context.Context, to, subject string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	letter := to + subject
	if m.refused[letter] {
		return nil
	}
	if m.letters++; m.letters%20 != 0 {
		return nil
	}
	if m.refused == nil {
		m.refused = map[string]bool{}
	}
	m.refused[letter] = true
	return errors.New("421 too many connections, try again later " + madeToFail)
}

// buggyLabels makes labels. After spoil, the next order turns out to be one that
// it cannot make a label for, until fix.
type buggyLabels struct {
	mu      sync.Mutex
	waiting bool  // the next order is the one
	order   int64 // the one; 0 for none
}

func (l *buggyLabels) Label(orderID int64) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting {
		l.waiting, l.order = false, orderID
	}
	if orderID == l.order {
		return "", errors.New("the address has a letter that the printer does not know")
	}
	return fmt.Sprintf("parcel for order %d", orderID), nil
}

func (l *buggyLabels) spoil() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = true
}

func (l *buggyLabels) fix() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting, l.order = false, 0
}

func (l *buggyLabels) spoiled() (orderID int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.order
}
