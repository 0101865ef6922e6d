package sqs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func init() { testkit.RegisterChild("sqs-consumer", consumer) }

// newSubscriber closes soon: ElasticMQ gives what comes to requests that were
// broken off, so they must be short here.
func newSubscriber(t testing.TB, cfg SubscriberConfig) *Subscriber {
	t.Helper()
	orDefault(&cfg.WaitTime, time.Second)
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

func subscribe(t testing.TB, s *Subscriber, queue string) <-chan *message.Message {
	t.Helper()
	ch, err := s.Subscribe(context.Background(), queue)
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func receiveMessage(t testing.TB, ch <-chan *message.Message) *message.Message {
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

func empty(t testing.TB, c *awssqs.Client, queue string) {
	t.Helper()
	testkit.Eventually(t, patience, func() bool { return length(t, c, queue) == 0 }, "the queue is empty")
}

func mustPublish(t testing.TB, p message.Publisher, topic string, msgs ...*message.Message) {
	t.Helper()
	if err := p.Publish(topic, msgs...); err != nil {
		t.Fatal(err)
	}
}

func TestSubscribe(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, ".fifo")
	p, s := newPublisher(t, PublisherConfig{Client: c}), newSubscriber(t, SubscriberConfig{Client: c})
	type ctxKey struct{}
	ch, err := s.Subscribe(context.WithValue(context.Background(), ctxKey{}, "value"), queue)
	if err != nil {
		t.Fatal(err)
	}
	in := keyedMessage("k", "payload")
	in.Metadata[HeaderDeliveryCount], in.Metadata["trace"] = "17", "x"
	mustPublish(t, p, queue, in)
	m := receiveMessage(t, ch)
	if m.UUID != in.UUID || string(m.Payload) != "payload" || m.Context().Value(ctxKey{}) != "value" {
		t.Errorf("got %v", m)
	}
	for name, want := range map[string]string{HeaderDeliveryCount: "1", HeaderQueue: queue, HeaderGroupID: "k", events.HeaderPartitionKey: "k", "trace": "x"} {
		if m.Metadata[name] != want {
			t.Errorf("metadata %s is %q, want %q", name, m.Metadata[name], want)
		}
	}
	if sent, err := time.Parse(time.RFC3339Nano, m.Metadata[HeaderSentTime]); err != nil || time.Since(sent) > time.Minute || m.Metadata[HeaderMessageID] == "" {
		t.Errorf("metadata %v", m.Metadata)
	}
	m.Ack()
	testkit.Eventually(t, patience, func() bool { return m.Context().Err() != nil }, "its context ends")
	empty(t, c, queue)
}

// Whatever a message carries comes out as it went in, also what SQS itself does
// not take.
func TestRoundTrip(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, "")
	p, s := newPublisher(t, PublisherConfig{Client: c}), newSubscriber(t, SubscriberConfig{Client: c})
	var msgs []*message.Message
	for _, payload := range []string{"text", "", "\x00\xff", "a\uFFFEb", "größe 🎉"} {
		m := keyedMessage("k"+strconv.Itoa(len(msgs)), payload)
		m.Metadata["empty"], m.Metadata["has space"], m.Metadata["AWS.reserved"], m.Metadata["control"] = "", "x", "y", "a\x01b"
		for i := range 3 * len(msgs) {
			m.Metadata["more-"+strconv.Itoa(i)] = strings.Repeat("ü", i)
		}
		msgs = append(msgs, m)
	}
	mustPublish(t, p, queue, msgs...)
	want := map[string]*message.Message{}
	for _, m := range msgs {
		want[m.UUID] = m
	}
	ch := subscribe(t, s, queue)
	for range msgs {
		m := receiveMessage(t, ch)
		w := want[m.UUID]
		if w == nil || !bytes.Equal(m.Payload, w.Payload) {
			t.Fatalf("got %q %q", m.UUID, m.Payload)
		}
		for _, name := range []string{HeaderDeliveryCount, HeaderQueue, HeaderMessageID, HeaderSentTime} {
			delete(m.Metadata, name)
		}
		if fmt.Sprint(m.Metadata) != fmt.Sprint(w.Metadata) {
			t.Errorf("metadata %q, want %q", m.Metadata, w.Metadata)
		}
		m.Ack()
	}
}

func TestSeveralInFlight(t *testing.T) {
	together(t)
	c := client(t)
	for _, n := range []int{1, 8, 30} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			queue := newQueue(t, c, "")
			p, s := newPublisher(t, PublisherConfig{Client: c}), newSubscriber(t, SubscriberConfig{Client: c, MaxInFlight: n})
			var msgs []*message.Message
			for range 3 * n {
				msgs = append(msgs, message.NewMessage(fmt.Sprint(len(msgs)), []byte("x")))
			}
			mustPublish(t, p, queue, msgs...)
			ch := subscribe(t, s, queue)
			var held []*message.Message
			for range n {
				held = append(held, receiveMessage(t, ch))
			}
			for done := 0; done < 3*n; done++ {
				select {
				case m := <-ch:
					t.Fatalf("%s came, with %d in flight", m.UUID, len(held))
				default:
				}
				held[0].Ack()
				if held = held[1:]; done+1+len(held) < 3*n {
					held = append(held, receiveMessage(t, ch))
				}
			}
			empty(t, c, queue)
		})
	}
}

// FIFO with many in flight and random nacks: of each group at most one message is
// with a handler, and none is handled before the one in front of it.
func TestFIFOOrderUnderNacks(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, ".fifo")
	p := newPublisher(t, PublisherConfig{Client: c})
	const groups, each = 12, 15
	results := publishBatch(p, context.Background(), keyed(queue, groups, each))
	if got := statuses(results); got != strings.Repeat("D", groups*each) {
		t.Fatal(got)
	}
	var mu sync.Mutex
	next, busy, nacks, most := map[string]int{}, map[string]bool{}, 0, 0
	var handled atomic.Int32
	var work sync.WaitGroup
	var consumers []*Subscriber
	for range 2 {
		s := newSubscriber(t, SubscriberConfig{Client: c, NackDelay: AtOnce, MaxInFlight: 16, Visibility: 30 * time.Second})
		ch := subscribe(t, s, queue)
		for range 16 {
			work.Go(func() {
				for m := range ch {
					var at struct {
						Key string
						N   int
					}
					json.Unmarshal(m.Payload, &at)
					mu.Lock()
					if busy[at.Key] {
						t.Errorf("two messages of %s are with handlers", at.Key)
					}
					if at.N > next[at.Key] {
						t.Errorf("%s: %d came when %d was next", at.Key, at.N, next[at.Key])
					}
					busy[at.Key] = true
					most = max(most, len(busy))
					nack := rand.IntN(10) == 0
					if nack {
						nacks++
					} else if at.N == next[at.Key] {
						next[at.Key]++
						handled.Add(1)
					}
					mu.Unlock()
					<-time.After(time.Duration(rand.IntN(5)) * time.Millisecond) // a handler's work
					mu.Lock()
					delete(busy, at.Key)
					mu.Unlock()
					if nack {
						m.Nack()
					} else {
						m.Ack()
					}
				}
			})
		}
		consumers = append(consumers, s)
	}
	testkit.Eventually(t, 3*patience, func() bool { return handled.Load() == groups*each }, "all are handled")
	empty(t, c, queue)
	for _, s := range consumers {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	work.Wait()
	if nacks == 0 || most < 4 {
		t.Errorf("%d nacks, at most %d groups at once: this run has shown nothing", nacks, most)
	}
}

func TestNackComesAgain(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, "")
	p := newPublisher(t, PublisherConfig{Client: c})
	s := newSubscriber(t, SubscriberConfig{Client: c, NackDelay: time.Second, MaxNackDelay: 2 * time.Second})
	ch := subscribe(t, s, queue)
	mustPublish(t, p, queue, keyedMessage("k", "x"))
	last := time.Time{}
	for n := 1; n <= 3; n++ {
		m := receiveMessage(t, ch)
		if got := m.Metadata[HeaderDeliveryCount]; got != strconv.Itoa(n) {
			t.Errorf("delivery count %s, want %d", got, n)
		}
		if wait := time.Since(last); n > 1 && wait < time.Duration(n-1)*time.Second-100*time.Millisecond {
			t.Errorf("delivery %d came after %s", n, wait)
		}
		last = time.Now()
		if n == 3 {
			m.Ack()
		} else {
			m.Nack()
		}
	}
	empty(t, c, queue)
}

// A handler that takes three times the visibility has its message to itself.
func TestSlowHandlerRunsOnce(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, ".fifo")
	p := newPublisher(t, PublisherConfig{Client: c})
	s := newSubscriber(t, SubscriberConfig{Client: c, Visibility: 2 * time.Second})
	ch := subscribe(t, s, queue)
	var msgs []*message.Message
	for i := range 3 {
		msgs = append(msgs, keyedMessage("k", strconv.Itoa(i)))
	}
	mustPublish(t, p, queue, msgs...)
	first := receiveMessage(t, ch)
	// Another consumer sees neither the message nor those of its group that wait here.
	url := queueURL(t, c, queue)
	for began := time.Now(); time.Since(began) < 5*time.Second; {
		if got := receiveOnce(t, c, url, 1); len(got) > 0 {
			t.Fatalf("another consumer got %s", *got[0].Body)
		}
	}
	if first.Context().Err() != nil {
		t.Fatal(context.Cause(first.Context()))
	}
	first.Ack()
	for i := 1; i < 3; i++ {
		m := receiveMessage(t, ch)
		if string(m.Payload) != strconv.Itoa(i) || m.Metadata[HeaderDeliveryCount] != "1" {
			t.Errorf("got %s, delivery %s", m.Payload, m.Metadata[HeaderDeliveryCount])
		}
		m.Ack()
	}
	empty(t, c, queue)
}

func TestHandlerLimit(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, "")
	p := newPublisher(t, PublisherConfig{Client: c})
	var log logged
	s := newSubscriber(t, SubscriberConfig{Client: c, Visibility: 2 * time.Second, HandlerLimit: 300 * time.Millisecond, Logger: log.logger()})
	ch := subscribe(t, s, queue)
	mustPublish(t, p, queue, keyedMessage("k", "x"))
	m := receiveMessage(t, ch)
	<-m.Context().Done()
	if cause := context.Cause(m.Context()); cause != ErrHandlerLimit {
		t.Errorf("cause %v", cause)
	}
	m.Ack() // too late to count
	again := receiveMessage(t, ch)
	if again.UUID != m.UUID || again.Metadata[HeaderDeliveryCount] != "2" {
		t.Errorf("got %v", again.Metadata)
	}
	again.Ack()
	empty(t, c, queue)
	if !strings.Contains(log.String(), "handlers have taken longer than their limit") {
		t.Error(log.String())
	}
}

// Visibility that cannot be renewed: the handler is told before the message is
// visible, or as soon as we know that somebody else has it.
func TestLostVisibilityCancelsTheHandler(t *testing.T) {
	together(t)
	var m middle
	c := clientThrough(t, &m)
	queue := newQueue(t, c, ".fifo")
	p := newPublisher(t, PublisherConfig{Client: c})
	for name, answer := range map[string]string{
		"no answer": "",
		"not ours":  `{"Successful":[],"Failed":[{"Id":"0","Code":"ReceiptHandleIsInvalid","SenderFault":true}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			m.mu.Lock()
			m.before = func(r *http.Request) *http.Response {
				if action(r) != "ChangeMessageVisibilityBatch" {
					return nil
				}
				body, _ := io.ReadAll(r.Body)
				r.Body = io.NopCloser(bytes.NewReader(body))
				if strings.Contains(string(body), `"VisibilityTimeout":0`) {
					return nil
				}
				if answer == "" {
					return answerWith(r, 500, `{"__type":"InternalFailure"}`)
				}
				return answerWith(r, 200, answer)
			}
			m.mu.Unlock()
			s := newSubscriber(t, SubscriberConfig{Client: c, Visibility: 2 * time.Second})
			ch := subscribe(t, s, queue)
			mustPublish(t, p, queue, keyedMessage("k", "1"), keyedMessage("k", "2"))
			first := receiveMessage(t, ch)
			select {
			case <-first.Context().Done():
			case <-time.After(patience):
				t.Fatal("it was not cancelled")
			}
			if cause := context.Cause(first.Context()); cause != ErrLost {
				t.Errorf("cause %v", cause)
			}
			first.Nack()
			m.mu.Lock()
			m.before = nil
			m.mu.Unlock()
			// The second one, which waited here, comes behind the first again.
			for _, want := range []string{"1", "2"} {
				m := receiveMessage(t, ch)
				if string(m.Payload) != want {
					t.Errorf("got %s, want %s", m.Payload, want)
				}
				m.Ack()
			}
			empty(t, c, queue)
			s.Close()
		})
	}
}

func TestUndecodableIsHandedOver(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, "")
	url := queueURL(t, c, queue)
	str := func(s string) types.MessageAttributeValue {
		return types.MessageAttributeValue{DataType: aws.String("String"), StringValue: &s}
	}
	for _, attributes := range []map[string]types.MessageAttributeValue{
		{attrEncoding: str("base64")}, {attrEncoding: str("zstd")}, {attrMetadata: str("not json")},
		{attrUUID: str("fine"), "n": {DataType: aws.String("Number"), StringValue: aws.String("7")}, "b": {DataType: aws.String("Binary"), BinaryValue: []byte{1}}},
		nil,
	} {
		if _, err := c.SendMessage(context.Background(), &awssqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String("<not base64>"), MessageAttributes: attributes}); err != nil {
			t.Fatal(err)
		}
	}
	ch := subscribe(t, newSubscriber(t, SubscriberConfig{Client: c}), queue)
	bad, seen := 0, map[string]bool{}
	for range 5 {
		m := receiveMessage(t, ch)
		if seen[m.UUID] {
			t.Errorf("UUID %s twice", m.UUID)
		}
		seen[m.UUID] = true
		if m.Metadata[HeaderUndecodable] != "" {
			bad++
			var raw RawMessage
			if err := json.Unmarshal(m.Payload, &raw); err != nil || raw.Body != "<not base64>" || raw.Queue != queue || raw.ID != m.Metadata[HeaderMessageID] {
				t.Errorf("%s: %v", m.Payload, err)
			}
		} else if m.UUID == "fine" && (m.Metadata["n"] != "7" || m.Metadata["b"] != "\x01") {
			t.Errorf("metadata %v", m.Metadata)
		}
		m.Ack()
	}
	if bad != 3 || !seen["fine"] {
		t.Errorf("%d undecodable; %v", bad, seen)
	}
	empty(t, c, queue)
}

func TestSubscribeFaults(t *testing.T) {
	noLeaks(t)
	c := client(t)
	s := newSubscriber(t, SubscriberConfig{Client: c})
	missing := uniqueName(t)
	if _, err := s.Subscribe(context.Background(), missing); !errors.Is(err, ErrNoQueue) || !strings.Contains(err.Error(), missing) {
		t.Error(err)
	}
	if _, err := s.Subscribe(context.Background(), "order placed"); err == nil || !strings.Contains(err.Error(), "letters, digits") {
		t.Error(err)
	}
	away := newSubscriber(t, SubscriberConfig{Client: clientAt(t, "http://127.0.0.1:1")})
	if _, err := away.Subscribe(context.Background(), "order"); !errors.Is(err, outbox.ErrUnavailable) {
		t.Error(err)
	}
	s.Close()
	if _, err := s.Subscribe(context.Background(), missing); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestSubscriberConfigFaults(t *testing.T) {
	t.Parallel()
	c := awssqs.NewFromConfig(aws.Config{Region: "us-east-1", HTTPClient: &http.Client{Timeout: 10 * time.Second}})
	for name, test := range map[string]struct {
		cfg  SubscriberConfig
		want string
	}{
		"no client":      {SubscriberConfig{}, "Client is nil"},
		"http timeout":   {SubscriberConfig{Client: c}, "timeout of 10s"},
		"in flight":      {SubscriberConfig{MaxInFlight: -1}, "MaxInFlight is -1"},
		"wait":           {SubscriberConfig{WaitTime: 21 * time.Second}, "WaitTime is 21s"},
		"wait fraction":  {SubscriberConfig{WaitTime: 1500 * time.Millisecond}, "WaitTime is 1.5s"},
		"visibility":     {SubscriberConfig{Visibility: time.Second}, "Visibility is 1s"},
		"limit":          {SubscriberConfig{HandlerLimit: 12 * time.Hour}, "exceed the 12h0m0s"},
		"not renewed":    {SubscriberConfig{WithoutRenewal: true, HandlerLimit: 5 * time.Minute}, "handled a second time"},
		"nack":           {SubscriberConfig{NackDelay: -2}, "NackDelay is -2ns"},
		"nack above max": {SubscriberConfig{NackDelay: time.Minute, MaxNackDelay: time.Second}, "MaxNackDelay is 1s"},
		"close":          {SubscriberConfig{CloseTimeout: -1}, "CloseTimeout is -1ns"},
	} {
		_, err := NewSubscriber(test.cfg)
		if !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewSubscriber(SubscriberConfig{Client: awssqs.NewFromConfig(aws.Config{Region: "us-east-1"}), WithoutRenewal: true, NackDelay: AtOnce}); err != nil {
		t.Error(err)
	}
}

func TestLag(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, "")
	p := newPublisher(t, PublisherConfig{Client: c})
	s := newSubscriber(t, SubscriberConfig{Client: c, MaxInFlight: 1})
	ch := subscribe(t, s, queue)
	lag := func() Lag {
		all, err := s.Lag(context.Background())
		if err != nil || len(all) != 1 || all[0].Queue != queue {
			t.Fatal(all, err)
		}
		return all[0]
	}
	if l := lag(); l.Messages != 0 || l.Oldest != 0 {
		t.Errorf("empty: %+v", l)
	}
	for i := range 5 {
		mustPublish(t, p, queue, message.NewMessage(strconv.Itoa(i), []byte("x")))
	}
	m := receiveMessage(t, ch)
	testkit.Eventually(t, patience, func() bool { l := lag(); return l.Messages == 5 && l.InFlight == 2 && l.Visible == 3 && l.Oldest > 0 }, "2 in flight, 3 behind")
	m.Ack()
	for range 4 {
		receiveMessage(t, ch).Ack()
	}
	testkit.Eventually(t, patience, func() bool { l := lag(); return l.Messages == 0 && l.Oldest == 0 }, "no lag")
	s.Close()
	if all, err := s.Lag(context.Background()); len(all) != 0 || err != nil {
		t.Error(all, err)
	}
}

// What a consumer held that was killed is delivered to another, in order.
func TestKilledConsumersMessagesComeBack(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, ".fifo")
	p := newPublisher(t, PublisherConfig{Client: c})
	mustPublish(t, p, queue, keyedMessage("k", "1"), keyedMessage("k", "2"), keyedMessage("l", "3"))
	child := testkit.StartChild(t, "sqs-consumer", testkit.SQS(t), queue)
	testkit.Eventually(t, patience, func() bool { return strings.Contains(child.Output(), "got 1") }, "the child has a message")
	child.Kill9()
	ch := subscribe(t, newSubscriber(t, SubscriberConfig{Client: c}), queue)
	var of []string
	for range 3 {
		m := receiveMessage(t, ch)
		if m.Metadata[HeaderGroupID] == "k" {
			of = append(of, string(m.Payload))
			if m.Metadata[HeaderDeliveryCount] == "1" {
				t.Errorf("%s says that it is delivered for the first time", m.Payload)
			}
		}
		m.Ack()
	}
	if got := strings.Join(of, " "); got != "1 2" {
		t.Errorf("got %s", got)
	}
	empty(t, c, queue)
}

// consumer is a child: it takes messages and never acks them.
func consumer(args []string) {
	url := args[0]
	c := awssqs.New(awssqs.Options{Region: "us-east-1", BaseEndpoint: &url, Credentials: aws.AnonymousCredentials{}})
	s, err := NewSubscriber(SubscriberConfig{Client: c, Visibility: 3 * time.Second})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	ch, err := s.Subscribe(context.Background(), args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for m := range ch {
		fmt.Println("got", string(m.Payload))
	}
}
