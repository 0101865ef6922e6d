package handlers

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

var (
	// ErrInvalidConfig is wrapped by every refusal of a config's field.
	ErrInvalidConfig = errors.New("invalid config")
	// ErrWiring is wrapped by a *WiringError.
	ErrWiring = errors.New("handlers are wired wrongly")
	// ErrAlreadyRun is returned by the second Run of one Router.
	ErrAlreadyRun = errors.New("run the router of handlers: it is running or has run: make a new Router for each Run")
	// ErrNoHandlers is returned by Run of a Router that nothing was added to.
	ErrNoHandlers = errors.New("run the router of handlers: it has none: add some by Handle or HandleTx before Run")
	// ErrSubscriptionEnded is wrapped by Run's error when the subscriber has closed
	// a subscription that nobody asked it to close.
	ErrSubscriptionEnded = errors.New("the subscription ended by itself")
	// ErrCloseTimeout is wrapped by a *CloseTimeoutError.
	ErrCloseTimeout = errors.New("handlers still run after the close timeout")

	// ErrPostponed is wrapped by a *PostponedError.
	ErrPostponed = errors.New("postponed")
	// ErrFutureVersion is wrapped by the *PostponedError of an event that a newer
	// program wrote: it is held until that program's handlers run here too.
	ErrFutureVersion = errors.New("the event's schema version is from the future")
	// ErrInterrupted is wrapped by the *PostponedError of a delivery that a shutdown,
	// or a subscriber that takes its message back, has interrupted.
	ErrInterrupted = errors.New("interrupted")
	// ErrGoexit is the error of a handler that called runtime.Goexit, as t.FailNow does.
	ErrGoexit = errors.New("the handler ended its goroutine (runtime.Goexit, t.FailNow) instead of returning")
	// ErrTxEnded is the error of a handler that committed or rolled back the
	// transaction it was given.
	ErrTxEnded = errors.New("the handler ended the transaction, which is the router's to end: return nil to commit, an error to roll back")
	// ErrGaveUp is wrapped by a *GaveUpError.
	ErrGaveUp = errors.New("gave up")
)

// WiringError is what Handle and HandleTx panic with. It wraps ErrWiring and
// every fault that was found.
type WiringError struct {
	Handler string // the name that was to be registered
	GoType  string // of the event
	Err     error
}

func (e *WiringError) Error() string {
	return fmt.Sprintf("add handler %q for events of type %s: %v", e.Handler, e.GoType, e.Err)
}

// Unwrap gives ErrWiring and the faults.
func (e *WiringError) Unwrap() []error { return []error{ErrWiring, e.Err} }

// PermanentError is an error that trying again cannot help. See [Permanent].
type PermanentError struct{ Err error }

func (e *PermanentError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *PermanentError) Unwrap() error { return e.Err }

// Permanent marks err as one that trying again cannot help: the event goes to
// the poison queue at once. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &PermanentError{err}
}

// RetryAfterError asks for the next attempt after a time. See [RetryAfter].
type RetryAfterError struct {
	After time.Duration
	Err   error
}

func (e *RetryAfterError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *RetryAfterError) Unwrap() error { return e.Err }

// RetryAfter marks err as one that is worth another attempt, not before after has
// passed. It counts as an attempt like any other. A time that fits into
// RetryConfig.MaxElapsed is waited in place; a longer one gives the message back
// to the broker, and this process does not call the handler for that event until
// the time has passed. A process that gets the event instead does not know of it.
// RetryAfter(nil, d) is nil.
func RetryAfter(err error, after time.Duration) error {
	if err == nil {
		return nil
	}
	return &RetryAfterError{max(after, 0), err}
}

// PostponedError says that a delivery could not be settled now, and that the
// handler is not to blame: its message is to be given back (nacked), and counts
// as no attempt. It wraps ErrPostponed and the reason.
type PostponedError struct {
	After time.Duration // do not try before; 0: as soon as you like
	Err   error
}

func (e *PostponedError) Error() string { return "postponed: " + e.Err.Error() }

// Unwrap gives ErrPostponed and the reason.
func (e *PostponedError) Unwrap() []error { return []error{ErrPostponed, e.Err} }

func postponed(format string, args ...any) error {
	return &PostponedError{Err: fmt.Errorf(format, args...)}
}

// GaveUpError is what Retry returns when it will not try any more. It wraps
// ErrGaveUp and the last attempt's error.
type GaveUpError struct {
	Attempts int
	Err      error
}

func (e *GaveUpError) Error() string {
	return fmt.Sprintf("gave up after %d attempts: %v", e.Attempts, e.Err)
}

// Unwrap gives ErrGaveUp and the last error.
func (e *GaveUpError) Unwrap() []error { return []error{ErrGaveUp, e.Err} }

// PanicError is the error of a handler that panicked. The stack is not part of
// its text, which travels in headers.
type PanicError struct {
	Value any
	Stack []byte
}

func newPanicError(value any) *PanicError { return &PanicError{value, debug.Stack()} }

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Unwrap gives the value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// CloseTimeoutError is returned by Run when handlers did not return although
// their context was cancelled. Their messages are neither acked nor nacked: the
// broker delivers them again. It wraps ErrCloseTimeout.
type CloseTimeoutError struct {
	Timeout  time.Duration
	Handlers []string // names of those that still run
}

func (e *CloseTimeoutError) Error() string {
	return fmt.Sprintf("stop the router of handlers: %v of %s: %q ignore their context; make them return when it is done", ErrCloseTimeout, e.Timeout, e.Handlers)
}

// Unwrap gives ErrCloseTimeout.
func (e *CloseTimeoutError) Unwrap() error { return ErrCloseTimeout }
