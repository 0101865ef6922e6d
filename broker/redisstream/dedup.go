package redisstream

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/outbox"
)

var _ handlers.DedupStore = (*Dedup)(nil)

// Dedup remembers in Redis which events a handler has handled, for
// handlers.WithDedup and handlers.DedupBy. Safe for use by several goroutines; it
// has nothing to close.
//
// An event in a handler is one key. It holds the token of a claim for ClaimTTL,
// and "done" for TTL from its completion on. All times are the server's.
//
// What it remembers is as safe as the Redis that holds it. A fail-over to a
// replica that was behind, or a restart without appendfsync always, forgets the
// last claims and completions: their events may be handled again, or by two at
// once. A maxmemory-policy other than noeviction forgets them whenever memory
// is short, those with a TTL first.
type Dedup struct {
	cfg DedupConfig // with the defaults filled in
}

// DedupConfig: only Client is required.
type DedupConfig struct {
	// Client is a go-redis v9 client; it stays the caller's to close. Its retries may
	// be on: nothing that is called here does more when it is called twice.
	Client redis.UniversalClient

	// Prefix begins all keys: prefix, length of the handler's name, ":", the name, ":",
	// event id. All consumers of a group need the same. Defaults to "postbus:dedup:".
	Prefix string

	// TTL is how long a handled event is remembered. It must exceed the longest time
	// after which an event may come again: an outage of the relay or of a consumer,
	// a rewind, a replay. An event that comes later is handled again. Each one takes
	// some 150 bytes of memory meanwhile. Defaults to 24 hours (86,400 s).
	TTL time.Duration

	// ClaimTTL is how long a claim lasts whose owner has died: its event is postponed
	// until then. Keep it above the longest time that a delivery may take
	// (handlers.RetryConfig.MaxElapsed, 30 s by default), since a handler that
	// outlasts its claim may run beside another; and below the time after which the
	// broker delivers again (SubscriberConfig.MinIdle, 60 s by default). At least
	// 100 ms. Defaults to 45 s.
	ClaimTTL time.Duration

	// Timeout bounds each call, together with its context, whether the client heeds
	// contexts or not. Defaults to 5 s.
	Timeout time.Duration
}

const (
	defaultPrefix   = "postbus:dedup:"
	defaultTTL      = 24 * time.Hour
	defaultClaimTTL = 45 * time.Second

	done = "done" // no token: those are hexadecimal
)

// NewDedup checks the configuration, connects to nothing, and starts no
// goroutine. The error wraps ErrInvalidConfig and names every fault.
func NewDedup(cfg DedupConfig) (*Dedup, error) {
	faults := clientFaults("DedupConfig", cfg.Client)
	if cfg.Prefix == "" {
		cfg.Prefix = defaultPrefix
	}
	orDefault(&cfg.TTL, defaultTTL)
	orDefault(&cfg.ClaimTTL, defaultClaimTTL)
	orDefault(&cfg.Timeout, answerTimeout)
	if cfg.ClaimTTL < minMinIdle {
		faults = append(faults, fmt.Errorf("DedupConfig.ClaimTTL is %s: give at least %s, and more than a delivery may take, or 0 for %s",
			cfg.ClaimTTL, minMinIdle, defaultClaimTTL))
	}
	if cfg.TTL <= cfg.ClaimTTL {
		faults = append(faults, fmt.Errorf("DedupConfig.TTL is %s, and a claim lasts %s: give more than the longest time after which an event may come again, or 0 for %s",
			cfg.TTL, cfg.ClaimTTL, defaultTTL))
	}
	if cfg.Timeout < 0 {
		faults = append(faults, fmt.Errorf("DedupConfig.Timeout is %s: give a positive duration, or 0 for %s", cfg.Timeout, answerTimeout))
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("redisstream.NewDedup: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	return &Dedup{cfg}, nil
}

// Claim implements handlers.DedupStore. Its errors are *[CommandError].
//
// The token is ours before the call, and SET answers what it has found: so
// go-redis may send the command again after a lost answer, and finds its own.
func (d *Dedup) Claim(ctx context.Context, handler string, event uuid.UUID) (handlers.ClaimState, string, error) {
	token := freshToken()
	found, err := within(ctx, d.cfg.Timeout, func(ctx context.Context) (string, error) {
		cmd := redis.NewStringCmd(ctx, "set", d.key(handler, event), token, "nx", "get", "px", d.cfg.ClaimTTL.Milliseconds())
		_ = d.cfg.Client.Process(ctx, cmd) // the error is the command's
		return cmd.Result()
	})
	switch {
	case errors.Is(err, redis.Nil): // there was nothing
		return handlers.ClaimFresh, token, nil
	case err != nil:
		return 0, "", d.failed("claim", handler, event, err)
	case found == token:
		return handlers.ClaimFresh, token, nil
	case found == done:
		return handlers.ClaimDone, "", nil
	}
	return handlers.ClaimBusy, "", nil
}

// completeScript records a success. The owner may do that, and so may one whose
// claim has run out while nobody else has claimed: the effects are there, and
// not to record them would only repeat them. While another one has the event,
// he decides; he may be in the middle of it. It answers 1, or 0 if another has it.
//
//	KEYS[1] the key; ARGV token, TTL in ms
var completeScript = redis.NewScript(`
local found = redis.call('GET', KEYS[1])
if found == 'done' then return 1 end
if found and found ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], 'done', 'PX', ARGV[2])
return 1
`)

// Complete implements handlers.DedupStore. Its errors are *[CommandError], or
// wrap handlers.ErrClaimLost.
func (d *Dedup) Complete(ctx context.Context, handler string, event uuid.UUID, token string) error {
	ours, err := within(ctx, d.cfg.Timeout, func(ctx context.Context) (int, error) {
		return completeScript.Run(ctx, d.cfg.Client, []string{d.key(handler, event)}, token, d.cfg.TTL.Milliseconds()).Int()
	})
	if err != nil {
		return d.failed("complete", handler, event, err)
	}
	if ours == 0 {
		return fmt.Errorf("complete event %s in handler %q: %w; raise DedupConfig.ClaimTTL, which is %s, above the longest time that a delivery may take",
			event, handler, handlers.ErrClaimLost, d.cfg.ClaimTTL)
	}
	return nil
}

// releaseScript gives up a claim, if it is still the token's; never a completion.
//
//	KEYS[1] the key; ARGV token
var releaseScript = redis.NewScript(`
if ARGV[1] ~= 'done' and redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
`)

// Release implements handlers.DedupStore. Its errors are *[CommandError].
func (d *Dedup) Release(ctx context.Context, handler string, event uuid.UUID, token string) error {
	_, err := within(ctx, d.cfg.Timeout, func(ctx context.Context) (int, error) {
		return releaseScript.Run(ctx, d.cfg.Client, []string{d.key(handler, event)}, token).Int()
	})
	if err != nil {
		return d.failed("release", handler, event, err)
	}
	return nil
}

// key: with the length before it, no name can pass for another name and a part
// of an id, whatever characters it has.
func (d *Dedup) key(handler string, event uuid.UUID) string {
	return d.cfg.Prefix + strconv.Itoa(len(handler)) + ":" + handler + ":" + event.String()
}

func (d *Dedup) failed(verb, handler string, event uuid.UUID, err error) error {
	return commandError(fmt.Sprintf("%s event %s in handler %q", verb, event, handler), err,
		"a key of that name holds something else: give DedupConfig.Prefix a name of its own",
		"allow this ACL user the keys that begin with DedupConfig.Prefix, and the commands SET, GET, DEL, EVAL and EVALSHA")
}

func freshToken() string {
	var unique [16]byte
	rand.Read(unique[:])
	return hex.EncodeToString(unique[:])
}

// within runs a call to Redis, and is back when its time is over: go-redis looks
// at a deadline only if its ContextTimeoutEnabled is on, and at a cancellation
// never while it waits for an answer. A call that was left behind ends at the
// client's own timeouts.
func within[T any](ctx context.Context, timeout time.Duration, call func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		value, err := call(ctx)
		answers <- answer{value, err}
	}()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-ctx.Done():
		select {
		case a := <-answers: // both: the answer is worth more
			return a.value, a.err
		default:
			var none T
			return none, ctx.Err()
		}
	}
}

// CommandError: a call of Dedup or Trim got no answer, or a refusal. Without an
// answer it may have been carried out all the same. It wraps
// outbox.ErrUnavailable when it is about the server as a whole (no connection,
// out of memory, read-only, loading).
type CommandError struct {
	Doing string // what was attempted, on what
	Err   error  // go-redis' own

	kind   error
	wayOut string // of a refusal; else ""
}

func (e *CommandError) Error() string {
	if e.wayOut == "" {
		return fmt.Sprintf("%s: no answer came: %v", e.Doing, e.Err)
	}
	return fmt.Sprintf("%s: Redis answers %q; %s", e.Doing, e.Err, e.wayOut)
}

// Unwrap gives outbox.ErrUnavailable, if it is that, and go-redis' error.
func (e *CommandError) Unwrap() []error {
	if e.kind == nil {
		return []error{e.Err}
	}
	return []error{e.kind, e.Err}
}

// commandError says what err is about; wrongType and noRights are the ways out
// of the two refusals that depend on what was attempted.
func commandError(doing string, err error, wrongType, noRights string) *CommandError {
	e := &CommandError{Doing: doing, Err: err}
	var refusal redis.Error
	if !errors.As(err, &refusal) {
		if !errors.Is(err, context.Canceled) {
			e.kind = outbox.ErrUnavailable
		}
		return e
	}
	v, _ := judge(refusal.Error())
	switch {
	case v.prefix == "WRONGTYPE":
		e.wayOut = wrongType
	case v.kind == outbox.ErrPermanent:
		e.wayOut = noRights
	default:
		e.kind, e.wayOut = v.kind, v.wayOut
	}
	return e
}
