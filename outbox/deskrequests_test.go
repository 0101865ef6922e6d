package outbox

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit"
)

func TestWaitForARequest(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.known("test", "relay")
	d, ctx := f.desk(), t.Context()
	id, err := d.Pause(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ended := func(parts ...string) {
		t.Helper()
		soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		_, err := d.Wait(soon, id)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		for _, part := range append(parts, `wait for request`, `to "test"`) {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q is not in %v", part, err)
			}
		}
	}
	ended("nobody holds the lease of that name: is it running?")
	lease := func(expires string) {
		f.exec(`INSERT INTO `+f.table("relay_lease")+` AS l VALUES ('test', 0, 255, '11111111-1111-1111-1111-111111111111', clock_timestamp() + $1::interval)
			ON CONFLICT (relay, slot_from, slot_to) DO UPDATE SET expires = excluded.expires`, expires)
	}
	lease("-1 second")
	ended("nobody holds the lease of that name: is it running?")
	lease("1 hour")
	ended("11111111-1111-1111-1111-111111111111 until ", "has not come to it yet")

	waited := make(chan Request, 1)
	go func() {
		r, err := d.Wait(ctx, id)
		if err != nil {
			t.Error(err)
		}
		waited <- r
	}()
	f.exec(`UPDATE `+f.table("relay_request")+` SET done_at = clock_timestamp(), outcome = 'paused' WHERE id = $1`, int64(id))
	if r := <-waited; r.ID != id || r.Outcome != "paused" || r.DoneAt.Before(r.At) {
		t.Errorf("got %+v", r)
	}
}

func TestRecordOfRequests(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.known("test", "relay")
	f.known("other", "relay")
	ctx := t.Context()
	for range 5 {
		for _, name := range []string{"test", "other"} {
			d, err := NewDesk(f.as(testkit.Admin), name, DeskConfig{Schema: f.schema})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.Pause(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	d := f.desk()
	var all []Request
	for after := RequestID(0); ; after = all[len(all)-1].ID {
		page, err := d.Requests(ctx, after, 2)
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, page...); len(page) < 2 {
			break
		}
	}
	if len(all) != 5 {
		t.Errorf("%d requests: %+v", len(all), all)
	}
	_, limit := d.Requests(ctx, 0, 0)
	if !errors.Is(limit, ErrInvalidRequest) || !strings.Contains(limit.Error(), `list the requests to "test": invalid request: limit is 0`) {
		t.Errorf("a limit of 0: %v", limit)
	}
	others := all[0].ID + 1
	for _, id := range []RequestID{others, 1 << 60, 0, -1} {
		if _, err := d.Wait(ctx, id); !errors.Is(err, ErrUnknownRequest) {
			t.Errorf("wait for request %d: %v", id, err)
		}
	}
	if stranger, err := NewDesk(f.as(testkit.Admin), "nobody", DeskConfig{Schema: f.schema}); err != nil {
		t.Error(err)
	} else if none, err := stranger.Requests(ctx, 0, 10); err != nil || len(none) != 0 {
		t.Errorf("of a stranger: %v, %v", none, err)
	}
}
