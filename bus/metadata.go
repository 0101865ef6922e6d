package bus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/wirename"
)

// ErrMetadata is wrapped by a *[MetadataError].
var ErrMetadata = errors.New("the metadata of the context is not usable")

// MetadataError refuses a Publish because of what [Config].Metadata has returned.
// Nothing has been appended.
type MetadataError struct {
	EventType string // of the first event of the call
	Err       error  // an *events.InvalidEventError, or a *PanicError
}

func (e *MetadataError) Error() string {
	return fmt.Sprintf("publish %s: %v: correct what Config.Metadata returns: %v", e.EventType, ErrMetadata, e.Err)
}

// Unwrap gives ErrMetadata and the cause.
func (e *MetadataError) Unwrap() []error { return []error{ErrMetadata, e.Err} }

// contextMetadata asks Config.Metadata, once per Publish.
func (b *EventBus) contextMetadata(ctx context.Context, first events.Payload) (m map[string]string, err error) {
	if b.metadata == nil {
		return nil, nil
	}
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack(), Handler: "Config.Metadata"}
		}
		if err != nil {
			err = &MetadataError{EventType: typeOf(first), Err: err}
		}
	}()
	m = b.metadata(ctx)
	return m, checkMetadata(m, events.DomainEvent{EventType: typeOf(first)})
}

// checkMetadata applies the rules of package events, to an event in which only the
// metadata can be wrong. The error is about e.
func checkMetadata(m map[string]string, e events.DomainEvent) error {
	if len(m) == 0 {
		return nil
	}
	probe := wirename.SoundEvent()
	probe.Metadata = m
	err := probe.Validate()
	var invalid *events.InvalidEventError
	if errors.As(err, &invalid) {
		invalid.EventType, invalid.EventID = e.EventType, e.EventID
	}
	return err
}

// addMetadata gives e what it does not say itself. Each event has a map of its own.
func addMetadata(e *events.DomainEvent, m map[string]string) error {
	if len(m) == 0 {
		return nil
	}
	own := e.Metadata
	e.Metadata = maps.Clone(m)
	if len(own) == 0 {
		return nil
	}
	maps.Copy(e.Metadata, own)
	if err := checkMetadata(e.Metadata, *e); err != nil { // each is sound, and both together may be too much
		return fmt.Errorf("publish, with the metadata of the context (Config.Metadata): %w", err)
	}
	return nil
}
