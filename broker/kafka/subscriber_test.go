package kafka

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/brokerserver"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func newSubscriber(t testing.TB, cfg SubscriberConfig) *Subscriber {
	t.Helper()
	if cfg.Group == "" {
		cfg.Group = testkit.Name(t)
	}
	if cfg.Logger == nil {
		cfg.Logger = quiet()
	}
	s, err := NewSubscriber(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func subscribe(t testing.TB, s *Subscriber, topic string) <-chan *message.Message {
	t.Helper()
	ch, err := s.Subscribe(context.Background(), topic)
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func receive(t testing.TB, ch <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case m, ok := <-ch:
		if !ok {
			t.Fatal("the channel is closed; want a message")
		}
		return m
	case <-time.After(patience):
		t.Fatal("no message came")
	}
	return nil
}

func isClosed(t testing.TB, ch <-chan *message.Message) {
	t.Helper()
	for {
		select {
		case m, ok := <-ch:
			if !ok {
				return
			}
			t.Fatalf("got message %s; want a closed channel", m.UUID)
		case <-time.After(patience):
			t.Fatal("the channel was not closed")
		}
	}
}

// publishKeys publishes n messages over keys.
func publishKeys(t testing.TB, p *Publisher, topic string, keys, from, to int) {
	t.Helper()
	var msgs []*outbox.Message
	for n := from; n < to; n++ {
		msgs = append(msgs, outboxMessage(topic, "key "+strconv.Itoa(n%keys), n))
	}
	publishAll(t, p, msgs)
}

// publishAll publishes as a relay does: what is not done, again and in order.
func publishAll(t testing.TB, p *Publisher, msgs []*outbox.Message) {
	t.Helper()
	for deadline := time.Now().Add(2 * patience); len(msgs) > 0; {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		results := publishBatch(p, ctx, msgs)
		cancel()
		var left []*outbox.Message
		for i, r := range results {
			if r.Status != outbox.Done {
				left = append(left, msgs[i])
			}
		}
		msgs = left
		if time.Now().After(deadline) {
			t.Fatalf("%d messages cannot be published: %v", len(left), firstErr(results))
		}
	}
}

// ledger notes what handlers do.
type ledger struct {
	t       *testing.T
	mu      sync.Mutex
	handled map[int]int    // how often each message was acked
	last    map[string]int // the last first handling of each key
	running map[string]int // of each key, now
	most    int            // at once
	now     int
	faults  []string
}

func newLedger(t *testing.T) *ledger {
	return &ledger{t: t, handled: make(map[int]int), last: make(map[string]int), running: make(map[string]int)}
}

// work handles what comes, until the channel is closed; fail says that a
// handling should fail.
func (l *ledger) work(ch <-chan *message.Message, workers int, fail func() bool, took func() time.Duration) *sync.WaitGroup {
	var working sync.WaitGroup
	for range workers {
		working.Go(func() {
			for m := range ch {
				l.handle(m, fail, took)
			}
		})
	}
	return &working
}

func (l *ledger) handle(m *message.Message, fail func() bool, took func() time.Duration) {
	key := m.Metadata[events.HeaderPartitionKey]
	n, err := strconv.Atoi(strings.TrimPrefix(m.Metadata[events.HeaderPosition], "shop/1/"))
	l.mu.Lock()
	if err != nil {
		l.faults = append(l.faults, err.Error())
	}
	l.running[key]++
	if l.running[key] > 1 {
		l.faults = append(l.faults, fmt.Sprintf("two messages of %s at once", key))
	}
	l.now++
	l.most = max(l.most, l.now)
	if l.handled[n] == 0 {
		if last, ok := l.last[key]; ok && last > n {
			l.faults = append(l.faults, fmt.Sprintf("message %d of %s is handled first after %d", n, key, last))
		}
	}
	l.mu.Unlock()
	if took != nil {
		select {
		case <-time.After(took()):
		case <-m.Context().Done():
		}
	}
	failed := fail != nil && fail()
	l.mu.Lock()
	l.running[key]--
	l.now--
	if !failed {
		if l.handled[n] == 0 {
			l.last[key] = n
		}
		l.handled[n]++
	}
	l.mu.Unlock()
	if failed {
		m.Nack()
	} else {
		m.Ack()
	}
}

func (l *ledger) done() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.handled)
}

func (l *ledger) repeats() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, times := range l.handled {
		n += times - 1
	}
	return n
}

func (l *ledger) check() {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, f := range l.faults {
		if i == 5 {
			l.t.Errorf("and %d more", len(l.faults)-i)
			break
		}
		l.t.Error(f)
	}
}

func someFail() bool { return rand.IntN(20) == 0 }

func committed(t testing.TB, c Cluster, group, topic string) (sum int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	offsets, err := admin(t, c).FetchOffsetsForTopics(ctx, group, topic)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range offsets[topic] {
		sum += max(o.At, 0)
	}
	return sum
}

func TestSubscriberKeepsOrderPerKey(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 3)
	publishKeys(t, newPublisher(t, PublisherConfig{Cluster: c}), topic, 100, 0, 3000)
	s := newSubscriber(t, SubscriberConfig{Cluster: c, NackDelay: time.Millisecond, MaxNackDelay: 5 * time.Millisecond})
	l := newLedger(t)
	working := l.work(subscribe(t, s, topic), 64, someFail, func() time.Duration { return rand.N(2 * time.Millisecond) })
	testkit.Eventually(t, patience, func() bool { return l.done() == 3000 }, "all are handled")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	working.Wait()
	l.check()
	if l.repeats() != 0 {
		t.Errorf("%d were handled again", l.repeats())
	}
	if l.most < 16 {
		t.Errorf("%d at once at most, want some 64", l.most)
	}
	if n := committed(t, c, s.cfg.Group, topic); n != 3000 {
		t.Errorf("offsets committed: %d, want 3000", n)
	}
}

func TestMessageOfARecord(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 1)
	client, err := kgo.NewClient(c.options()...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	when := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	records := []*kgo.Record{
		{Value: []byte("stock"), Timestamp: when, Headers: []kgo.RecordHeader{{Key: headerUUID, Value: []byte("id 0")}, {Key: "color", Value: []byte("blue")},
			{Key: HeaderUndecodable, Value: []byte("not so")}}},
		{Key: []byte("k"), Value: []byte("foreign")},
		{Key: []byte("k")},
		{Key: []byte("other"), Value: []byte{}, Headers: []kgo.RecordHeader{{Key: events.HeaderPartitionKey, Value: []byte("k")}}},
	}
	for _, r := range records {
		r.Topic = topic
	}
	if err := client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	s := newSubscriber(t, SubscriberConfig{Cluster: c, MaxInFlight: 1})
	ch := subscribe(t, s, topic)
	var got []*message.Message
	for range records {
		m := receive(t, ch)
		got = append(got, m)
		m.Ack()
	}
	m := got[0]
	if m.UUID != "id 0" || string(m.Payload) != "stock" || m.Metadata["color"] != "blue" || m.Metadata[HeaderUndecodable] != "" ||
		m.Metadata[HeaderTopic] != topic || m.Metadata[HeaderPartition] != "0" || m.Metadata[HeaderOffset] != "0" ||
		m.Metadata[HeaderTimestamp] != "2026-01-02T03:04:05.678Z" || m.Metadata[HeaderDeliveryCount] != "1" {
		t.Errorf("message 0 is %s %v", m.UUID, m.Metadata)
	}
	if m = got[1]; m.UUID == "" || m.UUID == got[2].UUID || string(m.Payload) != "foreign" || m.Metadata[HeaderKey] != "k" || m.Metadata[HeaderUndecodable] != "" {
		t.Errorf("message 1 is %s %v", m.UUID, m.Metadata)
	}
	if m = got[2]; m.Metadata[HeaderUndecodable] == "" {
		t.Errorf("message 2 is %s %v", m.UUID, m.Metadata)
	}
	if m = got[3]; m.Metadata[HeaderUndecodable] != "" || m.Metadata[HeaderKey] != "other" {
		t.Errorf("message 3 is %s %v", m.UUID, m.Metadata)
	}
}

func TestNackComesAgainFirst(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 1)
	p := newPublisher(t, PublisherConfig{Cluster: c})
	publishKeys(t, p, topic, 1, 0, 2)
	s := newSubscriber(t, SubscriberConfig{Cluster: c, NackDelay: time.Millisecond})
	ch := subscribe(t, s, topic)
	for count := 1; count <= 3; count++ {
		m := receive(t, ch)
		if m.Metadata[events.HeaderPosition] != "shop/1/0" || m.Metadata[HeaderDeliveryCount] != strconv.Itoa(count) {
			t.Fatalf("delivery %d is %v", count, m.Metadata)
		}
		m.Metadata["changed"], m.Payload[0] = "x", 'x'
		if count < 3 {
			m.Nack()
			continue
		}
		m.Ack()
	}
	m := receive(t, ch)
	if m.Metadata[events.HeaderPosition] != "shop/1/1" || m.Metadata["changed"] != "" {
		t.Errorf("then comes %v", m.Metadata)
	}
	m.Ack()
}

// The offset that is committed never passes a record that is not handled.
func TestCommitsNothingUnhandled(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 1)
	publishKeys(t, newPublisher(t, PublisherConfig{Cluster: c}), topic, 20, 0, 20)
	group := testkit.Name(t)
	s := newSubscriber(t, SubscriberConfig{Cluster: c, Group: group, CloseTimeout: 50 * time.Millisecond})
	ch := subscribe(t, s, topic)
	var held *message.Message
	for range 20 {
		if m := receive(t, ch); m.Metadata[HeaderOffset] == "5" {
			held = m
		} else {
			m.Ack()
		}
	}
	testkit.Eventually(t, patience, func() bool { return committed(t, c, group, topic) == 5 }, "the first five are committed")
	if err := s.Close(); !errors.Is(err, ErrCloseTimeout) {
		t.Errorf("error is %v", err)
	}
	if held.Context().Err() == nil || !errors.Is(context.Cause(held.Context()), ErrCloseTimeout) {
		t.Errorf("the handler's context: %v", context.Cause(held.Context()))
	}
	if n := committed(t, c, group, topic); n != 5 {
		t.Errorf("committed offset is %d, want 5", n)
	}
	again := subscribe(t, newSubscriber(t, SubscriberConfig{Cluster: c, Group: group}), topic)
	for offset := 5; offset < 20; offset++ {
		m := receive(t, again)
		if offset == 5 && m.Metadata[HeaderOffset] != "5" {
			t.Errorf("then comes %v", m.Metadata)
		}
		m.Ack()
	}
}

// A key that fails for ever stops itself, and other partitions not at all.
func TestFailingKeyStopsOnlyItself(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 4)
	p := newPublisher(t, PublisherConfig{Cluster: c})
	var msgs []*outbox.Message
	for n := range 2000 {
		key := "bad"
		if n%2 == 0 {
			key = "key " + strconv.Itoa(n%31)
		}
		msgs = append(msgs, outboxMessage(topic, key, n))
	}
	publishAll(t, p, msgs)
	s := newSubscriber(t, SubscriberConfig{Cluster: c, MaxBuffered: 100, MaxInFlight: 8, NackDelay: time.Millisecond, MaxNackDelay: 10 * time.Millisecond})
	ch := subscribe(t, s, topic)
	bad := newPartitioner(Murmur2, nil).ForTopic(topic).Partition(&kgo.Record{Key: []byte("bad")}, 4)
	want := 0
	for _, m := range msgs {
		if newPartitioner(Murmur2, nil).ForTopic(topic).Partition(&kgo.Record{Key: []byte(m.Key)}, 4) != bad {
			want++
		}
	}
	var handled atomic.Int64
	var working sync.WaitGroup
	for range 8 {
		working.Go(func() {
			for m := range ch {
				if m.Metadata[events.HeaderPartitionKey] == "bad" {
					m.Nack()
					continue
				}
				if m.Metadata[HeaderPartition] != strconv.Itoa(bad) {
					handled.Add(1)
				}
				m.Ack()
			}
		})
	}
	testkit.Eventually(t, patience, func() bool { return int(handled.Load()) == want }, "%d of the other partitions are handled", want)
	s.mu.Lock()
	for sub := range s.subs {
		sub.mu.Lock()
		if open := sub.parts[int32(bad)].open; open > 100+pollRecords {
			t.Errorf("%d records of the failing partition are in the room", open)
		}
		sub.mu.Unlock()
	}
	s.mu.Unlock()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	working.Wait()
}

func TestMembersComeAndGo(t *testing.T) {
	for _, protocol := range []Protocol{Classic, NextGen} {
		t.Run(protocol.String(), func(t *testing.T) { membersComeAndGo(t, protocol) })
	}
}

func membersComeAndGo(t *testing.T, protocol Protocol) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 4)
	group := testkit.Name(t)
	const n = 4000
	p := newPublisher(t, PublisherConfig{Cluster: c})
	publishKeys(t, p, topic, 50, 0, n/2)
	l := newLedger(t)
	member := func() func() {
		s := newSubscriber(t, SubscriberConfig{Cluster: c, Group: group, Protocol: protocol, SessionTimeout: 6 * time.Second,
			RebalanceTimeout: 10 * time.Second, NackDelay: time.Millisecond, MaxNackDelay: 5 * time.Millisecond})
		working := l.work(subscribe(t, s, topic), 64, someFail, func() time.Duration { return rand.N(20 * time.Millisecond) })
		return func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			working.Wait()
		}
	}
	reach := func(part int) {
		t.Helper()
		testkit.Eventually(t, 2*patience, func() bool { return l.done() >= part }, "%d are handled", part)
	}
	leave1 := member()
	reach(n / 10)
	leave2 := member()
	reach(n / 5)
	leave3 := member()
	reach(2 * n / 5)
	leave1()
	publishKeys(t, p, topic, 50, n/2, n)
	reach(3 * n / 5)
	leave2()
	leave4 := member()
	reach(n)
	leave3()
	leave4()
	l.check()
	if got := committed(t, c, group, topic); got != n {
		t.Errorf("offsets committed: %d, want %d", got, n)
	}
	if r := l.repeats(); r != 0 {
		t.Errorf("%d were handled again, although all handlers ended in time", r)
	}
}

// A handler that does not end in time is cancelled, and what it does then is
// not committed.
func TestRevokedWhileHandling(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 2)
	group := testkit.Name(t)
	p := newPublisher(t, PublisherConfig{Cluster: c})
	publishKeys(t, p, topic, 10, 0, 10)
	first := newSubscriber(t, SubscriberConfig{Cluster: c, Group: group, RebalanceTimeout: 2 * time.Second, CloseTimeout: 100 * time.Millisecond})
	ch := subscribe(t, first, topic)
	var held []*message.Message
	for range 10 {
		held = append(held, receive(t, ch))
	}
	second := newSubscriber(t, SubscriberConfig{Cluster: c, Group: group, RebalanceTimeout: 2 * time.Second})
	ch2 := subscribe(t, second, topic)
	m := receive(t, ch2)
	gone := 0
	for _, h := range held {
		if h.Metadata[HeaderPartition] == m.Metadata[HeaderPartition] {
			gone++
			if !errors.Is(context.Cause(h.Context()), ErrRevoked) {
				t.Errorf("the context of what is gone: %v", context.Cause(h.Context()))
			}
		} else if h.Context().Err() != nil {
			t.Errorf("the context of what has stayed: %v", h.Context().Err())
		}
		h.Ack()
	}
	if gone == 0 || gone == len(held) {
		t.Errorf("%d of %d went", gone, len(held))
	}
	testkit.Eventually(t, patience, func() bool { return committed(t, c, group, topic) == int64(len(held)-gone) }, "what has stayed is committed")
	m.Ack()
	for range gone - 1 {
		receive(t, ch2).Ack()
	}
	testkit.Eventually(t, patience, func() bool { return committed(t, c, group, topic) == int64(len(held)) }, "all is committed")
}

func TestSubscriberThroughCuts(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 2)
	proxy := testkit.NewProxy(t, testkit.Kafka(t)[0])
	publishKeys(t, newPublisher(t, PublisherConfig{Cluster: c}), topic, 50, 0, 3000)
	s := newSubscriber(t, SubscriberConfig{Cluster: through(proxy), NackDelay: time.Millisecond})
	l := newLedger(t)
	working := l.work(subscribe(t, s, topic), 16, nil, func() time.Duration { return time.Millisecond })
	for part := 300; part < 3000; part += 300 {
		testkit.Eventually(t, 2*patience, func() bool { return l.done() >= part }, "%d are handled", part)
		proxy.CutAll()
	}
	testkit.Eventually(t, 2*patience, func() bool { return l.done() == 3000 }, "all are handled")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	working.Wait()
	l.check()
	t.Logf("%d handled again", l.repeats())
}

func TestServerKilledInMidRun(t *testing.T) {
	if os.Getenv("POSTBUS_TEST_LONG") == "" {
		t.Skip("in the long form only, POSTBUS_TEST_LONG=1: TestConformance kills the server, too")
	}
	noLeaks(t)
	broker := testkit.PrivateKafka(t)
	c := Cluster{Brokers: []string{broker.Addr()}}
	topic := newTopic(t, admin(t, c), 2)
	p := newPublisher(t, PublisherConfig{Cluster: c})
	s := newSubscriber(t, SubscriberConfig{Cluster: c, SessionTimeout: 6 * time.Second, NackDelay: time.Millisecond})
	l := newLedger(t)
	publishKeys(t, p, topic, 20, 0, 100)
	working := l.work(subscribe(t, s, topic), 16, nil, func() time.Duration { return rand.N(2 * time.Millisecond) })
	const n = 4000
	published := make(chan struct{})
	go func() {
		defer close(published)
		for from := 100; from < n; from += 100 {
			publishKeys(t, p, topic, 20, from, from+100)
		}
	}()
	testkit.Eventually(t, patience, func() bool { return l.done() >= 500 }, "some are handled")
	began := time.Now()
	step := func(what string) {
		t.Logf("%s after %s; %d handled", what, time.Since(began).Round(time.Millisecond), l.done())
	}
	broker.Kill()
	step("killed")
	broker.Start()
	step("started")
	<-published
	step("published")
	testkit.Eventually(t, 2*patience, func() bool { return l.done() == n }, "all are handled")
	step("all handled")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	working.Wait()
	step("closed")
	l.check()
	t.Logf("%d handled again", l.repeats())
	firstInOrder(t, readAll(t, c, topic), n)
}

func TestSubscribeRefused(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	missing := testkit.Name(t)
	closed := testkit.NewProxy(t, testkit.Kafka(t)[0])
	closed.Refuse()
	for name, tt := range map[string]struct {
		cluster Cluster
		topic   string
		is      error
		says    string
	}{
		"missing":   {c, missing, nil, "create the topic"},
		"forbidden": {c, "a b", nil, "letters, digits"},
		"nobody":    {Cluster{Brokers: []string{closed.Addr()}}, missing, outbox.ErrUnavailable, ""},
	} {
		began := time.Now()
		_, err := newSubscriber(t, SubscriberConfig{Cluster: tt.cluster}).Subscribe(context.Background(), tt.topic)
		if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: error is %v", name, err)
		}
		if took := time.Since(began); took > callTimeout+5*time.Second {
			t.Errorf("%s: it took %s", name, took)
		}
	}
}

func TestRightsAndPasswords(t *testing.T) {
	noLeaks(t)
	broker := testkit.PrivateKafka(t)
	direct := Cluster{Brokers: []string{broker.Addr()}}
	topic := newTopic(t, admin(t, direct), 1)
	as := func(user, password string) Cluster {
		return Cluster{Brokers: []string{broker.SASLAddr}, SASL: plain.Auth{User: user, Pass: password}.AsMechanism()}
	}
	for name, tt := range map[string]struct {
		cluster Cluster
		status  string
		is      error
	}{
		"good":       {as(brokerserver.KafkaUser, brokerserver.KafkaPassword), "DD", nil},
		"wrong":      {as(brokerserver.KafkaUser, "hush"), "P-", outbox.ErrUnavailable},
		"not at all": {Cluster{Brokers: []string{broker.SASLAddr}}, "P-", outbox.ErrUnavailable},
		"powerless":  {as(brokerserver.KafkaPowerless, brokerserver.KafkaPowerlessPw), "R-", outbox.ErrPermanent},
	} {
		p := newPublisher(t, PublisherConfig{Cluster: tt.cluster})
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		results := publishBatch(p, ctx, outboxMessages(topic, "k", 2))
		cancel()
		if s := statuses(results); s != tt.status || tt.is != nil && !errors.Is(results[0].Err, tt.is) {
			t.Errorf("%s: results are %s, error %v", name, s, results[0].Err)
		}
		began := time.Now()
		_, err := newSubscriber(t, SubscriberConfig{Cluster: tt.cluster}).Subscribe(context.Background(), topic)
		if (err == nil) != (name == "good") || tt.is == outbox.ErrUnavailable && !errors.Is(err, tt.is) {
			t.Errorf("%s: error is %v", name, err)
		}
		t.Logf("%s: after %s: %v; %v", name, time.Since(began), firstErr(results), err)
		if text := fmt.Sprint(err, firstErr(results)); strings.Contains(text, "hush") || strings.Contains(text, "secret") {
			t.Errorf("%s: %s tells a password", name, text)
		}
		if text := fmt.Sprintf("%v %+v %#v", tt.cluster, SubscriberConfig{Cluster: tt.cluster}, PublisherConfig{Cluster: tt.cluster}); strings.Contains(text, "hush") ||
			strings.Contains(text, "secret") {
			t.Errorf("%s: %s tells a password", name, text)
		}
	}
}

// A static member that comes back goes on where it was, although its session
// would last for long.
func TestStaticMemberComesBack(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	a := admin(t, c)
	topic, other := newTopic(t, a, 2), newTopic(t, a, 1)
	p := newPublisher(t, PublisherConfig{Cluster: c})
	publishKeys(t, p, topic, 10, 0, 20)
	publishKeys(t, p, other, 10, 20, 30)
	group := testkit.Name(t)
	for range 2 {
		s := newSubscriber(t, SubscriberConfig{Cluster: c, Group: group, InstanceID: "pod-1", SessionTimeout: time.Minute, MaxInFlight: 1})
		ch, ch2 := subscribe(t, s, topic), subscribe(t, s, other)
		for range 10 {
			receive(t, ch).Ack()
		}
		for range 5 {
			receive(t, ch2).Ack()
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	testkit.Eventually(t, patience, func() bool { return committed(t, c, group, topic) == 20 && committed(t, c, group, other) == 10 }, "all is committed")
}

func TestSubscribeFromNow(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 2)
	p := newPublisher(t, PublisherConfig{Cluster: c})
	publishKeys(t, p, topic, 10, 0, 10)
	group := testkit.Name(t)
	s := newSubscriber(t, SubscriberConfig{Cluster: c, Group: group, Start: FromNow})
	ch := subscribe(t, s, topic)
	publishKeys(t, p, topic, 10, 10, 20)
	for range 10 {
		m := receive(t, ch)
		if n, _ := strconv.Atoi(strings.TrimPrefix(m.Metadata[events.HeaderPosition], "shop/1/")); n < 10 {
			t.Errorf("got message %d of before", n)
		}
		m.Ack()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n := committed(t, c, group, topic); n != 20 {
		t.Errorf("offsets committed: %d, want 20", n)
	}
}

func TestLag(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 2)
	p := newPublisher(t, PublisherConfig{Cluster: c})
	msgs := outboxMessages(topic, "k", 10)
	msgs[3].Payload = []byte(`{"event_id":"","timestamp":"` + time.Now().Add(-time.Hour).Format(time.RFC3339) + `"}`)
	publishAll(t, p, msgs)
	s := newSubscriber(t, SubscriberConfig{Cluster: c})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if lags, err := s.Lag(ctx); len(lags) != 0 || err != nil {
		t.Errorf("before Subscribe: %v, error %v", lags, err)
	}
	ch := subscribe(t, s, topic)
	for range 3 {
		receive(t, ch).Ack()
	}
	behind := func() Lag {
		t.Helper()
		lags, err := s.Lag(ctx)
		if err != nil || len(lags) != 2 {
			t.Fatalf("lag is %v, error %v", lags, err)
		}
		for _, l := range lags {
			if l.End > 0 {
				return l
			}
			if l.Messages != 0 || l.Oldest != 0 || l.Committed != -1 {
				t.Errorf("lag of an empty partition is %+v", l)
			}
		}
		t.Fatal("no partition has anything")
		return Lag{}
	}
	testkit.Eventually(t, patience, func() bool { return behind().Messages == 7 }, "three are committed")
	if l := behind(); l.Oldest < 59*time.Minute || l.Oldest > 61*time.Minute || l.Committed != 3 || l.End != 10 || l.Group != s.cfg.Group || l.Topic != topic {
		t.Errorf("lag is %+v", l)
	}
	for range 7 {
		receive(t, ch).Ack()
	}
	testkit.Eventually(t, patience, func() bool { return behind().Messages == 0 }, "all are committed")
	if l := behind(); l.Oldest != 0 {
		t.Errorf("lag is %+v", l)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Lag(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: error is %v", err)
	}
}

func TestCloseUnderLoad(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 2)
	group := testkit.Name(t)
	p := newPublisher(t, PublisherConfig{Cluster: c})
	const n = 2000
	publishKeys(t, p, topic, 50, 0, n)
	l := newLedger(t)
	for round := 1; l.done() < n; round++ {
		s := newSubscriber(t, SubscriberConfig{Cluster: c, Group: group})
		working := l.work(subscribe(t, s, topic), 32, nil, func() time.Duration { return rand.N(5 * time.Millisecond) })
		target := min(n, l.done()+n/4)
		testkit.Eventually(t, patience, func() bool { return l.done() >= target }, "%d are handled", target)
		var closers sync.WaitGroup
		for range 3 {
			closers.Go(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		closers.Wait()
		working.Wait()
		if got := committed(t, c, group, topic); got != int64(l.done()) {
			t.Errorf("round %d: offsets committed: %d, handled %d", round, got, l.done())
			break
		}
	}
	l.check()
	if r := l.repeats(); r != 0 {
		t.Errorf("%d were handled again", r)
	}
}

func TestCloseAtAnyTime(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 1)
	s := newSubscriber(t, SubscriberConfig{Cluster: c})
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Subscribe(context.Background(), topic); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: error is %v", err)
	}

	// Nobody reads the channel.
	publishKeys(t, newPublisher(t, PublisherConfig{Cluster: c}), topic, 10, 0, 500)
	s = newSubscriber(t, SubscriberConfig{Cluster: c, MaxInFlight: 4})
	ch := subscribe(t, s, topic)
	testkit.Eventually(t, patience, func() bool { return len(ch) == 4 }, "the channel is full")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	isClosed(t, ch)

	// While it subscribes, and by the context.
	s = newSubscriber(t, SubscriberConfig{Cluster: c})
	ctx, cancel := context.WithCancel(context.Background())
	ch, err := s.Subscribe(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	receive(t, ch).Ack()
	cancel()
	drain(ch)
	var subscribing sync.WaitGroup
	for range 4 {
		subscribing.Go(func() {
			if ch, err := s.Subscribe(context.Background(), topic); err == nil {
				drain(ch)
			} else if !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		})
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	subscribing.Wait()
}

func drain(ch <-chan *message.Message) {
	for m := range ch {
		m.Ack()
	}
}

func TestSubscriberConfigFaults(t *testing.T) {
	noLeaks(t)
	brokers := []string{"127.0.0.1:1"}
	_, fields := NewSubscriber(SubscriberConfig{Start: 7, Protocol: 7, MaxInFlight: -1, MaxBuffered: -1, MaxBufferedBytes: -1, NackDelay: -1,
		MaxNackDelay: -2, SessionTimeout: -1, RebalanceTimeout: -1, CloseTimeout: -1})
	_, options := NewSubscriber(SubscriberConfig{Group: "g", Cluster: Cluster{Brokers: brokers, Options: []kgo.Opt{
		kgo.ConsumerGroup("other"), kgo.GreedyAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()), kgo.ConsumeStartOffset(kgo.NewOffset().AtEnd()),
		kgo.InstanceID("i"), kgo.OnPartitionsRevoked(func(context.Context, *kgo.Client, map[string][]int32) {})}}})
	for _, tt := range []struct {
		err  error
		want []string
	}{
		{fields, []string{"Cluster.Brokers", "Group", "Start", "Protocol", "MaxInFlight", "MaxBuffered", "MaxBufferedBytes", "NackDelay", "MaxNackDelay",
			"SessionTimeout", "RebalanceTimeout", "CloseTimeout"}},
		{options, []string{"ConsumerGroup", "GreedyAutoCommit", "ConsumeResetOffset", "ConsumeStartOffset", "InstanceID", "OnPartitionsRevoked"}},
	} {
		if !errors.Is(tt.err, ErrInvalidConfig) {
			t.Errorf("error is %v, want one that wraps ErrInvalidConfig", tt.err)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(tt.err.Error(), want) {
				t.Errorf("error %q does not mention %s", tt.err, want)
			}
		}
	}
}
