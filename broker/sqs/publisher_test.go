package sqs

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/google/uuid"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func TestPublish(t *testing.T) {
	noLeaks(t)
	c := client(t)
	queue := newQueue(t, c, "")
	p := newPublisher(t, PublisherConfig{Client: c})
	m := keyedMessage("k", `{"n":1}`)
	m.Metadata["traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	if err := p.Publish(queue, m, message.NewMessage("second", []byte("no key"))); err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(queue); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, r := range drain(t, c, queue, 2) {
		got[attributesOf(r)[attrUUID]] = *r.Body
		if attributesOf(r)[attrUUID] == m.UUID {
			for name, value := range m.Metadata {
				if attributesOf(r)[name] != value {
					t.Errorf("attribute %s is %q", name, attributesOf(r)[name])
				}
			}
		}
	}
	if got[m.UUID] != `{"n":1}` || got["second"] != "no key" {
		t.Errorf("got %q", got)
	}
}

func TestPublishBatch(t *testing.T) {
	together(t)
	c := client(t)
	for _, suffix := range []string{"", ".fifo"} {
		t.Run("queue"+suffix, func(t *testing.T) {
			a, b := newQueue(t, c, suffix), newQueue(t, c, suffix)
			p := newPublisher(t, PublisherConfig{Client: c})
			msgs := append(keyed(a, 25, 4), keyed(b, 3, 2)...)
			if got := statuses(publishBatch(p, context.Background(), msgs)); got != strings.Repeat("D", len(msgs)) {
				t.Fatal(got)
			}
			of := map[string]*outbox.Message{}
			for _, m := range msgs {
				of[m.EventID.String()] = m
			}
			lastOf := map[string]int64{}
			for _, r := range append(drain(t, c, a, 100), drain(t, c, b, 6)...) {
				id := attributesOf(r)[attrUUID]
				m := of[id]
				if m == nil {
					t.Fatalf("%q came twice, or from nowhere", id)
				}
				delete(of, id)
				if *r.Body != string(m.Payload) {
					t.Errorf("body %s, want %s", *r.Body, m.Payload)
				}
				m.EachHeader(func(name, value string) {
					if attributesOf(r)[name] != value {
						t.Errorf("attribute %s is %q, want %q", name, attributesOf(r)[name], value)
					}
				})
				if suffix == "" {
					continue
				}
				if r.Attributes["MessageGroupId"] != m.Key || r.Attributes["MessageDeduplicationId"] != id {
					t.Errorf("message %s of key %s has %v", id, m.Key, r.Attributes)
				}
				if last, some := lastOf[m.Topic+m.Key]; some && m.LogID != last+1 {
					t.Errorf("key %s: %d after %d", m.Key, m.LogID, last)
				}
				lastOf[m.Topic+m.Key] = m.LogID
			}
		})
	}
}

// A refusal of one entry in the middle of requests that are under way at once: its
// key stops, in whatever request its later messages would have gone, and all
// others arrive.
func TestPublishBatchStopsAtFirstFailure(t *testing.T) {
	together(t)
	var m middle
	c := clientThrough(t, &m)
	queue := newQueue(t, c, ".fifo")
	m.before = func(r *http.Request) *http.Response {
		if action(r) != "SendMessageBatch" {
			return nil
		}
		// The server gets the request without the entry that is to fail; the client is told so.
		var in map[string]any
		body, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(body, &in); err != nil {
			t.Error(err)
		}
		var rest []any
		for _, e := range in["Entries"].([]any) {
			if !strings.Contains(fmt.Sprint(e.(map[string]any)["MessageBody"]), `"key":"key-3","n":2`) {
				rest = append(rest, e)
			}
		}
		if len(rest) < len(in["Entries"].([]any)) && len(rest) == 0 {
			return answerWith(r, 200, `{"Successful":[],"Failed":[{"Id":"0","Code":"InternalError","Message":"try later","SenderFault":false}]}`)
		}
		in["Entries"] = rest
		body, _ = json.Marshal(in)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		return nil
	}
	m.after = func(r *http.Request, answer *http.Response) (*http.Response, error) { return answer, nil }
	p := newPublisher(t, PublisherConfig{Client: c})
	msgs := keyed(queue, 15, 5)
	results := publishBatch(p, context.Background(), msgs)
	for i, msg := range msgs {
		want := outbox.Done
		switch {
		case msg.Key == "key-3" && msg.LogID == 2:
			want = outbox.Unknown // the answer does not mention it
			if results[i].Status == outbox.Passing {
				want = outbox.Passing
			}
		case msg.Key == "key-3" && msg.LogID > 2:
			want = outbox.NotAttempted
		}
		if results[i].Status != want {
			t.Errorf("message %d of %s is %s, want %s: %v", msg.LogID, msg.Key, results[i].Status, want, results[i].Err)
		}
	}
	for _, r := range drain(t, c, queue, 15*5-3) {
		if strings.Contains(*r.Body, `"key":"key-3","n":3`) || strings.Contains(*r.Body, `"key":"key-3","n":4`) {
			t.Errorf("%s was sent behind a failed one", *r.Body)
		}
	}
}

// What is true of each request, whatever the timing: no two messages of a group in
// it, none of a group in two requests at once, and no more requests than asked for.
func TestOneOfAGroupAtATime(t *testing.T) {
	together(t)
	var m middle
	c := clientThrough(t, &m)
	queue := newQueue(t, c, ".fifo")
	var mu sync.Mutex
	inAir := map[string]bool{}
	requests, most, total := 0, 0, 0
	groups := func(r *http.Request) (all []string) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		var in struct {
			Entries []struct{ MessageGroupId string }
		}
		if err := json.Unmarshal(body, &in); err != nil {
			t.Error(err)
		}
		for _, e := range in.Entries {
			all = append(all, e.MessageGroupId)
		}
		return all
	}
	started := make(map[*http.Request][]string)
	m.before = func(r *http.Request) *http.Response {
		if action(r) != "SendMessageBatch" {
			return nil
		}
		of := groups(r)
		mu.Lock()
		defer mu.Unlock()
		requests++
		total++
		most = max(most, requests)
		for _, g := range of {
			if inAir[g] {
				t.Errorf("group %s is under way twice", g)
			}
			inAir[g] = true
		}
		started[r] = of
		return nil
	}
	m.after = func(r *http.Request, answer *http.Response) (*http.Response, error) {
		mu.Lock()
		defer mu.Unlock()
		if of := started[r]; of != nil {
			requests--
			for _, g := range of {
				delete(inAir, g)
			}
		}
		return answer, nil
	}
	p := newPublisher(t, PublisherConfig{Client: c, Requests: 3})
	msgs := keyed(queue, 100, 5)
	if got := statuses(publishBatch(p, context.Background(), msgs)); got != strings.Repeat("D", len(msgs)) {
		t.Fatal(got)
	}
	if most != 3 || total > 60 {
		t.Errorf("%d requests, at most %d at once", total, most)
	}
}

func TestPublishBatchLostReplyIsUnknown(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, "")
	proxy := testkit.NewProxy(t, testkit.SQS(t))
	p := newPublisher(t, PublisherConfig{Client: clientAt(t, "http://"+proxy.Addr())}) // with the SDK's retries
	if err := p.Publish(queue, keyedMessage("k", "warm")); err != nil {
		t.Fatal(err)
	}
	proxy.DropReplies()
	results := publishBatch(p, context.Background(), []*outbox.Message{outboxMessage(queue, "k", 1), outboxMessage(queue, "k", 2), outboxMessage(queue, "l", 1)})
	if got := statuses(results); got != "U-U" {
		t.Fatal(got, results)
	}
	var call *CallError
	if !errors.As(results[0].Err, &call) || !call.Sent || !errors.Is(results[0].Err, outbox.ErrUnavailable) {
		t.Errorf("error %v", results[0].Err)
	}
	proxy.Resume()
	drain(t, c, queue, 3)
	if more := receiveOnce(t, c, queueURL(t, c, queue), 1); len(more) > 0 {
		t.Errorf("%d messages were sent twice", len(more))
	}
}

func TestPublishBatchHonoursDeadlineOnStall(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, "")
	proxy := testkit.NewProxy(t, testkit.SQS(t))
	p := newPublisher(t, PublisherConfig{Client: clientAt(t, "http://"+proxy.Addr())})
	if err := p.Publish(queue, keyedMessage("k", "warm")); err != nil {
		t.Fatal(err)
	}
	proxy.Stall()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	began := time.Now()
	results := publishBatch(p, ctx, keyed(queue, 200, 2))
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %s", took)
	}
	got := statuses(results)
	// Ten requests of ten were under way; nothing else was sent, nor will be.
	if n := strings.Count(got, "U"); n == 0 || n > 100 || strings.ContainsAny(got, "DR") {
		t.Errorf("%d unknown: %s", n, got)
	}
	proxy.Resume()
	for i, r := range results {
		if r.Status == outbox.NotAttempted && i < 200 && r.Err == nil {
			t.Fatalf("message %d has no error", i)
		}
	}
}

// A client whose HTTP transport heeds no context: the call ends all the same.
func TestPublishBatchEndsWithoutItsTransport(t *testing.T) {
	together(t)
	release := make(chan struct{})
	var m middle
	c := clientThrough(t, &m)
	queue := newQueue(t, c, "")
	var sent atomic.Int32
	m.before = func(r *http.Request) *http.Response {
		if action(r) == "SendMessageBatch" {
			sent.Add(1)
			<-release
		}
		return nil
	}
	p := newPublisher(t, PublisherConfig{Client: c, Timeout: 200 * time.Millisecond, Requests: 2})
	began := time.Now()
	results := publishBatch(p, context.Background(), keyed(queue, 30, 1))
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
	if got := statuses(results); strings.ContainsAny(got, "DRU") {
		t.Errorf("nothing of it had a connection, and it is %s", got)
	}
	if err := p.Close(); !errors.Is(err, ErrCloseTimeout) {
		t.Errorf("Close: %v", err)
	}
	close(release)
	testkit.Eventually(t, patience, func() bool { return p.Close() == nil }, "what was left behind has ended")
	if more := receiveOnce(t, c, queueURL(t, c, queue), 0); len(more) > 0 {
		t.Errorf("%d messages were sent after the deadline", len(more))
	}
}

func TestPublishBatchCancelled(t *testing.T) {
	noLeaks(t)
	c := client(t)
	queue := newQueue(t, c, "")
	p := newPublisher(t, PublisherConfig{Client: c})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	results := publishBatch(p, ctx, keyed(queue, 2, 1))
	if got := statuses(results); got != "--" || !errors.Is(results[0].Err, context.Canceled) || errors.Is(results[0].Err, outbox.ErrUnavailable) {
		t.Error(got, results[0].Err)
	}
	if n := length(t, c, queue); n != 0 {
		t.Errorf("%d messages were sent", n)
	}
}

func TestPublishBatchConnectionRefused(t *testing.T) {
	noLeaks(t)
	p := newPublisher(t, PublisherConfig{Client: clientAt(t, "http://127.0.0.1:1"), Timeout: 3 * time.Second})
	results := publishBatch(p, context.Background(), keyed("order", 2, 1))
	if got := statuses(results); got != "PP" || !errors.Is(results[0].Err, outbox.ErrUnavailable) || !strings.Contains(results[0].Err.Error(), "nothing was sent") {
		t.Error(got, results[0].Err)
	}
}

// SQS says that a request was limited: nothing of it was accepted, so it goes
// again, in the same call.
func TestThrottledIsSentAgain(t *testing.T) {
	together(t)
	var m middle
	c := clientThrough(t, &m)
	queue := newQueue(t, c, ".fifo")
	var n atomic.Int32
	refuse := int32(3)
	m.before = func(r *http.Request) *http.Response {
		if action(r) == "SendMessageBatch" && n.Add(1) <= refuse {
			return answerWith(r, 400, `{"__type":"com.amazonaws.sqs#RequestThrottled","message":"Rate exceeded"}`)
		}
		return nil
	}
	p := newPublisher(t, PublisherConfig{Client: c})
	if got := publishBatch(p, context.Background(), keyed(queue, 2, 2)); statuses(got) != "DDDD" {
		t.Fatal(statuses(got), got[0].Err)
	}
	refuse = 1000
	got := publishBatch(p, context.Background(), keyed(queue, 2, 2))
	if statuses(got) != "PP--" || !errors.Is(got[0].Err, outbox.ErrUnavailable) {
		t.Fatal(statuses(got), got[0].Err)
	}
	if n.Load() > 20 {
		t.Errorf("%d requests", n.Load())
	}
}

// A whole request that is refused for one of its messages: each is tried by
// itself, and only that one fails.
func TestRefusedRequestIsTakenApart(t *testing.T) {
	together(t)
	var m middle
	c := clientThrough(t, &m)
	queue := newQueue(t, c, "")
	m.before = func(r *http.Request) *http.Response {
		if action(r) != "SendMessageBatch" {
			return nil
		}
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		if bytes.Contains(body, []byte(`key-5`)) {
			return answerWith(r, 400, `{"__type":"com.amazonaws.sqs#InvalidMessageContents","message":"no"}`)
		}
		return nil
	}
	p := newPublisher(t, PublisherConfig{Client: c})
	results := publishBatch(p, context.Background(), keyed(queue, 8, 2))
	if got := statuses(results); got != "DDDDDRDDDDDDD-DD" || !errors.Is(results[5].Err, outbox.ErrPermanent) {
		t.Fatal(got, results[5].Err)
	}
	drain(t, c, queue, 14)
}

func TestSizes(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, "")
	p := newPublisher(t, PublisherConfig{Client: c})
	large := func(n int) *outbox.Message {
		m := outboxMessage(queue, "k"+fmt.Sprint(n), 1)
		m.Payload = bytes.Repeat([]byte("x"), n)
		return m
	}
	results := publishBatch(p, context.Background(), []*outbox.Message{large(100), large(maxBytes + 1), large(200)})
	var tooLarge *TooLargeError
	if got := statuses(results); got != "DRD" || !errors.As(results[1].Err, &tooLarge) || !errors.Is(results[1].Err, outbox.ErrPermanent) || tooLarge.MaxBytes != maxBytes {
		t.Fatal(got, results[1].Err)
	}
	// The queue's own limit counts, and what it counts is body and attributes.
	// (ElasticMQ keeps no such limit, so that the answer of AWS is put in here.)
	var m middle
	limited := clientThrough(t, &m)
	m.before = func(r *http.Request) *http.Response {
		if action(r) == "GetQueueAttributes" {
			return answerWith(r, 200, `{"Attributes":{"MaximumMessageSize":"2000"}}`)
		}
		return nil
	}
	small := newQueue(t, c, "")
	p = newPublisher(t, PublisherConfig{Client: limited})
	a, b := large(1700), large(1990)
	a.Topic, b.Topic = small, small
	results = publishBatch(p, context.Background(), []*outbox.Message{a, b})
	if got := statuses(results); got != "DR" || !errors.As(results[1].Err, &tooLarge) || tooLarge.MaxBytes != 2000 {
		t.Fatal(got, results)
	}
	// Batches are bounded by bytes, too.
	p = newPublisher(t, PublisherConfig{Client: c})
	var sum []*outbox.Message
	for i := range 6 {
		sum = append(sum, large(250_000+i))
	}
	if got := statuses(publishBatch(p, context.Background(), sum)); got != "DDDDDD" {
		t.Fatal(got)
	}
}

func TestSickServices(t *testing.T) {
	together(t)
	var m middle
	c := clientThrough(t, &m)
	queue := newQueue(t, c, "")
	p := newPublisher(t, PublisherConfig{Client: c})
	if err := p.Publish(queue, keyedMessage("k", "warm")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		status      int
		body        string
		want        string
		unavailable bool
		says        string
	}{
		{500, `{"__type":"InternalFailure","message":"oops"}`, "U", true, "may have been accepted"},
		{503, `{"__type":"ServiceUnavailable","message":"later"}`, "P", true, "not available"},
		{403, `{"__type":"AccessDenied","message":"no"}`, "R", false, "IAM"},
		{403, `{"__type":"com.amazon.coral.service#AccessDeniedException","message":"no"}`, "R", false, "IAM"},
		{403, `{"__type":"InvalidClientTokenId","message":"who?"}`, "P", true, "credentials"},
		{403, `{"__type":"SignatureDoesNotMatch","message":"who?"}`, "P", true, "credentials"},
		{400, `{"__type":"ExpiredToken","message":"old"}`, "P", true, "credentials"},
		{400, `{"__type":"com.amazonaws.sqs#OverLimit","message":"full"}`, "P", true, "limit"},
		{400, `{"__type":"com.amazonaws.sqs#KmsThrottled","message":"slow"}`, "P", true, "KMS"},
		{400, `{"__type":"com.amazonaws.sqs#KmsAccessDenied","message":"no"}`, "R", false, "kms:"},
		{400, `{"__type":"com.amazonaws.sqs#KmsDisabled","message":"off"}`, "P", false, "switched off"},
		{400, `{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"gone"}`, "R", false, "declare it with a Topology"},
		{400, `{"__type":"SomethingNew","message":"new"}`, "P", false, "may pass"},
		{404, `<html>nginx</html>`, "P", true, "does not speak like the service"},
		{200, `<html>welcome</html>`, "U", true, "may have been accepted"},
		{200, `{"Successful":[],"Failed":[]}`, "U", true, "does not mention"},
		{200, `{"Successful":[],"Failed":[{"Id":"0","Code":"InternalError","SenderFault":false}]}`, "P", false, "may pass"},
		{200, `{"Successful":[],"Failed":[{"Id":"0","Code":"NeverHeard","SenderFault":true}]}`, "R", false, "as it is"},
		{200, `{"Successful":[],"Failed":[{"Id":"7","Code":"Bogus","SenderFault":true}]}`, "U", true, "does not mention"},
	} {
		m.mu.Lock()
		m.before = func(r *http.Request) *http.Response {
			if action(r) == "SendMessageBatch" {
				return answerWith(r, test.status, test.body)
			}
			return nil
		}
		m.mu.Unlock()
		results := publishBatch(p, context.Background(), keyed(queue, 1, 2))
		err := results[0].Err
		if got := statuses(results); got != test.want+"-" || errors.Is(err, outbox.ErrUnavailable) != test.unavailable ||
			errors.Is(err, outbox.ErrPermanent) != (test.want == "R") || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%d %s: %s, %v", test.status, test.body, got, err)
		}
		if strings.Contains(err.Error(), secret) || strings.Contains(fmt.Sprintf("%+v %#v", err, err), secret) {
			t.Errorf("the error gives the secret away: %v", err)
		}
	}
}

func TestMissingQueueAndNames(t *testing.T) {
	together(t)
	c := client(t)
	p := newPublisher(t, PublisherConfig{Client: c})
	missing := uniqueName(t)
	err := p.Publish(missing, keyedMessage("k", "x"))
	if !errors.Is(err, ErrNoQueue) || !errors.Is(err, outbox.ErrPermanent) || !strings.Contains(err.Error(), missing) {
		t.Errorf("missing queue: %v", err)
	}
	// It is there a moment later, and gone again.
	out, err := c.CreateQueue(context.Background(), &awssqs.CreateQueueInput{QueueName: &missing})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(missing, keyedMessage("k", "x")); err != nil {
		t.Errorf("after it was made: %v", err)
	}
	if _, err := c.DeleteQueue(context.Background(), &awssqs.DeleteQueueInput{QueueUrl: out.QueueUrl}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Publish(missing, keyedMessage("k", "x")); !errors.Is(err, ErrNoQueue) {
			t.Errorf("after it was removed: %v", err)
		}
	}
	for topic, want := range map[string]string{"": "no topic", "order placed": `has a ' '`, strings.Repeat("x", 81): "81 characters", "a/../b": `has a '/'`, ".fifo": "suffix"} {
		err := p.Publish(topic, keyedMessage("k", "x"))
		var invalid *InvalidMessageError
		if !errors.As(err, &invalid) || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), "\n") > 0 {
			t.Errorf("topic %q: %v", topic, err)
		}
	}
}

func TestQueueNames(t *testing.T) {
	t.Parallel()
	for topic, want := range map[string]string{"order": "order", "order.fifo": "order.fifo", "order.poison": "order-poison",
		"order.fifo.poison": "order-poison.fifo", "a.b.c": "a-b-c", "bad topic": "bad topic"} {
		if got := QueueName(topic); got != want {
			t.Errorf("QueueName(%q) is %q, want %q", topic, got, want)
		}
	}
	for topic, want := range map[string]string{"order": "order.fifo", "order.fifo": "order.fifo", "order.poison": "order-poison.fifo", "order.fifo.poison": "order-poison.fifo"} {
		if got := FIFOQueueName(topic); got != want {
			t.Errorf("FIFOQueueName(%q) is %q, want %q", topic, got, want)
		}
	}
	for key, hashed := range map[string]bool{"order-1": false, strings.Repeat("k", 128): false, strings.Repeat("k", 129): true, "": true,
		"with space": true, "größe": true, "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~": false} {
		got := GroupID(key)
		if (got != key) != hashed || !isToken(got) {
			t.Errorf("GroupID(%q) is %q", key, got)
		}
	}
}

func TestFIFO(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, ".fifo")
	p := newPublisher(t, PublisherConfig{Client: c})
	err := p.Publish(queue, message.NewMessage("1", []byte("x")))
	if !errors.Is(err, outbox.ErrPermanent) || !strings.Contains(err.Error(), events.HeaderPartitionKey) {
		t.Errorf("without a key: %v", err)
	}
	long := keyedMessage("größe "+strings.Repeat("x", 200), "long")
	again := keyedMessage("k", "again")
	asStock := message.NewMessage(uuid.NewString(), []byte("stock"))
	asStock.Metadata[metadataGroup], asStock.Metadata[metadataDedup] = "g", "d"
	if err := p.Publish(queue, long, again, asStock); err != nil {
		t.Fatal(err)
	}
	// A message that is sent again, because its answer was lost, is one message...
	if err := p.Publish(queue, again.Copy()); err != nil {
		t.Fatal(err)
	}
	// ... but not one that is replayed, or poisoned for a second handler.
	replayed := outboxMessage(queue, "k", 1)
	replayed.EventID = uuid.MustParse(again.UUID)
	replayed.Headers = map[string]string{events.HeaderReplayed: "true"}
	if got := statuses(publishBatch(p, context.Background(), []*outbox.Message{replayed, replayed})); got != "DD" {
		t.Fatal(got)
	}
	for _, handler := range []string{"mail.receipt", "stock.reserve"} {
		poisoned := again.Copy()
		poisoned.Metadata[handlers.HeaderPoisonHandler] = handler
		if err := p.Publish(queue, poisoned); err != nil {
			t.Fatal(err)
		}
	}
	groups := map[string]int{}
	for _, r := range drain(t, c, queue, 7) {
		groups[r.Attributes["MessageGroupId"]]++
		if *r.Body == "stock" && (r.Attributes["MessageDeduplicationId"] != "d" || attributesOf(r)[metadataGroup] != "") {
			t.Errorf("%v %v", r.Attributes, attributesOf(r))
		}
	}
	if groups[GroupID("größe "+strings.Repeat("x", 200))] != 1 || groups["k"] != 5 || groups["g"] != 1 {
		t.Errorf("groups %v", groups)
	}
}

func TestBinaryAndEmptyPayloads(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, "")
	p := newPublisher(t, PublisherConfig{Client: c})
	want := map[string][]byte{"nul": {0, 1, 2, 255}, "invalid": []byte("a\xffb"), "nonchar": []byte("\uFFFE"), "empty": {},
		"text": []byte("tab\tnewline\nreturn\r größe 🎉 \uFFFD")}
	for id, payload := range want {
		if err := p.Publish(queue, message.NewMessage(id, payload)); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range drain(t, c, queue, len(want)) {
		a := attributesOf(r)
		id := a[attrUUID]
		payload := []byte(*r.Body)
		if wanted := map[string]string{"text": "", "empty": encodingEmpty}[id]; id == "text" || id == "empty" {
			if a[attrEncoding] != wanted {
				t.Errorf("%s: %s is %q", id, attrEncoding, a[attrEncoding])
			}
			if id == "empty" {
				payload = nil
			}
		} else {
			payload, _ = base64.StdEncoding.DecodeString(*r.Body)
		}
		if !bytes.Equal(payload, want[id]) {
			t.Errorf("%s: %q, want %q", id, payload, want[id])
		}
	}
}

func TestPublisherConfigFaults(t *testing.T) {
	t.Parallel()
	_, err := NewPublisher(PublisherConfig{Requests: -1, Timeout: -1, MaxMessageBytes: maxBytes + 1})
	if !errors.Is(err, ErrInvalidConfig) {
		t.Fatal(err)
	}
	for _, want := range []string{"PublisherConfig.Client is nil", ".Requests is -1", ".Timeout is -1ns", ".MaxMessageBytes is 1048577"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if _, err := NewPublisher(PublisherConfig{Client: awssqs.New(awssqs.Options{})}); err == nil || !strings.Contains(err.Error(), "region") {
		t.Error(err)
	}
	c := awssqs.NewFromConfig(clientConfig(t, "http://127.0.0.1:1"))
	cfg := PublisherConfig{Client: c}
	p, err := NewPublisher(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprintf("%v %+v %#v", cfg, cfg, cfg), fmt.Sprintf("%v %+v %#v", p, p, p)} {
		if strings.Contains(text, secret) {
			t.Errorf("the secret is in %s", text)
		}
	}
}

// No credentials, and nobody who gives some: one sentence, and soon.
func TestMissingCredentials(t *testing.T) {
	noLeaks(t)
	cfg := clientConfig(t, testkit.SQS(t))
	cfg.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{}, errors.New("no EC2 IMDS role found")
	})
	p := newPublisher(t, PublisherConfig{Client: awssqs.NewFromConfig(cfg)})
	err := p.Publish("order", keyedMessage("k", "x"))
	if !errors.Is(err, outbox.ErrUnavailable) || !strings.Contains(err.Error(), "no EC2 IMDS role found") || !strings.Contains(err.Error(), "nothing was sent") {
		t.Error(err)
	}
}

func TestCloseAtAnyTime(t *testing.T) {
	noLeaks(t)
	c := client(t)
	queue := newQueue(t, c, "")
	p := newPublisher(t, PublisherConfig{Client: c})
	var publishers sync.WaitGroup
	for range 4 {
		publishers.Go(func() {
			for {
				err := p.Publish(queue, keyedMessage("k", "x"), keyedMessage("l", "x"))
				if errors.Is(err, ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	testkit.Eventually(t, patience, func() bool { return length(t, c, queue) > 20 }, "messages arrive")
	var closers sync.WaitGroup
	for range 3 {
		closers.Go(func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	closers.Wait()
	publishers.Wait()
	if got := publishBatch(p, context.Background(), keyed(queue, 1, 1)); statuses(got) != "-" || !errors.Is(got[0].Err, ErrClosed) {
		t.Error(got)
	}
	if err := newPublisher(t, PublisherConfig{Client: c}).Close(); err != nil {
		t.Errorf("before use: %v", err)
	}
}
