package sqs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssns "github.com/aws/aws-sdk-go-v2/service/sns"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/postbus/postbus/outbox"
)

// Topology is the queues and SNS topics that an application needs, written down as
// code: Declare makes what is missing, Check looks, Describe prints. Nothing is ever
// removed or changed by it, but for subscriptions and policies that are missing.
type Topology struct {
	Queues []Queue
	Topics []SNSTopic
}

// Queue is one SQS queue; only Name is required. A name that ends in ".fifo"
// makes a FIFO queue.
type Queue struct {
	Name string

	// Retention is how long a message is kept. Defaults to 14 days, the longest that
	// SQS offers; at least 60 s.
	Retention time.Duration

	// Visibility is for how long a received message is hidden, for consumers that
	// don't say it themselves, as our Subscriber does. Defaults to 300 s; at most 12 h.
	Visibility time.Duration

	// MaxReceiveCount is how often a message may be received; then SQS moves it to
	// DeadLetter. Defaults to 3. In a FIFO queue what stands behind a failing
	// message in its group is received with it, and may be moved with it.
	MaxReceiveCount int

	// DeadLetter names the dead-letter queue, which is declared with it, kept for 14
	// days. Defaults to the name with "-dead" behind it ("order-dead.fifo" for
	// "order.fifo"). NoDeadLetter: there is none, and a message that always fails
	// comes again until Retention is over.
	DeadLetter   string
	NoDeadLetter bool

	// MaxMessageBytes is the queue's MaximumMessageSize. Defaults to 1 MiB.
	MaxMessageBytes int

	// HighThroughput lifts a FIFO queue's quota from 300 requests a second of each
	// kind (3,000 messages in full batches) to one per partition of it, among which
	// SQS spreads message groups; see
	// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/high-throughput-fifo.html.
	// Deduplication is then per group.
	HighThroughput bool

	// KMSKey is the id, alias or ARN of a KMS key. Defaults to encryption with
	// keys of SQS' own.
	KMSKey string
}

const (
	defaultRetention       = 14 * 24 * time.Hour
	defaultMaxReceiveCount = 3
	allowSID               = "postbus-sns"
)

// Clients are what a Topology is declared and checked with. SNS may be nil if there are no
// topics. Logger is told what was made and what to watch; nil is slog.Default().
type Clients struct {
	SQS    *awssqs.Client
	SNS    *awssns.Client
	Logger *slog.Logger
}

// DeadLetterName is the name of a queue's dead-letter queue, unless the Topology
// gives one.
func DeadLetterName(queue string) string {
	if base, fifo := strings.CutSuffix(queue, fifoSuffix); fifo {
		return base + "-dead" + fifoSuffix
	}
	return queue + "-dead"
}

func (q Queue) withDefaults() Queue {
	orDefault(&q.Retention, defaultRetention)
	orDefault(&q.Visibility, defaultVisibility)
	orDefault(&q.MaxReceiveCount, defaultMaxReceiveCount)
	orDefault(&q.MaxMessageBytes, maxBytes)
	if q.DeadLetter == "" && !q.NoDeadLetter {
		q.DeadLetter = DeadLetterName(q.Name)
	}
	return q
}

// attributes are those that tell one queue from another.
func (q Queue) attributes(deadLetterARN string) map[string]string {
	a := map[string]string{
		"MessageRetentionPeriod": seconds(q.Retention),
		"VisibilityTimeout":      seconds(q.Visibility),
		"MaximumMessageSize":     strconv.Itoa(q.MaxMessageBytes),
	}
	if q.KMSKey != "" {
		a["KmsMasterKeyId"] = q.KMSKey
	}
	if isFIFO(q.Name) {
		a["FifoQueue"] = "true"
		if q.HighThroughput {
			a["DeduplicationScope"], a["FifoThroughputLimit"] = "messageGroup", "perMessageGroupId"
		}
	}
	if deadLetterARN != "" {
		policy, _ := json.Marshal(redrivePolicy{deadLetterARN, q.MaxReceiveCount})
		a["RedrivePolicy"] = string(policy)
	}
	return a
}

type redrivePolicy struct {
	DeadLetterTargetARN string `json:"deadLetterTargetArn"`
	MaxReceiveCount     int    `json:"maxReceiveCount"`
}

func seconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) }

func (q Queue) faults() (faults []error) {
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("queue %q: "+format, append([]any{q.Name}, args...)...))
	}
	if f := nameFault(q.Name); f != "" {
		fault("%s", f)
	}
	if q.Retention < time.Minute || q.Retention > defaultRetention {
		fault("Retention is %s: give 60 s to 14 days, or 0 for 14 days", q.Retention)
	}
	if q.Visibility < 0 || q.Visibility > maxHidden {
		fault("Visibility is %s: give a duration up to 12 h, or 0 for %s", q.Visibility, defaultVisibility)
	}
	if q.MaxReceiveCount < 1 || q.MaxReceiveCount > 1000 {
		fault("MaxReceiveCount is %d: give 1 to 1,000, or 0 for %d", q.MaxReceiveCount, defaultMaxReceiveCount)
	}
	if q.MaxMessageBytes < 1024 || q.MaxMessageBytes > maxBytes {
		fault("MaxMessageBytes is %d: give 1,024 to %d, or 0 for the highest", q.MaxMessageBytes, maxBytes)
	}
	if q.HighThroughput && !isFIFO(q.Name) {
		fault("HighThroughput is for FIFO queues: end its name in %s, or leave it out", fifoSuffix)
	}
	if q.NoDeadLetter {
		if q.DeadLetter != "" {
			fault("DeadLetter and NoDeadLetter are both set: leave one out")
		}
		return faults
	}
	if f := nameFault(q.DeadLetter); f != "" {
		fault("DeadLetter: %s", f)
	}
	if isFIFO(q.DeadLetter) != isFIFO(q.Name) {
		fault("DeadLetter is %q: the dead-letter queue of a FIFO queue must be one, and of a standard queue a standard one", q.DeadLetter)
	}
	if q.DeadLetter == q.Name {
		fault("DeadLetter is the queue itself: give it a queue of its own")
	}
	return faults
}

func (t Topology) withDefaults() (Topology, error) {
	queues, topics := slices.Clone(t.Queues), slices.Clone(t.Topics)
	known := map[string]bool{}
	var faults []error
	for i := range queues {
		queues[i] = queues[i].withDefaults()
		faults = append(faults, queues[i].faults()...)
		if known[queues[i].Name] {
			faults = append(faults, fmt.Errorf("queue %q is there twice: leave one out", queues[i].Name))
		}
		known[queues[i].Name] = true
	}
	for i := range topics {
		topics[i] = topics[i].withDefaults()
		faults = append(faults, topics[i].faults(known)...)
	}
	if len(faults) > 0 {
		return t, fmt.Errorf("sqs.Topology: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	return Topology{queues, topics}, nil
}

// deadLetters are the dead-letter queues that are not in Queues themselves.
func (t Topology) deadLetters() (all []Queue) {
	for _, q := range t.Queues {
		same := func(other Queue) bool { return other.Name == q.DeadLetter }
		if q.DeadLetter != "" && !slices.ContainsFunc(t.Queues, same) && !slices.ContainsFunc(all, same) {
			all = append(all, Queue{Name: q.DeadLetter, Retention: defaultRetention, Visibility: q.Visibility,
				MaxMessageBytes: q.MaxMessageBytes, NoDeadLetter: true, KMSKey: q.KMSKey, HighThroughput: q.HighThroughput})
		}
	}
	return all
}

// Describe prints what Declare would make, a line each, or what is wrong with it.
func (t Topology) Describe() string {
	t, err := t.withDefaults()
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, q := range append(t.deadLetters(), t.Queues...) {
		kind := "standard queue"
		if isFIFO(q.Name) {
			kind = "FIFO queue"
			if q.HighThroughput {
				kind += " of high throughput"
			}
		}
		fmt.Fprintf(&b, "%s %s: retention %s, visibility %s, messages up to %d bytes", kind, q.Name, q.Retention, q.Visibility, q.MaxMessageBytes)
		if q.DeadLetter != "" {
			fmt.Fprintf(&b, ", to %s after %d receptions", q.DeadLetter, q.MaxReceiveCount)
		}
		if q.KMSKey != "" {
			fmt.Fprintf(&b, ", KMS key %s", q.KMSKey)
		}
		b.WriteByte('\n')
	}
	for _, topic := range t.Topics {
		topic.describe(&b)
	}
	return b.String()
}

// Declare makes what is missing: dead-letter queues first, then queues, topics,
// subscriptions, and the statement in each queue's policy that lets its topics
// send. What exists with other attributes is not changed: the error, which wraps
// ErrDiffers, says which in a sentence for each. It needs sqs:CreateQueue and the rights of
// Check, and for topics sns:CreateTopic, sns:Subscribe and sqs:SetQueueAttributes.
func (t Topology) Declare(ctx context.Context, with Clients) error { return t.apply(ctx, with, true) }

// Check makes and changes nothing: it says what is missing (ErrNoQueue) or other
// than described (ErrDiffers), all of it together. It needs sqs:GetQueueUrl and
// sqs:GetQueueAttributes, and for topics sns:GetTopicAttributes,
// sns:ListSubscriptionsByTopic and sns:GetSubscriptionAttributes.
func (t Topology) Check(ctx context.Context, with Clients) error { return t.apply(ctx, with, false) }

func (t Topology) apply(ctx context.Context, with Clients, create bool) error {
	t, err := t.withDefaults()
	if err != nil {
		return err
	}
	w := worker{Clients: with, create: create, arns: make(map[string]string), urls: make(map[string]string)}
	if w.SQS == nil && len(t.Queues) > 0 || w.SNS == nil && len(t.Topics) > 0 {
		return fmt.Errorf("sqs.Topology: %w: a client is missing: give Clients.SQS for queues and Clients.SNS for topics", ErrInvalidConfig)
	}
	if w.Logger == nil {
		w.Logger = slog.Default()
	}
	var errs []error
	for _, q := range append(t.deadLetters(), t.Queues...) {
		if err := w.queue(ctx, q); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		for _, topic := range t.Topics {
			if err := w.topic(ctx, topic); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// worker declares or checks.
type worker struct {
	Clients
	create     bool
	arns, urls map[string]string // of queues
}

func (w *worker) call(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return asked(ctx, func() error { return bounded(ctx, func() error { return f(ctx) }) })
}

// asked asks once more, and again, where the answer does not say how far it came (5xx,
// or one that cannot be read). Only for what may be asked for twice.
func asked(ctx context.Context, f func() error) error {
	for try := 1; ; try++ {
		err := f()
		if err == nil || try == 3 {
			return err
		}
		if v, _, _, answered := judgeCall(err); !answered || v.status != outbox.Unknown {
			return err
		}
		select {
		case <-time.After(time.Duration(try) * 100 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

func (w *worker) queue(ctx context.Context, q Queue) error {
	var url *string
	err := w.call(ctx, func(ctx context.Context) error {
		out, err := w.SQS.GetQueueUrl(ctx, &awssqs.GetQueueUrlInput{QueueName: &q.Name}, once)
		if err == nil {
			url = out.QueueUrl
		}
		return err
	})
	if err != nil {
		if v, _, _, _ := judgeCall(err); !w.create || !v.is(ErrNoQueue) {
			return fmt.Errorf("queue %q: %w", q.Name, lookUpError(q.Name, err))
		}
		if url, err = w.makeQueue(ctx, q); err != nil {
			return fmt.Errorf("make queue %q: %w", q.Name, lookUpError(q.Name, err))
		}
	}
	has, err := w.attributesOf(ctx, url)
	if err != nil {
		return fmt.Errorf("queue %q: %w", q.Name, lookUpError(q.Name, err))
	}
	w.urls[q.Name], w.arns[q.Name] = aws.ToString(url), has["QueueArn"]
	if isFIFO(q.Name) && !q.HighThroughput && !strings.Contains(has["FifoThroughputLimit"], "perMessageGroupId") && !q.NoDeadLetter {
		w.Logger.Info("this FIFO queue takes 300 requests a second of each kind, 3,000 messages in full batches; Queue.HighThroughput lifts that", "queue", q.Name)
	}
	return w.compare(q, has)
}

func (w *worker) makeQueue(ctx context.Context, q Queue) (url *string, err error) {
	err = w.call(ctx, func(ctx context.Context) error {
		out, err := w.SQS.CreateQueue(ctx, &awssqs.CreateQueueInput{QueueName: &q.Name, Attributes: q.attributes(w.arns[q.DeadLetter])}, once)
		if err == nil {
			url = out.QueueUrl
		}
		return err
	})
	if err == nil {
		w.Logger.Info("a queue was made", "queue", q.Name)
	}
	return url, err
}

func (w *worker) attributesOf(ctx context.Context, url *string) (has map[string]string, err error) {
	err = w.call(ctx, func(ctx context.Context) error {
		out, err := w.SQS.GetQueueAttributes(ctx, &awssqs.GetQueueAttributesInput{QueueUrl: url, AttributeNames: []types.QueueAttributeName{"All"}}, once)
		if err == nil {
			has = out.Attributes
		}
		return err
	})
	return has, err
}

// compare says what of an existing queue is other than described. An attribute
// that the server does not report, as those that imitate SQS leave some out, is
// taken as it should be.
func (w *worker) compare(q Queue, has map[string]string) error {
	var other []string
	want := q.attributes(w.arns[q.DeadLetter])
	names := make([]string, 0, len(want))
	for name := range want {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		value, reported := has[name]
		switch {
		case name == "RedrivePolicy":
			var is, should redrivePolicy
			json.Unmarshal([]byte(want[name]), &should)
			if !reported {
				other = append(other, "it has no dead-letter queue, want "+q.DeadLetter)
			} else if parseRedrive(value, &is); is != should {
				other = append(other, fmt.Sprintf("RedrivePolicy is %s, want %s", value, want[name]))
			}
		case reported && value != want[name]:
			other = append(other, fmt.Sprintf("%s is %s, want %s", name, value, want[name]))
		}
	}
	if _, some := has["RedrivePolicy"]; some && q.NoDeadLetter {
		other = append(other, "it has a dead-letter queue, want none")
	}
	if len(other) == 0 {
		return nil
	}
	return fmt.Errorf("queue %q: %w: %s; change the queue, which Declare does not, or the Topology", q.Name, ErrDiffers, strings.Join(other, "; "))
}

// parseRedrive: some have the count as a string.
func parseRedrive(text string, p *redrivePolicy) {
	var loose struct {
		ARN   string `json:"deadLetterTargetArn"`
		Count any    `json:"maxReceiveCount"`
	}
	if json.Unmarshal([]byte(text), &loose) == nil {
		p.DeadLetterTargetARN = loose.ARN
		p.MaxReceiveCount, _ = strconv.Atoi(fmt.Sprint(loose.Count))
	}
}
