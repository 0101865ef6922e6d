package sqs

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
)

// A message that is always nacked goes to the dead-letter queue, and from there back.
func TestDeadLetterAndRedrive(t *testing.T) {
	together(t)
	ctx := context.Background()
	c := client(t)
	queue := uniqueName(t) + ".fifo"
	dead := DeadLetterName(queue)
	removeQueues(t, c, queue, dead)
	if err := (Topology{Queues: []Queue{{Name: queue}}}).Declare(ctx, Clients{SQS: c, Logger: quiet()}); err != nil {
		t.Fatal(err)
	}
	p := newPublisher(t, PublisherConfig{Client: c})
	s := newSubscriber(t, SubscriberConfig{Client: c, NackDelay: AtOnce})
	ch := subscribe(t, s, queue)
	bad, good := keyed(queue, 1, 3), outboxMessage(queue, "other", 1)
	if got := statuses(publishBatch(p, ctx, append(bad, good))); got != "DDDD" {
		t.Fatal(got)
	}
	counts := map[string]int{}
	fails := true
	handle := func(m *message.Message) {
		counts[m.UUID]++
		if fails && m.Metadata[HeaderGroupID] == "key-0" {
			m.Nack()
		} else {
			m.Ack()
		}
	}
	testkit.Eventually(t, patience, func() bool {
		select {
		case m := <-ch:
			handle(m)
		case <-time.After(50 * time.Millisecond):
		}
		return length(t, c, dead) == 3
	}, "the group is in the dead-letter queue")
	if counts[bad[0].EventID.String()] != 3 || counts[good.EventID.String()] != 1 {
		t.Errorf("deliveries %v", counts)
	}
	fails = false
	cfg := RedriveConfig{Client: c, From: dead, To: queue, Logger: quiet(), DryRun: true}
	report, err := Redrive(ctx, cfg)
	if err != nil || report.Seen != 3 || report.Matched != 3 || report.Sent != 0 || report.Left != 3 {
		t.Fatal(report, err)
	}
	cfg.DryRun = false
	report, err = Redrive(ctx, cfg)
	if err != nil || report.Sent != 3 || report.Rest {
		t.Fatal(report, err)
	}
	for n := range 3 {
		m := receiveMessage(t, ch)
		if m.UUID != bad[n].EventID.String() || m.Metadata[events.HeaderReplayed] != "true" || m.Metadata[HeaderGroupID] != "key-0" {
			t.Errorf("%d: got %s %v", n, m.Payload, m.Metadata)
		}
		m.Ack()
	}
	empty(t, c, queue)
	empty(t, c, dead)
}

func TestRedriveChooses(t *testing.T) {
	together(t)
	ctx := context.Background()
	c := client(t)
	p := newPublisher(t, PublisherConfig{Client: c})
	dead, to := newQueue(t, c, ""), newQueue(t, c, "")
	for n := range 12 {
		m := keyedMessage([]string{"a", "b", "c"}[n%3], `{"n":`+string(rune('0'+n%10))+`}`)
		m.Metadata[events.HeaderEventType] = []string{"order.placed", "order.line.added", "mail.sent"}[n%3]
		m.Metadata[handlers.HeaderPoisonReason] = []string{"connection refused", "no such mailbox"}[n%2]
		mustPublish(t, p, dead, m)
	}
	mustPublish(t, p, dead, message.NewMessage("alien", []byte("x")))
	cfg := RedriveConfig{Client: c, From: dead, To: to, Logger: quiet(), Limit: 3, Rate: 50, Types: []string{"order.placed"}}
	began := time.Now()
	report, err := Redrive(ctx, cfg)
	if err != nil || report.Sent != 3 || !report.Rest {
		t.Errorf("%+v %v", report, err)
	}
	if took := time.Since(began); took < 2*time.Second/50 {
		t.Errorf("three messages at 50 a second took %s", took)
	}
	for _, m := range drain(t, c, to, 3) {
		if !json.Valid([]byte(*m.Body)) || attributesOf(m)[events.HeaderEventType] != "order.placed" || attributesOf(m)[events.HeaderReplayed] != "true" {
			t.Errorf("%s %v", *m.Body, attributesOf(m))
		}
	}
	if n := length(t, c, dead); n != 10 {
		t.Errorf("%d are left", n)
	}
	drain(t, c, dead, 10) // and visible
}

func TestRedriveFilters(t *testing.T) {
	t.Parallel()
	var all []types.Message
	for n := range 12 {
		attributes := map[string]types.MessageAttributeValue{}
		for name, value := range map[string]string{
			attrUUID: strconv.Itoa(n), events.HeaderPartitionKey: []string{"a", "b", "c"}[n%3],
			events.HeaderEventType:      []string{"order.placed", "order.line.added", "mail.sent"}[n%3],
			handlers.HeaderPoisonReason: []string{"connection refused", "no such mailbox"}[n%2],
		} {
			attributes[name] = types.MessageAttributeValue{StringValue: &value}
		}
		all = append(all, types.Message{Body: aws.String("x"), MessageAttributes: attributes,
			Attributes: map[string]string{"SentTimestamp": strconv.FormatInt(time.UnixMilli(1e12).Add(time.Duration(n)*time.Hour).UnixMilli(), 10)}})
	}
	all = append(all, types.Message{MessageId: aws.String("alien"), Body: aws.String("x")})
	for name, test := range map[string]struct {
		cfg  RedriveConfig
		want int
	}{
		"all":     {RedriveConfig{}, 13},
		"types":   {RedriveConfig{Types: []string{"order.*"}}, 8},
		"alien":   {RedriveConfig{Types: []string{"mail.sent"}, IncludeAlien: true}, 5},
		"keys":    {RedriveConfig{Keys: []string{"a", "c"}}, 8},
		"reason":  {RedriveConfig{Reason: "mailbox"}, 6},
		"several": {RedriveConfig{Reason: "mailbox", Keys: []string{"a"}}, 2},
		"after":   {RedriveConfig{After: time.UnixMilli(1e12).Add(10 * time.Hour)}, 1},
		"before":  {RedriveConfig{Before: time.UnixMilli(1e12).Add(2 * time.Hour), Reason: "mailbox"}, 1},
		"match":   {RedriveConfig{Match: func(m *message.Message) bool { return m.UUID == "alien" }}, 1},
	} {
		got := 0
		for _, m := range all {
			if (&redrive{RedriveConfig: test.cfg}).matches(&m) {
				got++
			}
		}
		if got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}

func TestRedriveFaults(t *testing.T) {
	together(t)
	_, err := Redrive(context.Background(), RedriveConfig{From: "a", To: "a.fifo", Types: []string{"*x"}, Rate: -1, Limit: -1, Visibility: time.Second})
	for _, part := range []string{"Client is nil", "one of them is a FIFO queue", "Types", "Rate is -1", "Limit is -1", "Visibility is 1s"} {
		if !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	_, err = Redrive(context.Background(), RedriveConfig{Client: client(t), From: uniqueName(t), To: "x", Logger: quiet()})
	if !errors.Is(err, ErrNoQueue) {
		t.Error(err)
	}
}
