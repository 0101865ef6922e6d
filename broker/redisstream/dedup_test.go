package redisstream

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func newDedup(t *testing.T, cfg DedupConfig) *Dedup {
	t.Helper()
	d, err := NewDedup(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// claims asks for a claim and fails the test if it does not end as wanted.
func claims(t *testing.T, d *Dedup, handler string, event uuid.UUID, want handlers.ClaimState) (token string) {
	t.Helper()
	state, token, err := d.Claim(context.Background(), handler, event)
	if err != nil || state != want {
		t.Fatalf("claim is %d, error %v; want %d", state, err, want)
	}
	if (token != "") != (want == handlers.ClaimFresh) {
		t.Fatalf("claim %d has token %q", state, token)
	}
	return token
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDedupClaimsCompletesReleases(t *testing.T) {
	noLeaks(t)
	ctx, c, prefix := context.Background(), testkit.Redis(t), testkit.Prefix(t)
	d := newDedup(t, DedupConfig{Client: c, Prefix: prefix})
	event := uuid.New()
	lasts := func(least, most time.Duration) {
		t.Helper()
		if left := c.PTTL(ctx, d.key("h", event)).Val(); left < least || left > most {
			t.Errorf("the key lasts %s, want %s to %s", left, least, most)
		}
	}

	first := claims(t, d, "h", event, handlers.ClaimFresh)
	lasts(40*time.Second, 45*time.Second)
	claims(t, d, "h", event, handlers.ClaimBusy)
	must(t, d.Release(ctx, "h", event, "somebody else's"))
	must(t, d.Release(ctx, "h", event, ""))
	if err := d.Complete(ctx, "h", event, "somebody else's"); !errors.Is(err, handlers.ErrClaimLost) {
		t.Errorf("completing another's claim: %v", err)
	}
	claims(t, d, "h", event, handlers.ClaimBusy)

	must(t, d.Release(ctx, "h", event, first)) // the first try has failed
	second := claims(t, d, "h", event, handlers.ClaimFresh)
	if err := d.Complete(ctx, "h", event, first); !errors.Is(err, handlers.ErrClaimLost) || !strings.Contains(err.Error(), "ClaimTTL") {
		t.Errorf("completing with a token that was given up: %v", err)
	}
	must(t, d.Release(ctx, "h", event, first))
	must(t, d.Complete(ctx, "h", event, second))
	lasts(86_390*time.Second, 86_400*time.Second)
	claims(t, d, "h", event, handlers.ClaimDone)
	must(t, d.Complete(ctx, "h", event, second)) // its answer was lost
	must(t, d.Release(ctx, "h", event, second))
	must(t, d.Release(ctx, "h", event, done))
	claims(t, d, "h", event, handlers.ClaimDone)

	// another handler, another event
	claims(t, d, "h2", event, handlers.ClaimFresh)
	claims(t, d, "h", uuid.New(), handlers.ClaimFresh)
}

// The claim of one who died or dawdles runs out; what becomes of his success
// depends on who has the event by then.
func TestDedupClaimRunsOut(t *testing.T) {
	noLeaks(t)
	ctx, c, prefix := context.Background(), testkit.Redis(t), testkit.Prefix(t)
	d := newDedup(t, DedupConfig{Client: c, Prefix: prefix, ClaimTTL: minMinIdle})
	patient := newDedup(t, DedupConfig{Client: c, Prefix: prefix})
	for name, after := range map[string]func(event uuid.UUID, late, heir string){
		"the heir is at it": func(event uuid.UUID, late, heir string) {
			if err := d.Complete(ctx, "h", event, late); !errors.Is(err, handlers.ErrClaimLost) {
				t.Errorf("complete: %v", err)
			}
			must(t, d.Release(ctx, "h", event, late))
			claims(t, d, "h", event, handlers.ClaimBusy)
		},
		"the heir has failed": func(event uuid.UUID, late, heir string) {
			must(t, d.Release(ctx, "h", event, heir))
			must(t, d.Complete(ctx, "h", event, late))
			claims(t, d, "h", event, handlers.ClaimDone)
		},
		"the heir has succeeded": func(event uuid.UUID, late, heir string) {
			must(t, d.Complete(ctx, "h", event, heir))
			must(t, d.Complete(ctx, "h", event, late))
			claims(t, d, "h", event, handlers.ClaimDone)
		},
	} {
		t.Run(name, func(t *testing.T) {
			event := uuid.New()
			late := claims(t, d, "h", event, handlers.ClaimFresh)
			var heir string
			testkit.Eventually(t, patience, func() bool {
				state, token, err := patient.Claim(ctx, "h", event)
				heir = token
				return err == nil && state == handlers.ClaimFresh
			}, "the claim runs out")
			after(event, late, heir)
		})
	}
	t.Run("a success is forgotten after its TTL", func(t *testing.T) {
		d := newDedup(t, DedupConfig{Client: c, Prefix: prefix, ClaimTTL: minMinIdle, TTL: 2 * minMinIdle})
		event := uuid.New()
		must(t, d.Complete(ctx, "h", event, claims(t, d, "h", event, handlers.ClaimFresh)))
		claims(t, d, "h", event, handlers.ClaimDone)
		testkit.Eventually(t, patience, func() bool {
			state, _, err := d.Claim(ctx, "h", event)
			return err == nil && state == handlers.ClaimFresh
		}, "it is forgotten")
	})
}

func TestDedupOneOfManyClaims(t *testing.T) {
	noLeaks(t)
	c, prefix := testkit.Redis(t), testkit.Prefix(t)
	for range 20 {
		event := uuid.New()
		var fresh, busy atomic.Int32
		var all sync.WaitGroup
		for range 8 {
			d := newDedup(t, DedupConfig{Client: c, Prefix: prefix})
			all.Go(func() {
				switch state, _, err := d.Claim(context.Background(), "h", event); {
				case err != nil:
					t.Error(err)
				case state == handlers.ClaimFresh:
					fresh.Add(1)
				case state == handlers.ClaimBusy:
					busy.Add(1)
				}
			})
		}
		all.Wait()
		if fresh.Load() != 1 || busy.Load() != 7 {
			t.Fatalf("%d fresh, %d busy; want 1 and 7", fresh.Load(), busy.Load())
		}
	}
}

func TestDedupKeysAreDistinct(t *testing.T) {
	d := newDedup(t, DedupConfig{Client: redis.NewClient(&redis.Options{})})
	defer d.cfg.Client.Close()
	ids := []uuid.UUID{uuid.Nil, uuid.MustParse("11111111-1111-1111-1111-111111111111"), uuid.New()}
	names := []string{"h", "hh", "", ":", "1:h", "h:" + ids[0].String(), "h:" + ids[1].String(), "2:hh:" + ids[1].String(), "ü", "a{b}"}
	of := make(map[string]string)
	for _, name := range names {
		for _, id := range ids {
			pair, key := name+" and "+id.String(), d.key(name, id)
			if other, taken := of[key]; taken {
				t.Errorf("%s has the key of %s: %s", pair, other, key)
			}
			of[key] = pair
		}
	}
	if got, want := d.key("h", ids[1]), "postbus:dedup:1:h:11111111-1111-1111-1111-111111111111"; got != want {
		t.Errorf("the key is %q, want %q: a new form forgets what is stored under the old one", got, want)
	}
}

// go-redis sends again what got no answer: the second finds what the first has
// done, and is no stranger to it.
func TestDedupSurvivesLostReplies(t *testing.T) {
	noLeaks(t)
	prefix := testkit.Prefix(t)
	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.RedisServer))
	c := testkit.RedisAt(t, proxy.URL())
	d := newDedup(t, DedupConfig{Client: c, Prefix: prefix})
	var losses atomic.Int32
	loseNext := func(command string) {
		var lost atomic.Bool
		proxy.OnClientBytes(func(b []byte) testkit.Action {
			if strings.Contains(string(b), command) && strings.Contains(string(b), prefix) && lost.CompareAndSwap(false, true) {
				losses.Add(1)
				return testkit.LoseReply
			}
			return testkit.Forward
		})
	}
	ctx, failed, event := context.Background(), uuid.New(), uuid.New()
	// the scripts are known to the server before a reply of theirs is lost
	must(t, d.Release(ctx, "h", failed, claims(t, d, "h", failed, handlers.ClaimFresh)))
	must(t, d.Complete(ctx, "h2", failed, claims(t, d, "h2", failed, handlers.ClaimFresh)))

	loseNext("set")
	token := claims(t, d, "h", failed, handlers.ClaimFresh)
	loseNext("evalsha")
	must(t, d.Release(ctx, "h", failed, token))
	claims(t, d, "h", failed, handlers.ClaimFresh)

	token = claims(t, d, "h", event, handlers.ClaimFresh)
	loseNext("evalsha")
	must(t, d.Complete(ctx, "h", event, token))
	claims(t, d, "h", event, handlers.ClaimDone)
	if losses.Load() != 3 {
		t.Errorf("%d replies were lost, want 3: the test tests nothing", losses.Load())
	}
}

func TestDedupHonoursDeadlines(t *testing.T) {
	noLeaks(t)
	prefix := testkit.Prefix(t)
	for _, heedsContext := range []bool{false, true} {
		proxy := testkit.NewProxy(t, testkit.URL(t, testkit.RedisServer))
		c := testkit.RedisAt(t, proxy.URL(), func(o *redis.Options) {
			o.ContextTimeoutEnabled, o.ReadTimeout, o.MaxRetries = heedsContext, time.Second, -1
		})
		d := newDedup(t, DedupConfig{Client: c, Prefix: prefix, Timeout: 100 * time.Millisecond})
		proxy.Stall()
		for name, call := range map[string]func(ctx context.Context) error{
			"claim":    func(ctx context.Context) error { _, _, err := d.Claim(ctx, "h", uuid.New()); return err },
			"complete": func(ctx context.Context) error { return d.Complete(ctx, "h", uuid.New(), "token") },
			"release":  func(ctx context.Context) error { return d.Release(ctx, "h", uuid.New(), "token") },
		} {
			started := time.Now()
			err := call(context.Background())
			var command *CommandError
			if took := time.Since(started); took > 800*time.Millisecond || !errors.Is(err, outbox.ErrUnavailable) ||
				!errors.As(err, &command) || !strings.HasPrefix(command.Doing, name+" event ") {
				t.Errorf("%s, ContextTimeoutEnabled %v: after %s, error %v", name, heedsContext, took, err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if err := call(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, outbox.ErrUnavailable) {
				t.Errorf("%s, cancelled: error %v", name, err)
			}
		}
		proxy.Resume()
	}
}

func TestDedupOnSickServer(t *testing.T) {
	noLeaks(t)
	server := startRedis(t)
	ctx, c := context.Background(), redis.NewClient(&redis.Options{Addr: server.addr(), MaxRetries: -1, DialerRetries: 1})
	defer c.Close()
	d := newDedup(t, DedupConfig{Client: c})
	do := func(args ...any) {
		t.Helper()
		must(t, c.Do(ctx, args...).Err())
	}
	event := uuid.New()
	token := claims(t, d, "h", event, handlers.ClaimFresh)
	for _, tt := range []struct {
		reply     string
		sick, fit []any
	}{
		{"OOM", []any{"config", "set", "maxmemory", "1"}, []any{"config", "set", "maxmemory", "0"}},
		{"READONLY", []any{"replicaof", "127.0.0.1", "1"}, []any{"replicaof", "no", "one"}},
		{"NOREPLICAS", []any{"config", "set", "min-replicas-to-write", "1"}, []any{"config", "set", "min-replicas-to-write", "0"}},
	} {
		do(tt.sick...)
		_, _, err := d.Claim(ctx, "h", uuid.New())
		for verb, err := range map[string]error{"claim": err, "complete": d.Complete(ctx, "h", event, token)} {
			if !errors.Is(err, outbox.ErrUnavailable) || !strings.Contains(err.Error(), verb) || !strings.Contains(err.Error(), tt.reply) {
				t.Errorf("%s, %s: error %v", tt.reply, verb, err)
			}
		}
		do(tt.fit...)
	}
	do("script", "flush")
	must(t, d.Complete(ctx, "h", event, token))
	claims(t, d, "h", event, handlers.ClaimDone)

	taken := uuid.New()
	do("rpush", d.key("h", taken), "of somebody else")
	_, _, err := d.Claim(ctx, "h", taken)
	do("acl", "setuser", "other", "on", ">secret", "~other*", "+@all")
	stranger := redis.NewClient(&redis.Options{Addr: server.addr(), Username: "other", Password: "secret"})
	defer stranger.Close()
	_, _, noRights := newDedup(t, DedupConfig{Client: stranger}).Claim(ctx, "h", event)
	for want, err := range map[string]error{"DedupConfig.Prefix": err, "ACL": noRights, "WRONGTYPE": d.Complete(ctx, "h", taken, "token")} {
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, outbox.ErrUnavailable) {
			t.Errorf("error %v does not mention %s, or is about the server", err, want)
		}
	}

	server.kill()
	if _, _, err := d.Claim(ctx, "h", event); !errors.Is(err, outbox.ErrUnavailable) {
		t.Errorf("no server: error %v", err)
	}
}

func TestDedupConfigFaults(t *testing.T) {
	c := redis.NewClient(&redis.Options{})
	defer c.Close()
	_, all := NewDedup(DedupConfig{TTL: -1, ClaimTTL: time.Millisecond, Timeout: -1})
	_, short := NewDedup(DedupConfig{Client: c, TTL: time.Minute, ClaimTTL: time.Minute})
	for _, tt := range []struct {
		err  error
		want []string
	}{
		{all, []string{"DedupConfig.Client is nil", "DedupConfig.TTL", "DedupConfig.ClaimTTL", "DedupConfig.Timeout"}},
		{short, []string{"DedupConfig.TTL is 1m0s"}},
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

// The whole of it: consumers in two processes, every event in the stream three
// times, first tries that fail, and one that died with a claim in hand.
func TestDedupUnderConsumers(t *testing.T) {
	noLeaks(t)
	c, prefix := testkit.Redis(t), testkit.Prefix(t)
	stream := prefix + "s"
	const n = 12
	var ids []string
	p := newPublisher(t, PublisherConfig{Client: c})
	for i := range n {
		ids = append(ids, uuid.NewString())
		for range 3 {
			must(t, p.Publish(stream, message.NewMessage(ids[i], nil)))
		}
	}
	d := newDedup(t, DedupConfig{Client: c, Prefix: prefix, ClaimTTL: 500 * time.Millisecond})
	claims(t, d, "mail", uuid.MustParse(ids[4]), handlers.ClaimFresh) // of one who died

	var mu sync.Mutex
	running, tried, handled := make(map[string]int), make(map[string]int), make(map[string]int)
	handle := func(m *message.Message) error {
		mu.Lock()
		defer mu.Unlock()
		if running[m.UUID]++; running[m.UUID] > 1 {
			t.Errorf("event %s is handled by two at once", m.UUID)
		}
		mu.Unlock()
		runtime.Gosched() // somebody else's turn
		mu.Lock()
		running[m.UUID]--
		if tried[m.UUID]++; tried[m.UUID] == 1 && slices.Index(ids, m.UUID)%3 == 0 {
			return errors.New("the first try fails")
		}
		handled[m.UUID]++
		return nil
	}
	for i := range 2 {
		router, err := message.NewRouter(message.RouterConfig{CloseTimeout: patience}, watermill.NopLogger{})
		must(t, err)
		s := newSubscriber(t, SubscriberConfig{Client: c, Consumer: strconv.Itoa(i), NackDelay: time.Millisecond, MaxNackDelay: 20 * time.Millisecond})
		router.AddConsumerHandler("mail", stream, s, handle).AddMiddleware(handlers.DedupBy(d))
		ran := make(chan error, 1)
		go func() { ran <- router.Run(context.Background()) }()
		<-router.Running()
		defer func() {
			if err := errors.Join(router.Close(), <-ran); err != nil {
				t.Error(err)
			}
		}()
	}
	testkit.Eventually(t, patience, func() bool {
		groups := c.XInfoGroups(context.Background(), stream).Val()
		return len(groups) == 1 && groups[0].Lag == 0 && groups[0].Pending == 0
	}, "all is acknowledged")
	mu.Lock()
	defer mu.Unlock()
	for i, id := range ids {
		want := 1
		if i%3 == 0 {
			want = 2
		}
		if handled[id] != 1 || tried[id] != want {
			t.Errorf("event %d was handled %d times in %d tries, want once in %d", i, handled[id], tried[id], want)
		}
		claims(t, d, "mail", uuid.MustParse(id), handlers.ClaimDone)
	}
}
