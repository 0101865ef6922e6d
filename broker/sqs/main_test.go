package sqs

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const (
	patience = 40 * time.Second // for what comes at once on a machine that is not busy

	secret = "canary-secret-of-the-client"
)

// noLeaks fails the test if a goroutine outlives it. Call it first.
func noLeaks(t *testing.T) {
	t.Helper()
	running := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, running) })
}

var running struct {
	sync.Mutex
	tests int
}

// together lets a test that mostly waits run beside others of its kind. The last
// of them looks for goroutines that any of them has left.
func together(t *testing.T) {
	t.Helper()
	t.Parallel()
	running.Lock()
	running.tests++
	running.Unlock()
	t.Cleanup(func() {
		running.Lock()
		defer running.Unlock()
		if running.tests--; running.tests == 0 {
			goleak.VerifyNone(t, // but for those of package testing, and tests that are about to begin
				goleak.IgnoreTopFunction("testing.tRunner.func1"), goleak.IgnoreTopFunction("testing.(*testState).waitParallel"),
				goleak.IgnoreAnyFunction("github.com/postbus/postbus/broker/sqs.together"))
		}
	})
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// logged is a logger whose lines a test looks into.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// clientConfig is for a server at url. Its connections end with the test.
func clientConfig(t testing.TB, url string) aws.Config {
	transport := &http.Transport{MaxIdleConnsPerHost: 100}
	t.Cleanup(transport.CloseIdleConnections)
	return aws.Config{Region: "us-east-1", BaseEndpoint: &url, HTTPClient: &http.Client{Transport: transport},
		Credentials: credentials.NewStaticCredentialsProvider("key", secret, "")}
}

func clientAt(t testing.TB, url string) *awssqs.Client {
	return awssqs.NewFromConfig(clientConfig(t, url))
}

func client(t testing.TB) *awssqs.Client {
	t.Helper()
	return clientAt(t, testkit.SQS(t))
}

// uniqueName is a queue's name that no other test has.
func uniqueName(t testing.TB) string {
	var random [6]byte
	rand.Read(random[:])
	name := strings.Map(func(r rune) rune {
		if r == '/' || r == '=' || r == '#' || r == '.' {
			return '_'
		}
		return r
	}, strings.TrimPrefix(t.Name(), "Test"))
	return fmt.Sprintf("t-%.50s-%s", name, hex.EncodeToString(random[:]))
}

// newQueue makes a queue that is removed at the end. pairs are attributes.
func newQueue(t testing.TB, c *awssqs.Client, suffix string, pairs ...string) (name string) {
	t.Helper()
	name = uniqueName(t) + suffix
	attributes := map[string]string{}
	if isFIFO(name) {
		attributes["FifoQueue"] = "true"
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		attributes[pairs[i]] = pairs[i+1]
	}
	out, err := c.CreateQueue(context.Background(), &awssqs.CreateQueueInput{QueueName: &name, Attributes: attributes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.DeleteQueue(context.Background(), &awssqs.DeleteQueueInput{QueueUrl: out.QueueUrl}) })
	return name
}

func queueURL(t testing.TB, c *awssqs.Client, name string) *string {
	t.Helper()
	out, err := c.GetQueueUrl(context.Background(), &awssqs.GetQueueUrlInput{QueueName: &name})
	if err != nil {
		t.Fatal(err)
	}
	return out.QueueUrl
}

func newPublisher(t testing.TB, cfg PublisherConfig) *Publisher {
	t.Helper()
	p, err := NewPublisher(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// drain receives n messages and deletes them, in the order of their coming.
func drain(t testing.TB, c *awssqs.Client, queue string, n int) (all []types.Message) {
	t.Helper()
	url := queueURL(t, c, queue)
	for deadline := time.Now().Add(patience); len(all) < n; {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d messages came", len(all), n)
		}
		all = append(all, receiveOnce(t, c, url, 1)...)
	}
	return all
}

func receiveOnce(t testing.TB, c *awssqs.Client, url *string, wait int32) []types.Message {
	t.Helper()
	out, err := c.ReceiveMessage(context.Background(), &awssqs.ReceiveMessageInput{QueueUrl: url, MaxNumberOfMessages: 10, WaitTimeSeconds: wait,
		MessageAttributeNames: []string{"All"}, MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameAll}})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Messages) > 0 {
		in := &awssqs.DeleteMessageBatchInput{QueueUrl: url}
		for i, m := range out.Messages {
			in.Entries = append(in.Entries, types.DeleteMessageBatchRequestEntry{Id: &entryIDs[i], ReceiptHandle: m.ReceiptHandle})
		}
		if deleted, err := c.DeleteMessageBatch(context.Background(), in); err != nil || len(deleted.Failed) > 0 {
			t.Fatal(deleted, err)
		}
	}
	return out.Messages
}

// length is how many messages are in a queue, in flight or not.
func length(t testing.TB, c *awssqs.Client, queue string) int {
	t.Helper()
	out, err := c.GetQueueAttributes(context.Background(), &awssqs.GetQueueAttributesInput{QueueUrl: queueURL(t, c, queue), AttributeNames: []types.QueueAttributeName{"All"}})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range []string{"ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"} {
		k, _ := strconv.Atoi(out.Attributes[name])
		n += k
	}
	return n
}

func attributesOf(m types.Message) map[string]string {
	all := make(map[string]string)
	for name, v := range m.MessageAttributes {
		all[name] = aws.ToString(v.StringValue)
	}
	return all
}

// outboxMessage is the nth message of a key.
func outboxMessage(topic, key string, n int) *outbox.Message {
	return &outbox.Message{
		LogID: int64(n), EventID: uuid.Must(uuid.NewV7()), EventType: "order.placed", SchemaVersion: 2,
		Topic: topic, Key: key, ContentType: "application/json", Source: "shop/1",
		Payload: []byte(fmt.Sprintf(`{"key":%q,"n":%d}`, key, n)),
	}
}

// keyed is n messages of each of so many keys, in turn.
func keyed(topic string, keys, n int) (msgs []*outbox.Message) {
	for i := range n {
		for k := range keys {
			msgs = append(msgs, outboxMessage(topic, "key-"+strconv.Itoa(k), i))
		}
	}
	return msgs
}

func publishBatch(p outbox.BatchPublisher, ctx context.Context, msgs []*outbox.Message) []outbox.Result {
	results := make([]outbox.Result, len(msgs))
	p.PublishBatch(ctx, msgs, results)
	return results
}

func keyedMessage(key, payload string) *message.Message {
	m := message.NewMessage(uuid.NewString(), []byte(payload))
	m.Metadata[events.HeaderPartitionKey] = key
	return m
}

func statuses(results []outbox.Result) string {
	var s string
	for _, r := range results {
		s += string("-DPRU"[r.Status]) // not attempted, Done, Passing, peRmanent, Unknown
	}
	return s
}

// middle changes requests and answers between the client and the server.
type middle struct {
	mu     sync.Mutex
	before func(*http.Request) *http.Response // nil: go on
	after  func(*http.Request, *http.Response) (*http.Response, error)
	under  http.RoundTripper
}

func (m *middle) RoundTrip(r *http.Request) (*http.Response, error) {
	m.mu.Lock()
	before, after := m.before, m.after
	m.mu.Unlock()
	if before != nil {
		if answer := before(r); answer != nil {
			return answer, nil
		}
	}
	answer, err := m.under.RoundTrip(r)
	if err == nil && after != nil {
		return after(r, answer)
	}
	return answer, err
}

func action(r *http.Request) string {
	_, name, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	return name
}

// answerWith is an answer of SQS in its JSON protocol.
func answerWith(r *http.Request, status int, body string) *http.Response {
	if r.Body != nil {
		r.Body.Close()
	}
	return &http.Response{StatusCode: status, Status: http.StatusText(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/x-amz-json-1.0"}}, Body: io.NopCloser(strings.NewReader(body))}
}

func clientThrough(t testing.TB, m *middle) *awssqs.Client {
	cfg := clientConfig(t, testkit.SQS(t))
	m.under = cfg.HTTPClient.(*http.Client).Transport
	cfg.HTTPClient = &http.Client{Transport: m}
	return awssqs.NewFromConfig(cfg)
}
