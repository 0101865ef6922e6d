package redisstream

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func TestPublishBatch(t *testing.T) {
	noLeaks(t)
	c, prefix := testkit.Redis(t), testkit.Prefix(t)
	p := newPublisher(t, PublisherConfig{Client: c})

	// Three topics, interleaved; more messages than one script takes.
	p.limits.chunkMessages = 4
	var msgs []*outbox.Message
	for i := range 30 {
		msgs = append(msgs, outboxMessage(prefix+[]string{"a", "b", "c"}[i%3], "k", i))
	}
	msgs[3].Headers = map[string]string{"traceparent": "00-x-y-01"}
	if got, want := statuses(publishBatch(p, context.Background(), msgs)), strings.Repeat("D", 30); got != want {
		t.Fatalf("results are %s, want %s", got, want)
	}
	for i, topic := range []string{"a", "b", "c"} {
		entries, err := c.XRange(context.Background(), prefix+topic, "-", "+").Result()
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) != 10 {
			t.Fatalf("stream %s has %d entries, want 10", topic, len(entries))
		}
		for n, e := range entries {
			got, err := decode(e.Values)
			if err != nil {
				t.Fatal(err)
			}
			want := msgs[3*n+i].Watermill()
			if got.UUID != want.UUID || string(got.Payload) != string(want.Payload) || !maps.Equal(got.Metadata, want.Metadata) {
				t.Errorf("entry %d of stream %s is %s %v %s, want %s %v %s", n, topic,
					got.UUID, got.Metadata, got.Payload, want.UUID, want.Metadata, want.Payload)
			}
		}
	}
}

func TestPublishBatchStopsAtFirstFailure(t *testing.T) {
	noLeaks(t)
	c, prefix := testkit.Redis(t), testkit.Prefix(t)
	ctx := context.Background()

	// A stream that takes five more entries: its last id is five below the highest.
	nearlyFull := func(name string) string {
		if err := c.XAdd(ctx, &redis.XAddArgs{Stream: prefix + name, ID: "18446744073709551615-18446744073709551610",
			Values: []string{"a", "b"}}).Err(); err != nil {
			t.Fatal(err)
		}
		return prefix + name
	}
	for _, tt := range []struct {
		name  string
		chunk int
		want  string
	}{
		{"inside one script", 100, "DDDDDR--"},
		{"first of a script", 5, "DDDDDR--"},
		{"in a later script", 2, "DDDDDR--"},
	} {
		p := newPublisher(t, PublisherConfig{Client: c})
		p.limits.chunkMessages = tt.chunk
		full, other := nearlyFull(tt.name), prefix+tt.name+" other"
		msgs := slices.Concat(outboxMessages(full, "k", 8), outboxMessages(other, "k", 8))
		results := publishBatch(p, ctx, msgs)
		if got := statuses(results[:8]); got != tt.want {
			t.Errorf("%s: results are %s, want %s", tt.name, got, tt.want)
		}
		if got := statuses(results[8:]); got != "DDDDDDDD" {
			t.Errorf("%s: results of the other stream are %s", tt.name, got)
		}
		if n := streamLen(t, c, full); n != 6 {
			t.Errorf("%s: the stream has %d entries, want 6", tt.name, n)
		}
		var refused *RefusedError
		if err := results[5].Err; !errors.As(err, &refused) || !errors.Is(err, outbox.ErrPermanent) ||
			refused.MessageID != msgs[5].EventID.String() || refused.Stream != full {
			t.Errorf("%s: error is %v", tt.name, err)
		}
	}

	key := prefix + "string"
	if err := c.Set(ctx, key, "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	p := newPublisher(t, PublisherConfig{Client: c})
	results := publishBatch(p, ctx, outboxMessages(key, "k", 3))
	if got := statuses(results); got != "R--" || !errors.Is(results[0].Err, outbox.ErrPermanent) {
		t.Errorf("a key of another type: results are %s, error %v", got, results[0].Err)
	}
}

func TestPublishBatchSortsOutTooLarge(t *testing.T) {
	c, prefix := testkit.Redis(t), testkit.Prefix(t)
	p := newPublisher(t, PublisherConfig{Client: c, MaxMessageBytes: 1000})
	var msgs []*outbox.Message
	for i := range 6 {
		msgs = append(msgs, outboxMessage(prefix+"s", []string{"a", "b"}[i%2], i))
	}
	msgs[2].Payload = make([]byte, 1001)
	msgs[3].Headers = map[string]string{fieldUUID: "x"}
	results := publishBatch(p, context.Background(), msgs)
	if got := statuses(results); got != "DDRR--" {
		t.Fatalf("results are %s", got)
	}
	var large *TooLargeError
	if !errors.As(results[2].Err, &large) || large.MaxBytes != 1000 || large.Bytes < 1001 || !errors.Is(large, outbox.ErrPermanent) {
		t.Errorf("error is %v", results[2].Err)
	}
	var invalid *InvalidMessageError
	if !errors.As(results[3].Err, &invalid) || !errors.Is(invalid, outbox.ErrPermanent) {
		t.Errorf("error is %v", results[3].Err)
	}
	if n := streamLen(t, c, prefix+"s"); n != 2 {
		t.Errorf("the stream has %d entries, want 2", n)
	}
}

// What the server as a whole refuses says nothing about the message.
func TestPublishBatchOnSickServer(t *testing.T) {
	noLeaks(t)
	server := startRedis(t)
	c := server.client()
	ctx := context.Background()
	p := newPublisher(t, PublisherConfig{Client: c})
	do := func(args ...any) {
		t.Helper()
		if err := c.Do(ctx, args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		reply     string
		sick, fit []any
	}{
		{"OOM", []any{"config", "set", "maxmemory", "1"}, []any{"config", "set", "maxmemory", "0"}},
		{"READONLY", []any{"replicaof", "127.0.0.1", "1"}, []any{"replicaof", "no", "one"}},
		{"NOREPLICAS", []any{"config", "set", "min-replicas-to-write", "1"}, []any{"config", "set", "min-replicas-to-write", "0"}},
	} {
		do(tt.sick...)
		results := publishBatch(p, ctx, outboxMessages("s", "k", 3))
		var refused *RefusedError
		if err := results[0].Err; statuses(results) != "P--" || !errors.Is(err, outbox.ErrUnavailable) ||
			!errors.As(err, &refused) || !strings.HasPrefix(refused.Reply, tt.reply) {
			t.Errorf("%s: results are %s, error %v", tt.reply, statuses(results), err)
		}
		do(tt.fit...)
	}
	if n := streamLen(t, c, "s"); n != 0 {
		t.Fatalf("the stream has %d entries, want none", n)
	}

	do("script", "flush")
	if got := statuses(publishBatch(p, ctx, slices.Concat(outboxMessages("s", "k", 2), outboxMessages("t", "k", 2)))); got != "DDDD" {
		t.Errorf("after the scripts were flushed: results are %s", got)
	}

	do("acl", "setuser", "noxadd", "on", ">secret", "~*", "+@all", "-xadd")
	do("acl", "setuser", "nokey", "on", ">secret", "~other*", "+@all")
	do("acl", "setuser", "noeval", "on", ">secret", "~*", "+@all", "-eval", "-evalsha")
	for user, want := range map[string]error{"noxadd": outbox.ErrPermanent, "nokey": outbox.ErrPermanent,
		"noeval": outbox.ErrPermanent, "nobody": outbox.ErrUnavailable} {
		c := redis.NewClient(&redis.Options{Addr: server.addr(), Username: user, Password: "secret"})
		defer c.Close()
		results := publishBatch(newPublisher(t, PublisherConfig{Client: c}), ctx, outboxMessages("s", "k", 2))
		if err := results[0].Err; !errors.Is(err, want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("user %s: results are %s, error %v", user, statuses(results), err)
		}
	}
	if n := streamLen(t, c, "s"); n != 2 {
		t.Errorf("the stream has %d entries, want 2", n)
	}
}

func TestPublishBatchConnectionRefused(t *testing.T) {
	noLeaks(t)
	server := startRedis(t)
	c := redis.NewClient(&redis.Options{Addr: server.addr(), DialerRetries: 1})
	defer c.Close()
	server.kill()
	p := newPublisher(t, PublisherConfig{Client: c})
	results := publishBatch(p, context.Background(), outboxMessages("s", "k", 2))
	var call *CallError
	if err := results[0].Err; statuses(results) != "PP" || !errors.Is(err, outbox.ErrUnavailable) || !errors.As(err, &call) || call.Sent {
		t.Errorf("results are %s, error %v", statuses(results), err)
	}
}

// A call whose answer is lost has happened once: go-redis, whose retries are on
// by default, must not send it again.
func TestPublishBatchLostReplyIsUnknown(t *testing.T) {
	noLeaks(t)
	direct, prefix := testkit.Redis(t), testkit.Prefix(t)
	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.RedisServer))
	c := testkit.RedisAt(t, proxy.URL(), func(o *redis.Options) { o.MaxRetries = 3 })
	p := newPublisher(t, PublisherConfig{Client: c})
	p.limits.chunkMessages = 3
	if got := statuses(publishBatch(p, context.Background(), outboxMessages(prefix+"warm", "k", 1))); got != "D" {
		t.Fatal("results are " + got)
	}
	proxy.OnClientBytes(func(b []byte) testkit.Action {
		if strings.Contains(string(b), "evalsha") {
			return testkit.LoseReply
		}
		return testkit.Forward
	})
	results := publishBatch(p, context.Background(), outboxMessages(prefix+"s", "k", 5))
	var call *CallError
	if err := results[0].Err; statuses(results) != "UUU--" || !errors.As(err, &call) || !call.Sent || !errors.Is(err, outbox.ErrUnavailable) {
		t.Errorf("results are %s, error %v", statuses(results), err)
	}
	if n := streamLen(t, direct, prefix+"s"); n != 3 {
		t.Errorf("the stream has %d entries, want 3", n)
	}
	if topics := outboxMessages(prefix+"t", "k", 1); true { // pipelined
		results = publishBatch(p, context.Background(), slices.Concat(topics, outboxMessages(prefix+"u", "k", 1)))
		if statuses(results) != "UU" {
			t.Errorf("results are %s, error %v", statuses(results), results[0].Err)
		}
		if n := streamLen(t, direct, prefix+"t"); n != 1 {
			t.Errorf("the stream has %d entries, want 1", n)
		}
	}
}

func TestPublishBatchHonoursDeadlineOnStall(t *testing.T) {
	noLeaks(t)
	prefix := testkit.Prefix(t)
	for _, heedsContext := range []bool{false, true} {
		proxy := testkit.NewProxy(t, testkit.URL(t, testkit.RedisServer))
		c := testkit.RedisAt(t, proxy.URL(), func(o *redis.Options) {
			o.ContextTimeoutEnabled, o.ReadTimeout = heedsContext, time.Second
		})
		p := newPublisher(t, PublisherConfig{Client: c})
		proxy.Stall()
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		started := time.Now()
		results := publishBatch(p, ctx, outboxMessages(prefix+"s", "k", 2))
		if took := time.Since(started); took > 800*time.Millisecond {
			t.Errorf("ContextTimeoutEnabled %v: returned after %s, want 200ms", heedsContext, took)
		}
		if statuses(results) != "UU" || !errors.Is(results[0].Err, outbox.ErrUnavailable) {
			t.Errorf("ContextTimeoutEnabled %v: results are %s, error %v", heedsContext, statuses(results), results[0].Err)
		}
		cancel()
		if results = publishBatch(p, ctx, outboxMessages(prefix+"s", "k", 2)); statuses(results) != "--" || results[1].Err == nil {
			t.Errorf("after the deadline: results are %s, error %v", statuses(results), results[1].Err)
		}

		ctx, cancel = context.WithCancel(context.Background())
		time.AfterFunc(50*time.Millisecond, cancel)
		started = time.Now()
		results = publishBatch(p, ctx, outboxMessages(prefix+"s", "k", 2))
		if took := time.Since(started); took > 800*time.Millisecond || errors.Is(results[0].Err, outbox.ErrUnavailable) ||
			!errors.Is(results[0].Err, context.Canceled) {
			t.Errorf("cancelled: returned after %s, error %v", took, results[0].Err)
		}
		proxy.Resume()
	}
}

// What had no connection when the deadline passed is not sent later, behind
// the back of a caller who has sent it again meanwhile.
func TestPublishBatchSendsNothingAfterDeadline(t *testing.T) {
	noLeaks(t)
	direct, prefix := testkit.Redis(t), testkit.Prefix(t)
	c := testkit.Redis(t, func(o *redis.Options) { o.PoolSize = 1 })
	busy := make(chan struct{})
	go func() {
		defer close(busy)
		c.BLPop(context.Background(), 0, prefix+"list")
	}()
	testkit.Eventually(t, patience, func() bool { return c.PoolStats().IdleConns == 0 }, "the only connection is taken")

	p := newPublisher(t, PublisherConfig{Client: c})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	results := publishBatch(p, ctx, outboxMessages(prefix+"s", "k", 2))
	if statuses(results) != "PP" || !errors.Is(results[0].Err, outbox.ErrUnavailable) {
		t.Errorf("results are %s, error %v", statuses(results), results[0].Err)
	}
	if err := direct.RPush(context.Background(), prefix+"list", "x").Err(); err != nil {
		t.Fatal(err)
	}
	<-busy
	if err := p.Close(); err != nil { // waits for what go-redis still held
		t.Fatal(err)
	}
	if n := streamLen(t, direct, prefix+"s"); n != 0 {
		t.Errorf("the stream has %d entries, want none", n)
	}

	// Even if go-redis gets as far as to write it.
	f := &frame{buf: &[]byte{1, 2, 3}}
	if f.giveUp() {
		t.Error("a waiting frame is said to have been sent")
	}
	if _, err := (&piece{f, 0, 3}).MarshalBinary(); err == nil {
		t.Error("a frame that was given up is written all the same")
	}
}

func TestPublish(t *testing.T) {
	noLeaks(t)
	c, prefix := testkit.Redis(t), testkit.Prefix(t)
	p, err := NewPublisher(PublisherConfig{Client: c, MaxMessageBytes: 100})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(prefix+"s", message.NewMessage("1", []byte("a")), message.NewMessage("2", nil)); err != nil {
		t.Fatal(err)
	}
	err = p.Publish(prefix+"s", message.NewMessage("3", nil), message.NewMessage("4", make([]byte, 101)), message.NewMessage("5", nil))
	var pe *PublishError
	if !errors.As(err, &pe) || !errors.Is(err, outbox.ErrPermanent) || len(pe.Outcomes) != 3 ||
		pe.Outcomes[0] != (Outcome{"3", outbox.Done, nil}) || pe.Outcomes[1].Status != outbox.Permanent ||
		pe.Outcomes[2] != (Outcome{"5", outbox.NotAttempted, nil}) {
		t.Errorf("error is %v", err)
	}
	if n := streamLen(t, c, prefix+"s"); n != 3 {
		t.Errorf("the stream has %d entries, want 3", n)
	}
	for name, msgs := range map[string][]*message.Message{"nil": {nil}, "no topic": {message.NewMessage("6", nil)}} {
		if err := p.Publish("", msgs...); !errors.Is(err, outbox.ErrPermanent) {
			t.Errorf("%s: error is %v", name, err)
		}
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
	if err := p.Publish(prefix+"s", message.NewMessage("7", nil)); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: error is %v", err)
	}
	if results := publishBatch(p, context.Background(), outboxMessages(prefix+"s", "k", 2)); statuses(results) != "--" || !errors.Is(results[0].Err, ErrClosed) {
		t.Errorf("after Close: results are %s, error %v", statuses(results), results[0].Err)
	}
	if err := c.Ping(context.Background()).Err(); err != nil {
		t.Errorf("the caller's client was closed: %v", err)
	}
}

func TestConfigFaults(t *testing.T) {
	untimed := redis.NewClient(&redis.Options{ReadTimeout: -1, WriteTimeout: -2})
	defer untimed.Close()
	ring := redis.NewRing(&redis.RingOptions{})
	defer ring.Close()
	replicas := redis.NewClusterClient(&redis.ClusterOptions{ReadOnly: true})
	defer replicas.Close()
	_, all := NewSubscriber(SubscriberConfig{Client: untimed, Start: 7, MinIdle: time.Millisecond, ClaimInterval: -1,
		NackDelay: -1, MaxNackDelay: -2, CloseTimeout: -1})
	_, publisher := NewPublisher(PublisherConfig{Timeout: -1, MaxMessageBytes: 1 << 30})
	_, ringErr := NewPublisher(PublisherConfig{Client: ring})
	_, replicaErr := NewPublisher(PublisherConfig{Client: replicas})
	_, typedNil := NewPublisher(PublisherConfig{Client: (*redis.Client)(nil)})
	for _, tt := range []struct {
		err  error
		want []string
	}{
		{all, []string{"ReadTimeout", "WriteTimeout", "Group", "Start", "MinIdle", "ClaimInterval", "NackDelay", "MaxNackDelay", "CloseTimeout"}},
		{publisher, []string{"PublisherConfig.Client is nil", "Timeout", "MaxMessageBytes"}},
		{ringErr, []string{"Ring"}},
		{replicaErr, []string{"ReadOnly"}},
		{typedNil, []string{"nil *redis.Client"}},
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
