package bus

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

// HandlerError is what one handler returned, or panicked with, for one event.
type HandlerError struct {
	Kind        Kind
	Handler     string // package.Function
	EventType   string
	EventID     uuid.UUID
	AfterCommit bool  // the event is committed, and stays so
	Err         error // what the handler returned, or a *PanicError
}

func (e *HandlerError) Error() string {
	return fmt.Sprintf("%s handler %s of %s %s: %v", e.Kind, e.Handler, e.EventType, e.EventID, e.Err)
}

// Unwrap gives what the handler returned.
func (e *HandlerError) Unwrap() error { return e.Err }

// PanicError is the panic of a handler. Its text leaves out the stack.
type PanicError struct {
	Value   any    // what panic was called with
	Stack   []byte // of the goroutine, from the panic on
	Handler string // package.Function
	EventID uuid.UUID
}

func (e *PanicError) Error() string {
	return fmt.Sprintf("%s panicked: %v", e.Handler, e.Value)
}

// Unwrap gives the value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

var (
	errLeftAborted = errors.New("it returned nil although one of its statements had failed, which aborts the transaction: return the error, or run the statement in a savepoint (pgx.BeginFunc)")
	errExited      = errors.New("it ended the goroutine by runtime.Goexit (or t.FailNow): return an error instead")
)

// protect calls a handler and makes an error of its panic. If the handler ends
// the goroutine, that cannot be held up: exited is called, and the defers further
// up run.
func protect(handler string, id uuid.UUID, call func() error, exited func()) (err error) {
	returned := false
	defer func() {
		if returned {
			return
		}
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack(), Handler: handler, EventID: id}
			return
		}
		exited()
	}()
	err = call()
	returned = true
	return err
}

// handleInTx calls the in-tx handlers of one event and joins their errors.
func (b *EventBus) handleInTx(ctx context.Context, tx pgx.Tx, s *scope, o *occurrence) error {
	if len(o.route.inTx) == 0 {
		return nil
	}
	e := o.envelope
	parent := s.chain
	s.chain = parent.next(e.EventType)
	defer func() { s.chain = parent }()
	ctx = withFrame(events.ContextHandling(ctx, *e), frame{scope: s, chain: s.chain})

	var faults []error
	for _, h := range o.route.inTx {
		name := h.info.Handler
		err := protect(name, e.EventID, func() error { return h.call(ctx, o.to(h, tx)) }, func() {})
		aborted := !s.ended && txStatus(tx) == statusAborted
		if err == nil && aborted {
			err = errLeftAborted
		}
		if err == nil {
			continue
		}
		faults = append(faults, &HandlerError{Kind: KindInTx, Handler: name, EventType: e.EventType, EventID: e.EventID, Err: err})
		if aborted || ctx.Err() != nil {
			break // every further statement would fail for this reason alone
		}
	}
	return errors.Join(faults...)
}
