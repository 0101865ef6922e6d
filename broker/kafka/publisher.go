package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

var (
	_ message.Publisher     = (*Publisher)(nil)
	_ outbox.BatchPublisher = (*Publisher)(nil)
)

// Publisher adds messages to Kafka topics: as a Watermill publisher, or in
// batches under a relay. Safe for use by several goroutines. It connects at the
// first call.
type Publisher struct {
	cfg      PublisherConfig // with the defaults filled in
	limit    int             // bytes of a batch, whatever the topic allows
	topics   *topics
	couriers *couriers
	stream   *stream
	batches  sync.Pool

	adminOnce sync.Once
	admin     *kgo.Client // for the settings of topics
	adminErr  error

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup // those in flight, and clients that are being closed
}

// PublisherConfig: only Cluster is required.
type PublisherConfig struct {
	Cluster Cluster

	// DeliveryTimeout bounds each Publish and PublishBatch call, together with its
	// context, as a relay sets it. Defaults to 120 s. What has been sent by then and
	// not answered is outbox.Unknown.
	DeliveryTimeout time.Duration

	// Hasher says which partition a key belongs to. Defaults to Murmur2. For
	// topics that the stock Watermill publisher has written to, SaramaFNV1a.
	Hasher Hasher

	// Key gives the partition key of a message that goes through Publish; "" means
	// none, any partition. Defaults to the metadata entry events.HeaderPartitionKey.
	// PublishBatch takes outbox.Message.Key.
	Key func(*message.Message) string

	// MaxMessageBytes bounds a message, with its headers and alone in a batch, below
	// what its topic allows by max.message.bytes. 0 means as the topic says.
	MaxMessageBytes int

	// MayLoseEvents lets the options ask for fewer acknowledgements than all: what
	// Kafka has accepted is then lost when a partition's leader fails. Off by default.
	MayLoseEvents bool

	// MayReorderAndRepeatEvents lets the options switch idempotence off: an answer
	// that is lost then repeats events, and may put them behind later ones. Off by
	// default.
	MayReorderAndRepeatEvents bool

	// Logger is told what a person on call wants to know. Never payloads. Defaults
	// to slog.Default().
	Logger *slog.Logger
}

const (
	defaultDeliveryTimeout = 120 * time.Second
	defaultLinger          = 5 * time.Millisecond

	// batchPatience: what could not be sent within it goes back to the relay, so
	// that a partition without a leader does not hold up the others for long.
	batchPatience = 3 * time.Second

	// lastAnswers is how long, at most, before the call's end nothing new is sent.
	lastAnswers = 2 * time.Second

	// What a relay should put into a call.
	maxBatch      = 10_000
	maxBatchBytes = 16 << 20

	// maxRecordBytes: beyond it franz-go's requests do not go.
	maxRecordBytes = 64 << 20
)

// NewPublisher checks the configuration and connects to nothing. The error
// wraps ErrInvalidConfig and names every fault; among them options that would
// lose or reorder events.
func NewPublisher(cfg PublisherConfig) (*Publisher, error) {
	faults := cfg.Cluster.faults("PublisherConfig")
	if cfg.DeliveryTimeout < 0 {
		faults = append(faults, fmt.Errorf("PublisherConfig.DeliveryTimeout is %s: give a positive duration, or 0 for %s",
			cfg.DeliveryTimeout, defaultDeliveryTimeout))
	}
	if cfg.Hasher != Murmur2 && cfg.Hasher != SaramaFNV1a {
		faults = append(faults, fmt.Errorf("PublisherConfig.Hasher is %d: give Murmur2 or SaramaFNV1a", cfg.Hasher))
	}
	if cfg.MaxMessageBytes < 0 || cfg.MaxMessageBytes > maxRecordBytes {
		faults = append(faults, fmt.Errorf("PublisherConfig.MaxMessageBytes is %d: give a number up to %d, or 0 for what the topic allows",
			cfg.MaxMessageBytes, maxRecordBytes))
	}
	own := newPartitioner(cfg.Hasher, nil)
	opts := cfg.Cluster.options(
		kgo.ProducerBatchCompression(kgo.Lz4Compression(), kgo.NoCompression()),
		kgo.ProducerLinger(defaultLinger),
		kgo.RecordPartitioner(own),
		kgo.ProducerBatchMaxBytes(maxRecordBytes),
	)
	limit := maxRecordBytes
	if len(faults) == 0 {
		faults = examine(opts, func(client *kgo.Client) []error {
			limit = int(client.OptValue(kgo.ProducerBatchMaxBytes).(int32))
			return producerFaults(client, own, cfg)
		})
	}
	if len(faults) > 0 {
		return nil, invalidConfig("NewPublisher", faults)
	}
	if cfg.DeliveryTimeout == 0 {
		cfg.DeliveryTimeout = defaultDeliveryTimeout
	}
	if cfg.MaxMessageBytes > 0 {
		limit = min(limit, cfg.MaxMessageBytes)
	}
	if cfg.Key == nil {
		cfg.Key = func(m *message.Message) string { return m.Metadata.Get(events.HeaderPartitionKey) }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	p := &Publisher{cfg: cfg, limit: limit}
	p.topics = newTopics(p.adminClient, cfg.Logger)
	opts = append(opts, kgo.MaxBufferedRecords(math.MaxInt32), kgo.ProducerOnDataLossDetected(func(topic string, partition int32) {
		cfg.Logger.Error("a partition has lost what it had accepted: look for an unclean leader election", "topic", topic, "partition", partition)
	}))
	p.couriers = newCouriers(opts, cfg.Hasher)
	p.stream = newStream(p, opts)
	return p, nil
}

// producerFaults are options under which this package cannot keep what it promises.
func producerFaults(client *kgo.Client, own *partitioner, cfg PublisherConfig) (faults []error) {
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("PublisherConfig.Cluster.Options: "+format, args...))
	}
	if acks := client.OptValue(kgo.RequiredAcks); acks != any(kgo.AllISRAcks()) && !cfg.MayLoseEvents {
		fault("kgo.RequiredAcks asks for less than all in-sync replicas, so that an accepted event is lost with the partition's leader: " +
			"remove it, or set PublisherConfig.MayLoseEvents if that is what you want")
	}
	if set(client, kgo.DisableIdempotentWrite) && !cfg.MayReorderAndRepeatEvents {
		fault("kgo.DisableIdempotentWrite lets a lost answer repeat events and put them behind later ones: " +
			"remove it, or set PublisherConfig.MayReorderAndRepeatEvents if that is what you want")
	}
	if set(client, kgo.AllowIdempotentProduceCancellation) {
		fault("kgo.AllowIdempotentProduceCancellation gives the sequence numbers of a cancelled batch to the next one, " +
			"which Kafka may then take for a repeat and drop: remove it; calls end with their deadline without it")
	}
	if d, _ := client.OptValue(kgo.RecordDeliveryTimeout).(time.Duration); d != 0 {
		fault("kgo.RecordDeliveryTimeout counts from a record's timestamp, which is when the event happened: remove it and set PublisherConfig.DeliveryTimeout")
	}
	if id := client.OptValues(kgo.TransactionalID); len(id) > 1 && id[1] == true {
		fault("kgo.TransactionalID needs transactions, which nobody begins here: remove it")
	}
	if set(client, kgo.ManualFlushing) {
		fault("kgo.ManualFlushing would send nothing: remove it")
	}
	if set(client, kgo.AllowAutoTopicCreation) {
		fault("kgo.AllowAutoTopicCreation creates a topic, with the cluster's defaults, for any name that an event bears: remove it, and declare topics by kafka.Topology")
	}
	if set(client, kgo.DefaultProduceTopicAlways) {
		fault("kgo.DefaultProduceTopicAlways sends all events to one topic: remove it")
	}
	if client.OptValue(kgo.RecordPartitioner) != any(own) {
		fault("kgo.RecordPartitioner may send one key to several partitions, where it has no order: remove it and choose PublisherConfig.Hasher")
	}
	if group, _ := client.OptValue(kgo.ConsumerGroup).(string); group != "" {
		fault("kgo.ConsumerGroup would take a share of the partitions and read nothing: remove it")
	}
	return faults
}

// adminClient connects when it is first asked to do something.
func (p *Publisher) adminClient() (*kgo.Client, error) {
	p.adminOnce.Do(func() { p.admin, p.adminErr = newClient(p.cfg.Cluster.options()...) })
	return p.admin, p.adminErr
}

// Publish adds msgs to a topic, those of one key in order: after one that was
// not added, no later one of its key is. It returns nil when all of them are in
// the topic, else a *PublishError that says what became of each; ErrClosed after
// Close. Its context is that of the first message.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	ctx := context.Background()
	if msgs[0] != nil {
		ctx = msgs[0].Context()
	}
	src := watermillMessages{topic, msgs, p.cfg.Key}
	results := make([]outbox.Result, len(msgs))
	send := p.publish
	if len(msgs) == 1 {
		send = p.stream.publish // together with those of other goroutines
	}
	if err := send(ctx, src, results); err != nil {
		return fmt.Errorf("publish %d messages to topic %q: %w", len(msgs), topic, err)
	}
	for _, r := range results {
		if r.Status != outbox.Done {
			return publishError(src, results)
		}
	}
	return nil
}

func publishError(src watermillMessages, results []outbox.Result) *PublishError {
	e := &PublishError{Topic: src.to, Outcomes: make([]Outcome, len(results))}
	for i, r := range results {
		e.Outcomes[i] = Outcome{MessageID: src.id(i), Status: r.Status, Err: r.Err}
	}
	return e
}

// PublishBatch implements outbox.BatchPublisher: see there. All messages go out
// at once, to all partitions.
func (p *Publisher) PublishBatch(ctx context.Context, msgs []*outbox.Message, results []outbox.Result) {
	if err := p.publish(ctx, relayMessages(msgs), results); err != nil {
		for i := range results {
			results[i] = outbox.Result{Status: outbox.NotAttempted, Err: err}
		}
	}
}

// BatchContract implements outbox.BatchPublisher.
func (p *Publisher) BatchContract() outbox.BatchContract {
	return outbox.BatchContract{StopsKeyAtFirstFailure: true, MaxBatch: maxBatch, MaxBatchBytes: maxBatchBytes}
}

func (p *Publisher) publish(ctx context.Context, src source, results []outbox.Result) error {
	if !p.enter() {
		return ErrClosed
	}
	defer p.calls.Done()
	if err := ctx.Err(); err != nil {
		for i := range results {
			results[i] = outbox.Result{Status: outbox.NotAttempted, Err: err}
		}
		return nil
	}
	began := time.Now()
	hard, cancel := context.WithTimeout(ctx, p.cfg.DeliveryTimeout)
	defer cancel()
	soft, giveUp := context.WithCancel(hard)
	defer giveUp()
	end, _ := hard.Deadline()
	defer time.AfterFunc(sendingTime(end.Sub(began), src), giveUp).Stop()

	b, _ := p.batches.Get().(*batch)
	if b == nil {
		b = new(batch)
	}
	b.begin(src, results)
	defer func() {
		b.reset()
		p.batches.Put(b)
	}()
	why := func(trouble error) reason { return unanswered(ctx, began, trouble) }
	if names := b.unknown(p.topics, began); len(names) > 0 {
		if err := p.topics.learn(soft, names); err != nil {
			b.leaveOut(why(nil), err)
			return nil
		}
		for _, name := range names {
			b.facts[name], _ = p.topics.get(name, began)
		}
	}
	for len(b.todo) > 0 {
		c, err := p.couriers.take(soft)
		if err != nil {
			b.leaveOut(why(nil), err)
			return nil
		}
		if !p.carry(hard, soft, c, b, why) {
			c.dismiss(&p.calls)
			c = nil
		}
		p.couriers.put(c, &p.calls)
	}
	return nil
}

// sendingTime is how much of a call's time is for sending; the rest is for the
// answers to what has been sent.
func sendingTime(whole time.Duration, src source) time.Duration {
	d := max(whole*3/4, whole-lastAnswers)
	if _, relay := src.(relayMessages); relay {
		d = min(d, batchPatience)
	}
	return d
}

// unanswered makes the errors of what could not be sent, or was not answered.
func unanswered(ctx context.Context, began time.Time, trouble error) reason {
	return func(topic string, sent bool, cause error) error {
		e := &CallError{Topic: topic, Sent: sent, Err: cause}
		switch {
		case errors.Is(ctx.Err(), context.Canceled):
			e.Err, e.cancelled = ctx.Err(), true
		case trouble != nil:
			e.Err = trouble
		case cause == nil || givenUp(cause):
			e.Err = fmt.Errorf("no answer within %s: %w", time.Since(began).Round(time.Millisecond), context.DeadlineExceeded)
		}
		return e
	}
}

// carry sends one round. It returns false if the courier is not to be used again.
func (p *Publisher) carry(hard, soft context.Context, c *courier, b *batch, why func(error) reason) bool {
	if !b.load(soft, c, p.limit) {
		return false
	}
	sent, err := c.flush(hard)
	trouble := c.line.trouble()
	switch {
	case err != nil:
		b.abandon(c, func() { c.dismiss(&p.calls) }, why(trouble))
		return false
	case !sent:
		b.sort(c, why(trouble))
		return false
	}
	clean := b.settle(c, why(trouble))
	if !clean {
		p.learnAnew(soft, b)
	}
	return clean
}

// learnAnew asks again for the facts of topics that have refused something: a
// limit may have been lowered, the topic been created anew.
func (p *Publisher) learnAnew(ctx context.Context, b *batch) {
	refused := make(map[string]struct{})
	for _, s := range b.failed {
		if answered(s.err) {
			refused[s.record.Topic] = struct{}{}
		}
	}
	for name := range refused {
		p.topics.forget(name)
		if p.topics.learn(ctx, []string{name}) != nil {
			continue // what is known is the best there is
		}
		f, ok := p.topics.get(name, time.Now())
		if !ok || f.err != nil {
			continue
		}
		lowered := f.maxBytes < b.facts[name].maxBytes
		b.facts[name] = f
		if lowered {
			b.allAgain(name)
		}
	}
}

func (p *Publisher) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.calls.Add(1)
	return true
}

// Close waits for the calls in flight, which their deadlines bound, refuses new
// ones, and closes the connections. It may be called more than once, and at any
// time.
func (p *Publisher) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()

	done := make(chan struct{})
	go func() {
		defer close(done)
		p.calls.Wait()
		p.couriers.close()
		p.stream.close()
		p.adminOnce.Do(func() { p.adminErr = ErrClosed })
		if p.admin != nil {
			p.admin.Close()
		}
	}()
	patience := time.NewTimer(p.cfg.DeliveryTimeout + lastAnswers)
	defer patience.Stop()
	select {
	case <-done:
		return nil
	case <-patience.C:
		return fmt.Errorf("%w for connections that do not close", ErrCloseTimeout)
	}
}
