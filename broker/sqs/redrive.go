package sqs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/typepattern"
)

// RedriveConfig says which messages of a dead-letter queue go back. Client, From and To
// are required; without a filter all of them do.
type RedriveConfig struct {
	Client *awssqs.Client
	From   string // the dead-letter queue
	To     string // the queue that they came from

	// Filters: a message must pass all that are set.
	Types        []string  // event types, or patterns such as "order.*"
	Keys         []string  // partition keys (events.HeaderPartitionKey)
	Reason       string    // part of handlers.HeaderPoisonReason; what SQS itself has moved has no reason
	After        time.Time // first sent after this time, by the clock of SQS
	Before       time.Time // and before this
	Match        func(*message.Message) bool
	IncludeAlien bool // with Types or Keys set, also what has no such header

	// DryRun: nothing is sent; the report says what would be.
	DryRun bool

	// Rate bounds the messages a second. Defaults to 100; at most 3,000.
	Rate int

	// Limit bounds the messages that are sent. 0 means all.
	Limit int

	// Visibility hides what was looked at and is left, until the end of the pass.
	// Defaults to 15 min: a pass that takes longer ends early. If this process
	// dies, what it had looked at is hidden until then.
	Visibility time.Duration

	// Logger is told how the pass has ended. Defaults to slog.Default().
	Logger *slog.Logger
}

// RedriveReport is what one pass has done.
type RedriveReport struct {
	Seen    int // messages that were looked at
	Matched int // of these, those that the filters let through
	Sent    int // and were sent back, which in a dry run is none
	Left    int // and stay in the dead-letter queue

	// Rest tells that there may be more, which the pass has not seen: it stopped at Limit,
	// or at one that it had looked at already, or a FIFO queue hides the rest of a group of which ten were left.
	Rest bool
}

const (
	defaultRedriveRate       = 100
	maxRedriveRate           = 3000
	defaultRedriveVisibility = 15 * time.Minute
)

// Redrive sends messages of a dead-letter queue back to the queue they came from, with
// body, attributes and group as they are, one after the other, so that a FIFO
// queue keeps its order; each is marked with events.HeaderReplayed if it has room
// for another attribute. A message is deleted there only when it has been accepted here: a crash in
// between repeats it, which a FIFO queue notices and the inbox makes one effect.
// Its MessageDeduplicationId is another one than the first time, else a FIFO queue
// would swallow it.
//
// In a FIFO queue a message that is left keeps what stands behind it in its
// group: the filters choose by group, if you can.
//
// Errors wrap ErrInvalidConfig, ErrNoQueue, or are what AWS or the network
// answered; the report says how far it came. Run one at a time for one queue.
func Redrive(ctx context.Context, cfg RedriveConfig) (report RedriveReport, err error) {
	orDefault(&cfg.Rate, defaultRedriveRate)
	orDefault(&cfg.Visibility, defaultRedriveVisibility)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if faults := cfg.faults(); len(faults) > 0 {
		return report, fmt.Errorf("sqs.Redrive: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	r := &redrive{RedriveConfig: cfg, left: make(map[string]int), seen: make(map[string]bool)}
	err = r.run(ctx)
	if back := r.giveBack(ctx); err == nil {
		err = back
	}
	if err != nil {
		err = fmt.Errorf("redrive %q to %q: %w", cfg.From, cfg.To, err)
	}
	cfg.Logger.Info("a pass over a dead-letter queue has ended", "from", cfg.From, "to", cfg.To, "dry_run", cfg.DryRun,
		"seen", r.report.Seen, "matched", r.report.Matched, "sent", r.report.Sent, "left", r.report.Left, "rest", r.report.Rest)
	return r.report, err
}

func (cfg *RedriveConfig) faults() (faults []error) {
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("RedriveConfig."+format, args...))
	}
	if cfg.Client == nil {
		fault("Client is nil: give a client of aws-sdk-go-v2/service/sqs")
	}
	if f := nameFault(cfg.From); f != "" {
		fault("From: %s", f)
	}
	if f := nameFault(cfg.To); f != "" {
		fault("To: %s", f)
	}
	if cfg.From == cfg.To {
		fault("From and To are both %q: the pass would never end", cfg.From)
	}
	if isFIFO(cfg.From) != isFIFO(cfg.To) {
		fault("From is %q and To is %q: one of them is a FIFO queue, the other is not", cfg.From, cfg.To)
	}
	for _, p := range cfg.Types {
		if err := typepattern.Valid(p); err != nil {
			fault("Types: %w", err)
		}
	}
	if cfg.Rate < 1 || cfg.Rate > maxRedriveRate {
		fault("Rate is %d: give 1 to %d, or 0 for %d", cfg.Rate, maxRedriveRate, defaultRedriveRate)
	}
	if cfg.Limit < 0 {
		fault("Limit is %d: give a positive number, or 0 for all", cfg.Limit)
	}
	if cfg.Visibility < time.Minute || cfg.Visibility > maxHidden {
		fault("Visibility is %s: give 1 min to 12 h, or 0 for %s", cfg.Visibility, defaultRedriveVisibility)
	}
	return faults
}

type redrive struct {
	RedriveConfig
	report   RedriveReport
	from, to *string
	kept     []types.Message // looked at, and left
	left     map[string]int  // of them, per group
	seen     map[string]bool
	round    bool      // round: one that was looked at has come again
	next     time.Time // when the next may be sent
}

func (r *redrive) run(ctx context.Context) (err error) {
	if r.from, err = r.find(ctx, r.From); err != nil {
		return err
	}
	if r.to, err = r.find(ctx, r.To); err != nil {
		return err
	}
	until := time.Now().Add(r.Visibility - r.Visibility/10)
	for empties := 0; empties < 2 && !r.round; {
		if time.Now().After(until) || r.Limit > 0 && r.report.Matched >= r.Limit {
			r.report.Rest = true
			return nil
		}
		messages, err := r.receive(ctx)
		if err != nil {
			return err
		}
		if len(messages) == 0 {
			empties++
			continue
		}
		empties = 0
		if err := r.batch(ctx, messages); err != nil {
			return err
		}
	}
	r.report.Rest = r.report.Rest || r.round
	return nil
}

// batch sends or keeps messages of one request, in their order. At the first
// failure all the rest is kept.
func (r *redrive) batch(ctx context.Context, messages []types.Message) error {
	for i, m := range messages {
		if id := aws.ToString(m.MessageId); r.seen[id] {
			r.kept = append(r.kept, messages[i:]...)
			r.round = true
			return nil
		} else {
			r.seen[id] = true
		}
		r.report.Seen++
		full := r.Limit > 0 && r.report.Matched >= r.Limit
		if full || !r.matches(&m) {
			r.keep(m)
			r.report.Rest = r.report.Rest || full
			continue
		}
		r.report.Matched++
		if r.DryRun {
			r.keep(m)
			continue
		}
		if err := r.send(ctx, &m); err != nil {
			for _, m := range messages[i:] {
				r.keep(m)
			}
			r.report.Rest = true
			return err
		}
		r.report.Sent++
	}
	return nil
}

func (r *redrive) keep(m types.Message) {
	r.kept = append(r.kept, m)
	r.report.Left++
	if group := m.Attributes[string(types.MessageSystemAttributeNameMessageGroupId)]; group != "" && isFIFO(r.From) {
		if r.left[group]++; r.left[group] >= maxEntries {
			r.report.Rest = true
		}
	}
}

// matches decides by what the handlers would see.
func (r *redrive) matches(m *types.Message) bool {
	msg, err := decode(m)
	if err != nil {
		msg = standIn(r.From, m, err.Error())
	}
	alien := func(v string) bool { return v == "" && r.IncludeAlien }
	if t := msg.Metadata[events.HeaderEventType]; len(r.Types) > 0 && !typepattern.Match(r.Types, t) && !alien(t) {
		return false
	}
	if k := msg.Metadata[events.HeaderPartitionKey]; len(r.Keys) > 0 && !slices.Contains(r.Keys, k) && !alien(k) {
		return false
	}
	if !strings.Contains(msg.Metadata[handlers.HeaderPoisonReason], r.Reason) {
		return false
	}
	sent := sentTime(m)
	if !r.After.IsZero() && !sent.After(r.After) || !r.Before.IsZero() && !sent.Before(r.Before) {
		return false
	}
	return r.Match == nil || r.Match(msg)
}

func (r *redrive) send(ctx context.Context, m *types.Message) error {
	if wait := time.Until(r.next); wait > 0 && !sleep(ctx, wait) {
		return fmt.Errorf("wait for the next message's turn: %w", context.DeadlineExceeded)
	}
	r.next = time.Now().Add(time.Second / time.Duration(r.Rate))
	in := &awssqs.SendMessageInput{QueueUrl: r.to, MessageBody: m.Body, MessageAttributes: make(map[string]types.MessageAttributeValue)}
	for name, v := range m.MessageAttributes {
		in.MessageAttributes[name] = v
	}
	if _, marked := in.MessageAttributes[events.HeaderReplayed]; !marked && len(in.MessageAttributes) < maxAttributes {
		in.MessageAttributes[events.HeaderReplayed] = types.MessageAttributeValue{DataType: aws.String(dataType), StringValue: aws.String("true")}
	}
	if isFIFO(r.To) {
		in.MessageGroupId = aws.String(m.Attributes[string(types.MessageSystemAttributeNameMessageGroupId)])
		// The same if this pass is repeated after a crash, and no other time.
		in.MessageDeduplicationId = aws.String("redriven-" + digest(aws.ToString(m.MessageId)+"/"+m.Attributes[string(types.MessageSystemAttributeNameSequenceNumber)]))
	}
	if err := r.call(ctx, func(ctx context.Context) error {
		_, err := r.Client.SendMessage(ctx, in, once)
		return err
	}); err != nil {
		return fmt.Errorf("send message %s: %w", aws.ToString(m.MessageId), lookUpError(r.To, err))
	}
	if err := r.call(ctx, func(ctx context.Context) error {
		_, err := r.Client.DeleteMessage(ctx, &awssqs.DeleteMessageInput{QueueUrl: r.from, ReceiptHandle: m.ReceiptHandle}, once)
		return err
	}); err != nil {
		return fmt.Errorf("delete message %s, which was sent: %w", aws.ToString(m.MessageId), lookUpError(r.From, err))
	}
	return nil
}

// giveBack makes what was left visible again, however the pass has ended.
func (r *redrive) giveBack(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for part := range slices.Chunk(r.kept, maxEntries) {
		in := &awssqs.ChangeMessageVisibilityBatchInput{QueueUrl: r.from}
		for i, m := range part {
			in.Entries = append(in.Entries, types.ChangeMessageVisibilityBatchRequestEntry{Id: &entryIDs[i], ReceiptHandle: m.ReceiptHandle})
		}
		if err := r.call(ctx, func(ctx context.Context) error {
			_, err := r.Client.ChangeMessageVisibilityBatch(ctx, in, once)
			return err
		}); err != nil && len(errs) == 0 {
			errs = append(errs, fmt.Errorf("make what was left visible again, which it is by itself after %s: %w", r.Visibility, lookUpError(r.From, err)))
		}
	}
	return errors.Join(errs...)
}

func (r *redrive) find(ctx context.Context, name string) (url *string, err error) {
	if err := r.call(ctx, func(ctx context.Context) error {
		out, err := r.Client.GetQueueUrl(ctx, &awssqs.GetQueueUrlInput{QueueName: &name}, once)
		if err == nil {
			url = out.QueueUrl
		}
		return err
	}); err != nil {
		return nil, lookUpError(name, err)
	}
	return url, nil
}

func (r *redrive) receive(ctx context.Context) (messages []types.Message, err error) {
	if err := r.call(ctx, func(ctx context.Context) error {
		out, err := r.Client.ReceiveMessage(ctx, &awssqs.ReceiveMessageInput{
			QueueUrl: r.from, MaxNumberOfMessages: maxEntries, WaitTimeSeconds: 1, VisibilityTimeout: int32(r.Visibility / time.Second),
			MessageAttributeNames: []string{"All"}, MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameAll},
		}, once)
		if err == nil {
			messages = out.Messages
		}
		return err
	}); err != nil {
		return nil, lookUpError(r.From, err)
	}
	return messages, nil
}

func (r *redrive) call(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return bounded(ctx, func() error { return f(ctx) })
}
