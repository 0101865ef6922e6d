package kafka

import (
	"context"
	"crypto/rand"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func TestPublishBatch(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 3)
	p := newPublisher(t, PublisherConfig{Cluster: c})
	var msgs []*outbox.Message
	for n := range 3000 {
		msgs = append(msgs, outboxMessage(topic, "key "+strconv.Itoa(n%50), n))
	}
	msgs[7].Headers = map[string]string{events.HeaderTraceParent: "00-1-2-01"}
	for from := 0; from < len(msgs); from += 1000 {
		results := publishBatch(p, context.Background(), msgs[from:from+1000])
		if s := statuses(results); s != strings.Repeat("D", 1000) {
			t.Fatalf("results are %s; first error %v", s, firstErr(results))
		}
	}
	found := readAll(t, c, topic)
	if count(found) != 3000 || len(found) != 3 {
		t.Fatalf("%d records in %d partitions, want 3000 in 3", count(found), len(found))
	}
	last := make(map[string]int)
	for partition, rs := range found {
		for _, r := range rs {
			n := position(t, r)
			m := msgs[n]
			if string(r.Key) != m.Key || string(r.Value) != string(m.Payload) || header(r, headerUUID) != m.EventID.String() ||
				header(r, events.HeaderEventType) != "order.placed" || header(r, events.HeaderSchemaVersion) != "2" ||
				header(r, events.HeaderPartitionKey) != m.Key || header(r, events.HeaderContentType) != "application/json" {
				t.Fatalf("record of message %d is %v", n, r)
			}
			if n == 7 && header(r, events.HeaderTraceParent) != "00-1-2-01" {
				t.Errorf("the trace is lost: %v", r.Headers)
			}
			if before, ok := last[m.Key]; ok && before >= n {
				t.Fatalf("partition %d: message %d of %s comes after %d", partition, n, m.Key, before)
			}
			last[m.Key] = n
		}
	}
}

// position is the message's number: the log id in its position.
func position(t testing.TB, r *kgo.Record) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimPrefix(header(r, events.HeaderPosition), "shop/1/"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What a batch of Kafka's refuses for one record does not hit the others.
func TestPublishBatchFindsTheCulprit(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	a := admin(t, c)
	topic := newTopic(t, a, 1, "max.message.bytes", "2000", "message.timestamp.after.max.ms", "3600000")
	p := newPublisher(t, PublisherConfig{Cluster: c})

	// Healthy small records whose batch would be over the limit.
	msgs := outboxMessages(topic, "a", 10)
	for _, m := range msgs {
		m.Payload = noise(500)
		m.Key = "key " + strconv.Itoa(int(m.LogID))
	}
	if s := statuses(publishBatch(p, context.Background(), msgs)); s != "DDDDDDDDDD" {
		t.Errorf("small records: results are %s", s)
	}

	// One over the limit, by counting: its key stops, and only that.
	msgs[3].Payload, msgs[3].Key, msgs[5].Key = noise(3000), "big", "big"
	results := publishBatch(p, context.Background(), msgs)
	var tooLarge *TooLargeError
	if s := statuses(results); s != "DDDRD-DDDD" || !errors.As(results[3].Err, &tooLarge) || !errors.Is(results[3].Err, outbox.ErrPermanent) {
		t.Errorf("one too large: results are %s, error %v", s, results[3].Err)
	} else if tooLarge.MaxBytes != 2000-overhead || tooLarge.Bytes < 3000 {
		t.Errorf("one too large: %+v", tooLarge)
	}

	// The limit is lowered behind the publisher's back.
	alter(t, a, topic, "max.message.bytes", "1500")
	msgs[3].Payload = noise(1600)
	results = publishBatch(p, context.Background(), msgs)
	if s := statuses(results); s != "DDDRD-DDDD" || !errors.As(results[3].Err, &tooLarge) {
		t.Errorf("limit lowered: results are %s, error %v", s, firstErr(results))
	}
	n := count(readAll(t, c, topic))

	// Without a right to know it, the culprit is found by trying.
	alter(t, a, topic, "max.message.bytes", "1000")
	p.topics.mu.Lock()
	p.topics.known[topic] = topicFacts{maxBytes: 4000, until: time.Now().Add(time.Hour)}
	p.topics.mu.Unlock()
	b := &batch{facts: make(map[string]topicFacts)}
	b.begin(relayMessages(msgs), make([]outbox.Result, len(msgs)))
	b.unknown(p.topics, time.Now())
	rounds := 0
	for len(b.todo) > 0 {
		rounds++
		taken, err := newCourier(p.couriers.opts, Murmur2)
		if err != nil {
			t.Fatal(err)
		}
		if !b.load(context.Background(), taken, p.limit) {
			t.Fatal("the courier knows another limit")
		}
		if sent, err := taken.flush(context.Background()); !sent || err != nil {
			t.Fatal(sent, err)
		}
		b.settle(taken, func(string, bool, error) error { return errors.New("unsent") })
		taken.client.Close()
	}
	if s := statuses(b.results); s != "DDDR------" || !errors.As(b.results[3].Err, &tooLarge) {
		t.Errorf("by trying, after %d rounds: results are %s, error %v", rounds, s, firstErr(b.results))
	}
	if now := count(readAll(t, c, topic)); now != n+3 {
		t.Errorf("by trying: %d records more, want 3", now-n)
	}
}

// noise is what no compression makes smaller.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func alter(t testing.TB, a *kadm.Client, topic, name, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := a.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Name: name, Value: &value}}, topic); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, func() bool {
		configs, err := a.DescribeTopicConfigs(ctx, topic)
		if err != nil || len(configs) != 1 {
			return false
		}
		for _, c := range configs[0].Configs {
			if c.Key == name {
				return c.MaybeValue() == value
			}
		}
		return false
	}, "%s of %s is %s", name, topic, value)
}

func TestPublishBatchRefused(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	a := admin(t, c)
	topic := newTopic(t, a, 1)
	p := newPublisher(t, PublisherConfig{Cluster: c})
	missing := testkit.Name(t)
	msgs := []*outbox.Message{
		outboxMessage(topic, "a", 0), outboxMessage(missing, "b", 1), outboxMessage(missing, "b", 2),
		outboxMessage("no topic!", "c", 3), outboxMessage(topic, "a", 4), outboxMessage("", "d", 5), outboxMessage(topic, "e", 6),
	}
	msgs[6].Headers = map[string]string{headerUUID: "x"}
	results := publishBatch(p, context.Background(), msgs)
	if s := statuses(results); s != "DP-RDRR" {
		t.Errorf("results are %s, first error %v", s, firstErr(results))
	}
	var refused *RefusedError
	if !errors.As(results[1].Err, &refused) || errors.Is(results[1].Err, outbox.ErrUnavailable) || errors.Is(results[1].Err, outbox.ErrPermanent) ||
		!strings.Contains(results[1].Err.Error(), "create the topic") {
		t.Errorf("missing topic: error is %v", results[1].Err)
	}
	for _, i := range []int{3, 5, 6} {
		var invalid *InvalidMessageError
		if !errors.As(results[i].Err, &invalid) || !errors.Is(results[i].Err, outbox.ErrPermanent) {
			t.Errorf("message %d: error is %v", i, results[i].Err)
		}
	}
	// It is created, and goes through.
	create(t, a, missing)
	testkit.Eventually(t, patience, func() bool {
		return statuses(publishBatch(p, context.Background(), msgs[1:3])) == "DD"
	}, "the topic is found")

	// It is removed and created anew: the same.
	ctx := context.Background()
	if _, err := a.DeleteTopic(ctx, missing); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, func() bool {
		return statuses(publishBatch(p, context.Background(), msgs[1:3])) == "P-"
	}, "the removal is noticed")
	create(t, a, missing)
	testkit.Eventually(t, patience, func() bool {
		return statuses(publishBatch(p, context.Background(), msgs[1:3])) == "DD"
	}, "the new topic is found")
}

func create(t testing.TB, a *kadm.Client, topic string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	testkit.Eventually(t, patience, func() bool { // while it is still being removed it is refused
		_, err := a.CreateTopic(ctx, 1, 1, nil, topic)
		return err == nil
	}, "topic %s is created", topic)
	t.Cleanup(func() { a.DeleteTopic(context.Background(), topic) })
}

func TestPublishBatchHonoursDeadlineOnStall(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 2)
	proxy := testkit.NewProxy(t, testkit.Kafka(t)[0])
	p := newPublisher(t, PublisherConfig{Cluster: through(proxy)})
	testkit.Eventually(t, patience, func() bool {
		return statuses(publishBatch(p, context.Background(), outboxMessages(topic, "k", 2))) == "DD"
	}, "they go through")
	proxy.Stall()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	began := time.Now()
	results := publishBatch(p, ctx, outboxMessages(topic, "k", 3))
	if took := time.Since(began); took > time.Second {
		t.Errorf("returned after %s, want 300ms", took)
	}
	if s := statuses(results); s != "UUU" || !errors.Is(results[0].Err, outbox.ErrUnavailable) {
		t.Errorf("results are %s, error %v", s, results[0].Err)
	}
	cancel()
	if results = publishBatch(p, ctx, outboxMessages(topic, "k", 2)); statuses(results) != "--" || results[0].Err == nil {
		t.Errorf("after the deadline: results are %s, error %v", statuses(results), results[0].Err)
	}

	// The new client has nothing that it could have sent yet.
	ctx, cancel = context.WithTimeout(context.Background(), 300*time.Millisecond)
	results = publishBatch(p, ctx, outboxMessages(topic, "other", 2))
	if s := statuses(results); s != "P-" || !errors.Is(results[0].Err, outbox.ErrUnavailable) {
		t.Errorf("no connection: results are %s, error %v", s, results[0].Err)
	}
	cancel()

	ctx, cancel = context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	began = time.Now()
	results = publishBatch(p, ctx, outboxMessages(topic, "k", 2))
	if took := time.Since(began); took > time.Second || errors.Is(results[0].Err, outbox.ErrUnavailable) || !errors.Is(results[0].Err, context.Canceled) {
		t.Errorf("cancelled: returned after %s, results %s, error %v", took, statuses(results), results[0].Err)
	}
	proxy.Resume()
	testkit.Eventually(t, patience, func() bool {
		return statuses(publishBatch(p, context.Background(), outboxMessages(topic, "k", 2))) == "DD"
	}, "it goes on")
}

func TestPublishBatchConnectionRefused(t *testing.T) {
	noLeaks(t)
	proxy := testkit.NewProxy(t, testkit.Kafka(t)[0])
	proxy.Refuse()
	p := newPublisher(t, PublisherConfig{Cluster: through(proxy)})
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	results := publishBatch(p, ctx, outboxMessages("anything", "k", 2))
	if s := statuses(results); s != "P-" || !errors.Is(results[0].Err, outbox.ErrUnavailable) {
		t.Errorf("results are %s, error %v", s, results[0].Err)
	}
}

// A cut in the middle loses nothing, and mostly is not even noticed.
func TestPublishBatchThroughCuts(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 2)
	proxy := testkit.NewProxy(t, testkit.Kafka(t)[0])
	p := newPublisher(t, PublisherConfig{Cluster: through(proxy)})
	var mu sync.Mutex
	pieces := 0
	proxy.OnClientBytes(func([]byte) testkit.Action {
		mu.Lock()
		defer mu.Unlock()
		if pieces++; pieces%9 == 0 {
			return testkit.LoseReply
		}
		return testkit.Forward
	})
	n := 0
	for range 20 {
		var msgs []*outbox.Message
		for range 100 {
			msgs = append(msgs, outboxMessage(topic, "key "+strconv.Itoa(n%7), n))
			n++
		}
		for len(msgs) > 0 { // as a relay does: what is not done, again and in order
			results := publishBatch(p, context.Background(), msgs)
			var left []*outbox.Message
			stopped := make(map[string]bool)
			for i, r := range results {
				if r.Status == outbox.Permanent {
					t.Fatal(r.Err)
				}
				if r.Status != outbox.Done {
					stopped[msgs[i].Key] = true
					left = append(left, msgs[i])
				} else if stopped[msgs[i].Key] {
					t.Fatalf("a later message of a failed key is done: %s", statuses(results))
				}
			}
			msgs = left
		}
	}
	firstInOrder(t, readAll(t, c, topic), n)
}

// firstInOrder: each of n messages is there, and of each key the first copies
// are in order.
func firstInOrder(t testing.TB, found map[int32][]*kgo.Record, n int) {
	t.Helper()
	seen := make(map[int]bool)
	last := make(map[string]int)
	for _, rs := range found {
		for _, r := range rs {
			i := position(t, r)
			if seen[i] {
				continue
			}
			seen[i] = true
			if before, ok := last[string(r.Key)]; ok && before > i {
				t.Fatalf("message %d of %s comes first after %d", i, r.Key, before)
			}
			last[string(r.Key)] = i
		}
	}
	if len(seen) != n {
		t.Fatalf("%d of %d messages are there", len(seen), n)
	}
	if total := count(found); total > n {
		t.Logf("%d of %d messages are there twice", total-n, n)
	}
}

func TestPublish(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	a := admin(t, c)
	topic, small := newTopic(t, a, 4), newTopic(t, a, 1, "max.message.bytes", "1000")
	p := newPublisher(t, PublisherConfig{Cluster: c})
	if err := p.Publish(topic); err != nil {
		t.Error(err)
	}
	// Without keys they don't all go to one partition, alone or together.
	var several []*message.Message
	for n := range 50 {
		several = append(several, message1("s"+strconv.Itoa(n), "payload"))
	}
	if err := p.Publish(topic, several...); err != nil {
		t.Fatal(err)
	}
	var publishing sync.WaitGroup
	for n := range 50 {
		publishing.Go(func() {
			if err := p.Publish(topic, message1(strconv.Itoa(n), "payload", "color", "blue")); err != nil {
				t.Error(err)
			}
		})
	}
	publishing.Wait()
	found := readAll(t, c, topic)
	if count(found) != 100 || len(found) != 4 {
		t.Errorf("%d records in %d partitions, want 100 in 4", count(found), len(found))
	}
	for _, rs := range found {
		for _, r := range rs {
			if r.Key != nil || header(r, headerUUID) == "" || string(r.Value) != "payload" ||
				(header(r, "color") == "blue") == strings.HasPrefix(header(r, headerUUID), "s") {
				t.Errorf("record is %v", r)
			}
		}
	}

	err := p.Publish(small, message1("1", "a", events.HeaderPartitionKey, "k"), message1("2", strings.Repeat("b", 1001), events.HeaderPartitionKey, "k"),
		message1("3", "c", events.HeaderPartitionKey, "k"))
	var pe *PublishError
	if !errors.As(err, &pe) || !errors.Is(err, outbox.ErrPermanent) || len(pe.Outcomes) != 3 ||
		pe.Outcomes[0] != (Outcome{"1", outbox.Done, nil}) || pe.Outcomes[1].Status != outbox.Permanent || pe.Outcomes[2].Status != outbox.NotAttempted {
		t.Errorf("error is %v", err)
	}
	for name, msgs := range map[string][]*message.Message{"nil": {nil}, "nil among others": {nil, nil}, "too large": {message1("4", strings.Repeat("b", 1001))},
		"reserved": {message1("5", "", headerUUID, "6")}} {
		if err := p.Publish(small, msgs...); !errors.Is(err, outbox.ErrPermanent) || !errors.As(err, &pe) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	if err := p.Publish("a b", message1("6", "")); !errors.Is(err, outbox.ErrPermanent) {
		t.Errorf("forbidden name: error is %v", err)
	}
	if err := p.Publish(testkit.Name(t), message1("7", "")); !errors.As(err, &pe) || pe.Outcomes[0].Status != outbox.Passing {
		t.Errorf("missing topic: error is %v", err)
	}

	var closers sync.WaitGroup
	for range 3 {
		closers.Go(func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	closers.Wait()
	if err := p.Publish(topic, message1("8", "")); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: error is %v", err)
	}
	if err := p.Publish(topic, several...); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: error is %v", err)
	}
	if results := publishBatch(p, context.Background(), outboxMessages(topic, "k", 2)); statuses(results) != "--" || !errors.Is(results[0].Err, ErrClosed) {
		t.Errorf("after Close: results are %s, error %v", statuses(results), results[0].Err)
	}
}

func TestPublishHonoursDeadlineOnStall(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	topic := newTopic(t, admin(t, c), 1)
	proxy := testkit.NewProxy(t, testkit.Kafka(t)[0])
	p := newPublisher(t, PublisherConfig{Cluster: through(proxy), DeliveryTimeout: 500 * time.Millisecond})
	testkit.Eventually(t, patience, func() bool { return p.Publish(topic, message1("1", "")) == nil }, "one goes through")
	proxy.Stall()
	var publishing sync.WaitGroup
	for n := range 10 {
		publishing.Go(func() {
			began := time.Now()
			err := p.Publish(topic, message1("late "+strconv.Itoa(n), ""))
			if took := time.Since(began); !errors.Is(err, outbox.ErrUnavailable) || took > 1500*time.Millisecond {
				t.Errorf("after %s: error is %v", took, err)
			}
		})
	}
	publishing.Wait()
	m := message1("cancelled", "")
	ctx, cancel := context.WithCancel(context.Background())
	m.SetContext(ctx)
	time.AfterFunc(50*time.Millisecond, cancel)
	if err := p.Publish(topic, m); !errors.Is(err, context.Canceled) || errors.Is(err, outbox.ErrUnavailable) {
		t.Errorf("cancelled: error is %v", err)
	}
	proxy.Resume()
	testkit.Eventually(t, patience, func() bool { return p.Publish(topic, message1("2", "")) == nil }, "it goes on")
}

func TestRecordTime(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	for name, tt := range map[string]struct {
		happened  time.Time
		retention time.Duration
		want      time.Time
	}{
		"as it was":             {now.Add(-time.Hour), 7 * day, now.Add(-time.Hour)},
		"nobody knows":          {time.Time{}, 7 * day, now},
		"retention would eat":   {now.Add(-4 * day), 7 * day, now},
		"kept for ever":         {now.Add(-400 * day), 0, now.Add(-400 * day)},
		"before 1970":           {time.Date(1969, 1, 1, 0, 0, 0, 0, time.UTC), 0, now},
		"clocks differ":         {now.Add(time.Second), 7 * day, now.Add(time.Second)},
		"far ahead of its time": {now.Add(day), 7 * day, now},
	} {
		if got := recordTime(tt.happened, now, tt.retention); !got.Equal(tt.want) {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestEventTime(t *testing.T) {
	noLeaks(t)
	when := time.Now().Add(-3 * time.Hour).Truncate(time.Millisecond)
	e, err := events.New(context.Background(), events.With(placed{`,"timestamp":"`}, events.At(when)))
	if err != nil {
		t.Fatal(err)
	}
	document, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got := eventTime(document, uuid.UUID{}); !got.Equal(when) {
		t.Errorf("of a document: %s, want %s", got, when)
	}
	id := uuid.Must(uuid.NewV7())
	if got := eventTime([]byte("other"), id); time.Since(got) > time.Minute || time.Since(got) < -time.Second {
		t.Errorf("of an id: %s", got)
	}
	if got := eventTime([]byte(`{"event_id":"x","timestamp":"soon"}`), uuid.New()); !got.IsZero() {
		t.Errorf("of neither: %s", got)
	}

	c := shared(t)
	topic := newTopic(t, admin(t, c), 1)
	m := outboxMessage(topic, "k", 0)
	m.Payload = document
	if s := statuses(publishBatch(newPublisher(t, PublisherConfig{Cluster: c}), context.Background(), []*outbox.Message{m})); s != "D" {
		t.Fatal(s)
	}
	for _, rs := range readAll(t, c, topic) {
		if !rs[0].Timestamp.Equal(when) {
			t.Errorf("the record's timestamp is %s, want %s", rs[0].Timestamp, when)
		}
	}
}

type placed struct{ ID string }

func (placed) EventType() string     { return "order.placed" }
func (placed) SchemaVersion() int    { return 1 }
func (p placed) AggregateID() string { return p.ID }

func TestHashers(t *testing.T) {
	// Known answers: org.apache.kafka.common.utils.Utils.murmur2 in Kafka's
	// UtilsTest, and FNV-1a's own test vectors.
	murmur := newPartitioner(Murmur2, nil).ForTopic("t")
	for key, hash := range map[string]int32{"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971} {
		for _, n := range []int{1, 7, 64} {
			if got, want := murmur.Partition(&kgo.Record{Key: []byte(key)}, n), int(hash&0x7fffffff)%n; got != want {
				t.Errorf("murmur2 of %s is in partition %d of %d, want %d", key, got, n, want)
			}
		}
	}
	for key, hash := range map[string]uint32{"": 0x811c9dc5, "a": 0xe40c292c, "foobar": 0xbf9cf968} {
		if got := fnv1a([]byte(key)); got != hash {
			t.Errorf("FNV-1a of %q is %x, want %x", key, got, hash)
		}
	}
	sarama := newPartitioner(SaramaFNV1a, nil).ForTopic("t")
	hash := int32(-1080231576) // 0xbf9cf968
	if got := sarama.Partition(&kgo.Record{Key: []byte("foobar")}, 7); got != int(-(hash % 7)) {
		t.Errorf("sarama's partition of foobar is %d", got)
	}
}

func TestPublisherConfigFaults(t *testing.T) {
	noLeaks(t)
	brokers := []string{"127.0.0.1:1"}
	_, fields := NewPublisher(PublisherConfig{DeliveryTimeout: -1, Hasher: 9, MaxMessageBytes: -1})
	_, address := NewPublisher(PublisherConfig{Cluster: Cluster{Brokers: []string{"kafka://user:hush@host:9092"}}})
	_, options := NewPublisher(PublisherConfig{Cluster: Cluster{Brokers: brokers, Options: []kgo.Opt{
		kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite(), kgo.RecordDeliveryTimeout(time.Minute), kgo.AllowAutoTopicCreation(),
		kgo.RecordPartitioner(kgo.RoundRobinPartitioner()), kgo.ManualFlushing(), kgo.AllowIdempotentProduceCancellation()}}})
	_, never := NewPublisher(PublisherConfig{Cluster: Cluster{Brokers: brokers, Options: []kgo.Opt{kgo.RequiredAcks(kgo.LeaderAck())}}})
	for _, tt := range []struct {
		err  error
		want []string
	}{
		{fields, []string{"Cluster.Brokers", "DeliveryTimeout", "Hasher", "MaxMessageBytes"}},
		{address, []string{"Cluster.Brokers[0]", "host:port"}},
		{options, []string{"RequiredAcks", "MayLoseEvents", "DisableIdempotentWrite", "MayReorderAndRepeatEvents", "RecordDeliveryTimeout",
			"AllowAutoTopicCreation", "RecordPartitioner", "ManualFlushing", "AllowIdempotentProduceCancellation"}},
		{never, []string{"acks=all"}}, // franz-go's own word
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
		if strings.Contains(tt.err.Error(), "hush") {
			t.Errorf("error %q tells a password", tt.err)
		}
	}
	p, err := NewPublisher(PublisherConfig{Cluster: Cluster{Brokers: brokers, Options: []kgo.Opt{
		kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite()}}, MayLoseEvents: true, MayReorderAndRepeatEvents: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
