package sqs

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssns "github.com/aws/aws-sdk-go-v2/service/sns"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

const (
	account = "arn:aws:sns:us-east-1:123456789012" // moto's
)

func removeQueues(t testing.TB, c *awssqs.Client, names ...string) {
	t.Cleanup(func() {
		for _, name := range names {
			if out, err := c.GetQueueUrl(context.Background(), &awssqs.GetQueueUrlInput{QueueName: &name}); err == nil {
				c.DeleteQueue(context.Background(), &awssqs.DeleteQueueInput{QueueUrl: out.QueueUrl})
			}
		}
	})
}

func TestTopologyOfQueues(t *testing.T) {
	together(t)
	ctx := context.Background()
	for name, url := range map[string]string{"ElasticMQ": testkit.SQS(t), "moto": testkit.SNS(t)} {
		t.Run(name, func(t *testing.T) {
			c := clientAt(t, url)
			standard, fifo := uniqueName(t), uniqueName(t)+".fifo"
			removeQueues(t, c, standard, fifo, DeadLetterName(standard), DeadLetterName(fifo))
			topology := Topology{Queues: []Queue{{Name: standard, Retention: 24 * time.Hour}, {Name: fifo, MaxReceiveCount: 10, HighThroughput: true}}}
			var log logged
			with := Clients{SQS: c, Logger: log.logger()}
			if err := topology.Check(ctx, with); !errors.Is(err, ErrNoQueue) || strings.Count(err.Error(), "it does not exist") != 4 {
				t.Fatalf("nothing is there: %v", err)
			}
			for range 2 {
				if err := topology.Declare(ctx, with); err != nil {
					t.Fatal(err)
				}
			}
			if err := topology.Check(ctx, with); err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(log.String(), "a queue was made"); n != 4 {
				t.Errorf("%d queues were made:\n%s", n, log.String())
			}
			out, err := c.GetQueueAttributes(ctx, &awssqs.GetQueueAttributesInput{QueueUrl: queueURL(t, c, fifo), AttributeNames: []types.QueueAttributeName{"All"}})
			if err != nil {
				t.Fatal(err)
			}
			var redrive redrivePolicy
			if parseRedrive(out.Attributes["RedrivePolicy"], &redrive); redrive.MaxReceiveCount != 10 || !strings.HasSuffix(redrive.DeadLetterTargetARN, ":"+DeadLetterName(fifo)) {
				t.Errorf("redrive policy %s", out.Attributes["RedrivePolicy"])
			}
			topology.Queues[1].MaxReceiveCount, topology.Queues[0].Visibility = 5, time.Minute
			for _, err := range []error{topology.Check(ctx, with), topology.Declare(ctx, with)} {
				if !errors.Is(err, ErrDiffers) || !strings.Contains(err.Error(), "VisibilityTimeout is 300, want 60") || !strings.Contains(err.Error(), "RedrivePolicy is") {
					t.Errorf("other attributes: %v", err)
				}
			}
		})
	}
}

func TestTopologyDescribes(t *testing.T) {
	t.Parallel()
	topology := Topology{
		Queues: []Queue{{Name: "billing.fifo", HighThroughput: true}, {Name: "mail", NoDeadLetter: true, KMSKey: "alias/mail"}},
		Topics: []SNSTopic{{Name: "order.fifo", ARNPrefix: account, Queues: []string{"billing.fifo"}}},
	}
	want := `FIFO queue of high throughput billing-dead.fifo: retention 336h0m0s, visibility 5m0s, messages up to 1048576 bytes
FIFO queue of high throughput billing.fifo: retention 336h0m0s, visibility 5m0s, messages up to 1048576 bytes, to billing-dead.fifo after 3 receptions
standard queue mail: retention 336h0m0s, visibility 5m0s, messages up to 1048576 bytes, KMS key alias/mail
FIFO SNS topic order.fifo: messages up to 262144 bytes, raw copies to billing.fifo
`
	if got := topology.Describe(); got != want {
		t.Errorf("got:\n%s", got)
	}
	bad := Topology{
		Queues: []Queue{{Name: "a b"}, {Name: "x", Retention: time.Second, MaxReceiveCount: -1, HighThroughput: true, DeadLetter: "x"},
			{Name: "y", DeadLetter: "y.fifo", NoDeadLetter: true, Visibility: 13 * time.Hour, MaxMessageBytes: 1}, {Name: "y"}},
		Topics: []SNSTopic{{Name: "t", ARNPrefix: "here", Queues: []string{"none", "z.fifo"}, MaxMessageBytes: -1}},
	}
	err := bad.Declare(context.Background(), Clients{})
	if !errors.Is(err, ErrInvalidConfig) {
		t.Fatal(err)
	}
	for _, part := range []string{`has a ' '`, "Retention is 1s", "MaxReceiveCount is -1", "HighThroughput is for FIFO", "the queue itself", "both set",
		"Visibility is 13h", "MaxMessageBytes is 1:", `"y" is there twice`, `ARNPrefix is "here"`, "not in the Topology", "needs FIFO queues"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in:\n%v", part, err)
		}
	}
	if text := bad.Describe(); text != err.Error() {
		t.Errorf("it describes:\n%s", text)
	}
	if err := (Topology{Queues: []Queue{{Name: "q"}}}).Check(context.Background(), Clients{}); !errors.Is(err, ErrInvalidConfig) {
		t.Error(err)
	}
}

// Of what a queue's policy says nothing is lost, and several topics stand in it.
func TestPolicyAllowsSeveralTopics(t *testing.T) {
	t.Parallel()
	policy := `{"Version":"2008-10-17","Id":"mine","Statement":{"Sid":"owner","Effect":"Allow","Principal":"*","Action":"sqs:*"}}`
	for i, topic := range []string{"arn:b", "arn:a", "arn:b"} {
		next, missing, err := allow(policy, "arn:queue", topic)
		if err != nil || missing != (i < 2) {
			t.Fatal(next, missing, err)
		}
		policy = next
	}
	if want := `{"Id":"mine","Statement":[{"Action":"sqs:*","Effect":"Allow","Principal":"*","Sid":"owner"},` +
		`{"Action":"sqs:SendMessage","Condition":{"ArnEquals":{"aws:SourceArn":["arn:a","arn:b"]}},"Effect":"Allow","Principal":{"Service":"sns.amazonaws.com"},` +
		`"Resource":"arn:queue","Sid":"postbus-sns"}],"Version":"2008-10-17"}`; policy != want {
		t.Errorf("got %s", policy)
	}
	for _, policy := range []string{"", "null", `{}`} {
		if next, missing, err := allow(policy, "q", "t"); err != nil || !missing || !strings.Contains(next, `"Version":"`) && policy != "{}" {
			t.Errorf("%q: %s %v %v", policy, next, missing, err)
		}
	}
	if _, _, err := allow("{", "q", "t"); err == nil {
		t.Error("no error for what is no JSON")
	}
}

// Outbox messages to SNS topics, copies of them in SQS queues, two topics to one queue.
// Not beside others: the stand-in for SNS, when the machine is busy, now and then gives an
// answer that cannot be read; what that held comes again after the visibility's time.
func TestSNSFanOut(t *testing.T) {
	ctx := context.Background()
	cfg := clientConfig(t, testkit.SNS(t))
	queues, topics := awssqs.NewFromConfig(cfg), awssns.NewFromConfig(cfg)
	for _, suffix := range []string{"", ".fifo"} {
		billing, mail, order, stock := uniqueName(t)+"-b"+suffix, uniqueName(t)+"-m"+suffix, uniqueName(t)+"-o"+suffix, uniqueName(t)+"-s"+suffix
		topology := Topology{
			Queues: []Queue{{Name: billing}, {Name: mail, NoDeadLetter: true}},
			Topics: []SNSTopic{{Name: order, ARNPrefix: account, Queues: []string{billing, mail}}, {Name: stock, ARNPrefix: account, Queues: []string{billing}}},
		}
		removeQueues(t, queues, billing, mail, DeadLetterName(billing))
		t.Cleanup(func() {
			for _, name := range []string{order, stock} {
				topics.DeleteTopic(ctx, &awssns.DeleteTopicInput{TopicArn: aws.String(account + ":" + name)})
			}
		})
		with := Clients{SQS: queues, SNS: topics, Logger: quiet()}
		p, err := NewSNSPublisher(SNSPublisherConfig{Client: topics, ARNPrefix: account})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Publish(order, keyedMessage("k", "x")); !errors.Is(err, ErrNoQueue) || !errors.Is(err, outbox.ErrPermanent) {
			t.Errorf("missing topic: %v", err)
		}
		if err := topology.Check(ctx, with); !errors.Is(err, ErrNoQueue) {
			t.Errorf("nothing is there: %v", err)
		}
		for range 2 {
			if err := topology.Declare(ctx, with); err != nil {
				t.Fatal(err)
			}
		}
		if err := topology.Check(ctx, with); err != nil {
			t.Fatal(err)
		}
		msgs := append(keyed(order, 6, 5), keyed(stock, 2, 3)...)
		binary := outboxMessage(order, "bin", 1)
		binary.Payload = []byte{0, 255}
		if got := statuses(publishBatch(p, ctx, append(msgs, binary))); got != strings.Repeat("D", len(msgs)+1) {
			t.Fatal(got)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		for queue, want := range map[string]int{billing: 37, mail: 31} {
			s := newSubscriber(t, SubscriberConfig{Client: queues, Visibility: 10 * time.Second})
			ch := subscribe(t, s, queue)
			// The stand-in takes no locks: two requests at once may be handed one message,
			// or one's deletion undo the other's, and it comes again.
			seen := map[string]bool{}
			for repeats := 0; len(seen) < want; {
				m := receiveMessage(t, ch)
				if seen[m.UUID] {
					if repeats++; repeats > want {
						t.Fatalf("only %d different messages in %s, want %d", len(seen), queue, want)
					}
				}
				seen[m.UUID] = true
				if at := slices.IndexFunc(msgs, func(o *outbox.Message) bool { return o.EventID.String() == m.UUID }); at >= 0 {
					if string(m.Payload) != string(msgs[at].Payload) || m.Metadata[events.HeaderPartitionKey] != msgs[at].Key || m.Metadata[events.HeaderPosition] != msgs[at].Position() {
						t.Errorf("got %s %v", m.Payload, m.Metadata)
					}
				} else if string(m.Payload) != "\x00\xff" {
					t.Errorf("got %q %v", m.Payload, m.Metadata)
				}
				m.Ack()
			}
			s.Close()
		}
	}
}

func TestSNSPublisherFaults(t *testing.T) {
	together(t)
	_, err := NewSNSPublisher(SNSPublisherConfig{ARNPrefix: "order", Requests: 1001})
	for _, part := range []string{"Client is nil", `ARNPrefix is "order"`, "Requests is 1001"} {
		if !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	cfg := clientConfig(t, "http://127.0.0.1:1")
	p, err := NewSNSPublisher(SNSPublisherConfig{Client: awssns.NewFromConfig(cfg), ARNPrefix: account + ":", Timeout: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if got := publishBatch(p, context.Background(), keyed("order", 1, 2)); statuses(got) != "P-" || !errors.Is(got[0].Err, outbox.ErrUnavailable) {
		t.Error(got)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := p.Publish("order", keyedMessage("k", "x")); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}
