package brokertest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Long is whether the long form is asked for.
var Long = os.Getenv("POSTBUS_TEST_LONG") != ""

// probe is one case: it measures one capability.
type probe struct {
	name     string // of the subtest
	says     string // in the table
	declared func(*Capabilities) *Answer
	measure  func(*room) (figures string, err error) // err says in what way it cannot
	long     bool                                    // in the long form only
}

// The cases, in the order of the table.
var cases = []probe{
	{name: "payloads", says: "payloads byte for byte: empty, binary, the largest", declared: func(c *Capabilities) *Answer { return &c.Payloads }, measure: payloads},
	{name: "headers", says: "headers byte for byte: empty, long, UTF-8, twenty of them", declared: func(c *Capabilities) *Answer { return &c.Headers }, measure: headers},
	{name: "results", says: "a result for each message of a batch", declared: func(c *Capabilities) *Answer { return &c.Results }, measure: results},
	{name: "holds back", says: "behind a message that failed, none of its key is sent", declared: func(c *Capabilities) *Answer { return &c.HoldsBack }, measure: holdsBack},
	{name: "too large", says: "a message over the limit is told to be permanent", declared: func(c *Capabilities) *Answer { return &c.TellsTooLarge }, measure: tooLarge},
	{name: "away", says: "a server that is away is told, soon, and is outbox.ErrUnavailable", declared: func(c *Capabilities) *Answer { return &c.TellsAway }, measure: away},
	{name: "deadline", says: "a call ends with its deadline while the network stalls", declared: func(c *Capabilities) *Answer { return &c.Deadline }, measure: deadline},
	{name: "pipelines", says: "100 messages of one call do not take 100 round trips", declared: func(c *Capabilities) *Answer { return &c.Pipelines }, measure: pipelines},
	{name: "order", says: "order per key, one consumer, a tenth nacked", declared: func(c *Capabilities) *Answer { return &c.OrderPerKey }, measure: order},
	{name: "in flight", says: "64 messages in flight, where 64 are asked for", declared: func(c *Capabilities) *Answer { return &c.InFlight }, measure: inFlight},
	{name: "members", says: "order per key over 2 to 4 consumers that come and go", declared: func(c *Capabilities) *Answer { return &c.OrderOverMembers }, measure: members},
	{name: "killed server", says: "server killed under load: nothing lost, in order, both go on", declared: func(c *Capabilities) *Answer { return &c.SurvivesKill }, measure: killedServer},
	{name: "publisher cut", says: "publisher's connections cut under load: the same", declared: func(c *Capabilities) *Answer { return &c.PublisherCut }, measure: publisherCut},
	{name: "subscriber cut", says: "subscriber's connections cut under load: the same", declared: func(c *Capabilities) *Answer { return &c.SubscriberCut }, measure: subscriberCut},
	{name: "publisher half-open", says: "publisher's connections half-open: the same", declared: func(c *Capabilities) *Answer { return &c.PublisherFrozen }, measure: publisherFrozen},
	{name: "subscriber half-open", says: "subscriber's connections half-open: the same", declared: func(c *Capabilities) *Answer { return &c.SubscriberFrozen }, measure: subscriberFrozen, long: true},
	{name: "killed consumer", says: "consumer killed in mid-handler: another one gets its message", declared: func(c *Capabilities) *Answer { return &c.ConsumerKilled }, measure: killedConsumer},
	{name: "foreign entry", says: "an entry that cannot be read is handed on, stops nobody", declared: func(c *Capabilities) *Answer { return &c.Foreign }, measure: foreignEntry},
	{name: "publisher closes", says: "publisher: close at any time, twice; afterwards an error", declared: func(c *Capabilities) *Answer { return &c.PublisherClose }, measure: publisherCloses},
	{name: "subscriber closes", says: "subscriber: the same, and with nobody reading", declared: func(c *Capabilities) *Answer { return &c.SubscriberClose }, measure: subscriberCloses},
	{name: "graceful stop", says: "close waits for handlers, and repeats nothing", declared: func(c *Capabilities) *Answer { return &c.GracefulStop }, measure: gracefulStop},
	{name: "topics", says: "1,000 topics", declared: func(c *Capabilities) *Answer { return &c.ManyTopics }, measure: topics},
	{name: "lag", says: "tells its lag: messages and age", declared: func(c *Capabilities) *Answer { return &c.Lag }, measure: lag},
	{name: "relay", says: "under the outbox relay: nothing lost, in order", declared: func(c *Capabilities) *Answer { return &c.UnderRelay }, measure: underRelay},
}

const leaksSay = "no goroutine is left"

func isCase(name string) bool {
	return slices.ContainsFunc(cases, func(p probe) bool { return p.name == name })
}

// Run measures every capability of b, each in a subtest, and holds it against what is
// declared, and that against the documentation.
func Run(t *testing.T, b Broker) {
	b = b.withDefaults(t)
	report := newReport(b)
	leaks, ran, want := 0, 0, 0
	for _, p := range cases {
		declared := *p.declared(&b.Capabilities)
		if p.long && !Long {
			continue
		}
		want++
		if !Long && b.Short != nil && !slices.Contains(b.Short, p.name) {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			ran++
			if why, ok := b.Skip[p.name]; ok {
				t.Log("left out: " + why)
				return
			}
			before := goleak.IgnoreCurrent()
			t.Cleanup(func() { // last of all
				if err := left(append(ignored(b), before)); err != nil {
					leaks++
					if b.Capabilities.NoLeaks == Yes {
						t.Errorf("%s: %v", leaksSay, err)
					}
				}
			})
			began := time.Now()
			figures, err := p.measure(newRoom(t, b))
			took := time.Since(began).Round(10 * time.Millisecond)
			if err != nil {
				report.add(p, declared, false, strings.TrimPrefix(figures+": ", ": ")+err.Error(), took)
			} else {
				report.add(p, declared, true, figures, took)
			}
			if fault := verdict(p.says, declared, figures, err); fault != nil {
				t.Error(fault)
			} else if err != nil {
				t.Logf("as declared, not: %v", err)
			}
			t.Logf("declared %s; %s; %s", declared, figures, took)
		})
	}
	if t.Failed() || ran < want {
		return // some were chosen
	}
	if b.Capabilities.NoLeaks == No && leaks == 0 && Long {
		t.Errorf("%q is declared no, and no case has left one: declare it", leaksSay)
	}
	report.leaks = leaks
	report.finish(t)
}

// verdict compares what was measured with what is declared.
func verdict(says string, declared Answer, figures string, err error) error {
	switch {
	case err != nil && declared == Yes:
		return fmt.Errorf("%s: %w (%s)", says, err, figures)
	case err == nil && declared == No:
		return fmt.Errorf("%s: it is declared no, and it works (%s): declare it", says, figures)
	}
	return nil
}

func ignored(b Broker) (options []goleak.Option) {
	for _, f := range b.Idle {
		options = append(options, goleak.IgnoreAnyFunction(f))
	}
	return options
}

// left waits a while for goroutines that are about to end: a client's that finishes a call, say.
func left(options []goleak.Option) (err error) {
	if until(5*time.Second, func() bool { err = goleak.Find(options...); return err == nil }, "goroutines end") == nil {
		return nil
	}
	return err
}

func figuresOf(format string, args ...any) string { return fmt.Sprintf(format, args...) }
