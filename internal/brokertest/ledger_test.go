package brokertest

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/events"
)

// A test that cannot fail is none: each fault that a broker may commit is committed once.
func TestLedgerFindsFaults(t *testing.T) {
	arrive := func(l *ledger, ns ...int) {
		for _, n := range ns {
			l.arrived("k", n)
			l.handled("k", n)
		}
	}
	sent := map[string]int{"k": 4}
	for name, c := range map[string]struct {
		run     func(*ledger)
		order   string // part of the fault
		missing []string
		repeats int
	}{
		"all well":       {run: func(l *ledger) { arrive(l, 1, 2, 3, 4) }},
		"lost":           {run: func(l *ledger) { arrive(l, 1, 2, 3) }, missing: []string{"k/4"}},
		"lost in midway": {run: func(l *ledger) { arrive(l, 1, 3, 4) }, missing: []string{"k/2"}, order: "3 arrived after 1"},
		"turned round":   {run: func(l *ledger) { arrive(l, 1, 3, 2, 4) }, order: "3 arrived after 1"},
		"repeated":       {run: func(l *ledger) { arrive(l, 1, 2, 1, 2, 3, 4) }, repeats: 2},
		"two at once": {run: func(l *ledger) {
			l.arrived("k", 1)
			arrive(l, 2, 3, 4)
			l.handled("k", 1)
		}, order: "2 arrived before 1 was handled"},
		"nacked and overtaken": {run: func(l *ledger) {
			l.arrived("k", 1)
			l.nacked("k", 1)
			arrive(l, 2, 1, 3, 4)
		}, order: "2 arrived before 1 was handled"},
		"nacked and come again": {run: func(l *ledger) {
			l.arrived("k", 1)
			l.nacked("k", 1)
			arrive(l, 1, 2, 3, 4)
		}},
		"nacked and come twice": {run: func(l *ledger) {
			l.arrived("k", 1)
			l.nacked("k", 1)
			arrive(l, 1, 1, 2, 3, 4)
		}, repeats: 1},
		"arrived and not handled": {run: func(l *ledger) {
			arrive(l, 1, 2, 3)
			l.arrived("k", 4)
		}, missing: []string{"k/4"}},
	} {
		l := newLedger()
		c.run(l)
		if err := l.order(); (err != nil) != (c.order != "") || err != nil && !strings.Contains(err.Error(), c.order) {
			t.Errorf("%s: order says %v, want %q", name, err, c.order)
		}
		if lost := l.missing(sent); !slices.Equal(lost, c.missing) {
			t.Errorf("%s: missing is %v, want %v", name, lost, c.missing)
		}
		if n := l.repeated(); n != c.repeats {
			t.Errorf("%s: %d repeats, want %d", name, n, c.repeats)
		}
	}
}

func TestLedgerKnowsItsMessages(t *testing.T) {
	own := numbered("topic", "key", 7, 300)
	if len(own.Payload) != 300 {
		t.Errorf("the payload has %d bytes, want 300", len(own.Payload))
	}
	event, err := events.DomainEvent{EventID: own.EventID, EventType: "a.b", SchemaVersion: 1, AggregateID: "key", Timestamp: time.Now(),
		CorrelationID: "c", Data: []byte(`{"n":7}`)}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, payload := range map[string][]byte{"a message": own.Payload, "an event": event} {
		if key, n, ok := identify(message.NewMessage("id", payload)); key != "key" || n != 7 || !ok {
			t.Errorf("%s is %q %d %v", name, key, n, ok)
		}
	}
	for _, foreign := range []string{"21.5", "{}", "", "\xff"} {
		if _, _, ok := identify(message.NewMessage("id", []byte(foreign))); ok {
			t.Errorf("%q is taken for one of the suite", foreign)
		}
	}
}

func TestVerdict(t *testing.T) {
	broken := errors.New("it lost three")
	for _, c := range []struct {
		declared Answer
		err      error
		want     string
	}{
		{Yes, nil, ""}, {Yes, broken, "it lost three"}, {No, broken, ""}, {No, nil, "declare it"}, {NotAssured, nil, ""}, {NotAssured, broken, ""},
	} {
		err := verdict("it loses nothing", c.declared, "3 messages", c.err)
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("declared %s, measured %v: %v, want %q", c.declared, c.err, err, c.want)
		}
	}
}
