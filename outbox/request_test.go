package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
)

func TestRequestsForWhatIsNotParkedAreRefused(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s, c := newSink(), calls{}
	s.setRule(c.refuse("bad", 1, Result{Permanent, errRefused}))
	f.backlog(2, "bad")
	f.start(s, f.config())
	eventually(t, func() bool { return len(f.parkedStates("bad")) == 2 }, "parked")
	first, second := f.parkedID("bad", 1), f.parkedID("bad", 2)
	ctx, d := t.Context(), f.desk()
	for name, err := range map[string]error{
		"replay of one that waits": d.Replay(ctx, first, second),
		"replay of a stranger":     d.Replay(ctx, first, second+1000),
		"discard of a stranger":    d.Discard(ctx, first, second+1000),
	} {
		named := fmt.Sprint(second)
		if strings.Contains(name, "stranger") {
			named = fmt.Sprint(second + 1000)
		}
		if !errors.Is(err, ErrNotParked) || !strings.Contains(err.Error(), "["+named+"]") {
			t.Errorf("%s: %v, want ErrNotParked that names [%s]", name, err, named)
		}
	}
	if _, err := d.Get(ctx, second+1000); !errors.Is(err, ErrNotParked) {
		t.Errorf("get of a stranger: %v", err)
	}
	if _, err := d.Parked(ctx, ParkedFilter{}, 0, 0); !errors.Is(err, ErrInvalidRequest) {
		t.Errorf("list of nothing: %v", err)
	}
	if n := f.count(`SELECT count(*) FROM ` + f.table("relay_request")); n != 0 {
		t.Errorf("%d requests were noted", n)
	}
	if err := d.Discard(ctx, second); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { e, err := d.Get(ctx, second); return err == nil && e.State == ParkedDiscarded }, "discarded")
	if err := d.Discard(ctx, second); !errors.Is(err, ErrNotParked) {
		t.Errorf("discarded twice: %v", err)
	}
	if err := errors.Join(d.Replay(ctx), d.Discard(ctx)); err != nil {
		t.Errorf("asked for nothing: %v", err)
	}
}

// Two requests for one event, read in one go: the second finds what the first has left.
func TestRequestsForOneEventAreCarriedOutInTurn(t *testing.T) {
	t.Parallel()
	for _, policy := range []Policy{BlockKey, SkipKey} {
		t.Run(fmt.Sprint("policy ", policy), func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			s, c := newSink(), calls{}
			s.setRule(c.refuse("bad", 1, Result{Permanent, errRefused}))
			cfg := f.config()
			cfg.Policy = policy
			f.backlog(1, "bad")
			stop := f.start(s, cfg)
			eventually(t, func() bool { return len(f.parkedStates("bad")) == 1 }, "parked")
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			id := f.parkedID("bad", 1)
			for _, action := range []string{"replay", "replay", "discard", "replay", "discard"} {
				f.exec(`INSERT INTO `+f.table("relay_request")+` (relay, log_id, action) VALUES ('test', $1, $2)`, id, action)
			}
			s.setRule(nil)
			f.start(s, cfg)
			eventually(t, func() bool {
				return f.count(`SELECT count(*) FROM `+f.table("relay_request")+` WHERE done_at IS NULL`) == 0
			}, "carried out")
			rows, err := f.pool.Query(t.Context(), `SELECT outcome FROM `+f.table("relay_request")+` ORDER BY id`)
			if err != nil {
				t.Fatal(err)
			}
			outcomes, err := pgx.CollectRows(rows, pgx.RowTo[string])
			want := "replayed|still being tried: nothing to do|discarded|already discarded: nothing to do|already discarded: nothing to do"
			if got := strings.Join(outcomes, "|"); err != nil || got != want {
				t.Errorf("outcomes %s, %v", got, err)
			}
			f.add("bad", 2, 1)
			eventually(t, func() bool { return len(s.of("bad")) == 1 }, "the key goes on")
			if got := s.of("bad"); got[0] != 2 {
				t.Errorf("delivered %v: the last word was to discard it", got)
			}
		})
	}
}

func TestParkedEventsAreListedByPages(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s, c := newSink(), calls{}
	s.setRule(c.refuse("bad", 1, Result{Permanent, errRefused}))
	f.backlog(25, "bad")
	f.start(s, f.config())
	eventually(t, func() bool { return len(f.parkedStates("bad")) == 25 }, "parked")
	var after int64
	var sizes []int
	for {
		page, err := f.desk().Parked(t.Context(), ParkedFilter{}, after, 10)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(page))
		for _, e := range page {
			if e.LogID <= after {
				t.Errorf("%d after %d", e.LogID, after)
			}
			after = e.LogID
		}
		if len(page) < 10 {
			break
		}
	}
	if fmt.Sprint(sizes) != "[10 10 5]" {
		t.Errorf("pages of %v", sizes)
	}
}

// A stream that never pauses must not keep a request waiting.
func TestReplayIsCarriedOutWhileTheStreamRuns(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s, c := newSink(), calls{}
	s.setRule(c.refuse("bad", 1, Result{Permanent, errRefused}))
	cfg := f.config()
	cfg.Window = 16
	f.backlog(3, "bad")
	f.start(s, cfg)
	eventually(t, func() bool { return len(f.parkedStates("bad")) == 3 }, "parked")

	// Writers of another process: nobody wakes the relay.
	theirs := testkit.Postgres(t, testkit.PG15, func(c *pgxpool.Config) { c.MaxConns = 6 })
	writing, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	defer func() { stop(); writers.Wait() }()
	for w := range 6 {
		writers.Go(func() {
			for i := 1; writing.Err() == nil; i++ {
				if err := pgx.BeginFunc(writing, theirs, func(tx pgx.Tx) error {
					return f.log.Append(writing, tx, event(fmt.Sprint("w", w), i))
				}); err != nil && writing.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	eventually(t, func() bool { return len(s.of("w0")) > 20 }, "the stream runs")
	s.setRule(nil)
	f.pool.Exec(t.Context(), `INSERT INTO `+f.table("relay_request")+` (relay, log_id, action) VALUES ('test', $1, 'replay')`, f.parkedID("bad", 1))
	asked := time.Now()
	eventually(t, func() bool { return len(s.of("bad")) == 3 }, "replayed")
	if took := time.Since(asked); took > 3*time.Second {
		t.Errorf("it took %s", took)
	}
	s.inOrder(t, "bad", 3)
}
