package bus

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
)

type tenantKey struct{}

func TestMetadataOfTheContext(t *testing.T) {
	calls := 0
	shared := map[string]string{"user": "u1", "traceparent": "00-1-2-01"}
	w := newWorldAt(t, testkit.PG15, Config{Metadata: func(ctx context.Context) map[string]string {
		calls++
		if tenant, ok := ctx.Value(tenantKey{}).(string); ok {
			shared["tenant"] = tenant
			return shared
		}
		return nil
	}})
	var first events.DomainEvent
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		if e.AggregateID == "1" {
			first = e.DomainEvent
			return w.bus.Publish(ctx, tx, stockReserved{"1"})
		}
		return nil
	})
	raw := events.DomainEvent{EventType: "raw.one", AggregateID: "3", Data: []byte("{}"), Metadata: map[string]string{"user": "raw"}}
	if err := InTx(context.WithValue(t.Context(), tenantKey{}, "acme"), w.pool, func(ctx context.Context, tx pgx.Tx) error {
		return w.bus.Publish(ctx, tx, order(1), events.With(order(2), events.Metadata("user", ""), events.Metadata("more", "yes")), events.Raw(raw))
	}); err != nil {
		t.Fatal(err)
	}
	shared["user"] = "changed afterwards"
	w.inTx(func(ctx context.Context, tx pgx.Tx) error { return w.bus.Publish(ctx, tx, order(4)) })
	if calls != 3 {
		t.Fatalf("asked %d times in 3 publications", calls)
	}
	all := map[string]string{"user": "u1", "traceparent": "00-1-2-01", "tenant": "acme"}
	with := func(user, more string) map[string]string {
		m := maps.Clone(all)
		m["user"] = user
		if more != "" {
			m["more"] = more
		}
		return m
	}
	for i, want := range []map[string]string{all, with("", "yes"), with("raw", ""), all, nil} {
		if have := w.logged()[i]; !maps.Equal(have.Metadata, want) {
			t.Errorf("%s %s carries %v, not %v", have.EventType, have.AggregateID, have.Metadata, want)
		}
	}
	if !maps.Equal(first.Metadata, all) {
		t.Errorf("the handler got %v", first.Metadata)
	}
	if raw.Metadata["tenant"] != "" {
		t.Error("the caller's map was changed")
	}
	if headers := query[*string](w, "SELECT headers FROM "+w.schema+".outbox ORDER BY id"); headers[0] == nil || headers[4] != nil {
		t.Errorf("traceparent is not copied to the headers: %v", headers)
	}
}

func TestBadMetadataOfTheContext(t *testing.T) {
	w := newWorld(t)
	boom := errors.New("boom")
	big := strings.Repeat("x", events.MaxMetadataBytes-10)
	for name, c := range map[string]struct {
		give  func() map[string]string
		want  error
		parts []string
	}{
		"reserved": {func() map[string]string { return map[string]string{"postbus_x": ""} }, events.ErrInvalidEvent, []string{"publish order.placed", "reserved prefix", "Config.Metadata"}},
		"NUL":      {func() map[string]string { return map[string]string{"user": "\x00"} }, ErrMetadata, []string{"control character"}},
		"panic":    {func() map[string]string { panic(boom) }, boom, []string{"Config.Metadata panicked"}},
		"together": {func() map[string]string { return map[string]string{"big": big} }, events.ErrInvalidEvent, []string{"order.placed", "bytes and the limit", "(Config.Metadata)"}},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := newBus(w.log, Config{Metadata: func(context.Context) map[string]string { return c.give() }})
			if err != nil {
				t.Fatal(err)
			}
			says(t, InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
				return b.Publish(ctx, tx, events.With(order(1), events.Metadata("mine", "0123456789")))
			}), c.want, c.parts...)
		})
	}
	if n := w.log.appends.Load(); n != 0 {
		t.Fatalf("%d appends", n)
	}
}
