package outbox

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit"
)

// putParked writes rows of the parked table as a relay would: one per state given,
// from log id first on.
func (f *fixture) putParked(name string, first int64, topic, eventType, key, lastError string, states ...ParkedState) {
	f.t.Helper()
	for i, state := range states {
		if _, err := f.pool.Exec(f.t.Context(), `INSERT INTO `+f.table("parked")+` (relay, log_id, slot, state, attempts, last_error, xid,
				schema_version, event_id, topic, event_type, partition_key, content_type, payload, parked_at)
			VALUES ($1, $2, 0, $3, 1, nullif($4, ''), pg_current_xact_id(), 1, gen_random_uuid(), $5, $6, $7, 'application/json', 'four', $8)`,
			name, first+int64(i), string(state), lastError, topic, eventType, key, parkedDay.Add(time.Duration(first)*time.Hour)); err != nil {
			f.t.Fatal(err)
		}
	}
}

var parkedDay = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// known writes the row that a first Run writes.
func (f *fixture) known(name, kind string) {
	f.t.Helper()
	f.exec(`INSERT INTO `+f.table("relay")+` (relay, kind) VALUES ($1, $2)`, name, kind)
}

// asked gives the record of a name, a line per request, in order.
func (f *fixture) asked(name string) string {
	f.t.Helper()
	d, err := NewDesk(f.as(testkit.Admin), name, DeskConfig{Schema: f.schema})
	if err != nil {
		f.t.Fatal(err)
	}
	all, err := d.Requests(f.t.Context(), 0, 10_000)
	if err != nil {
		f.t.Fatal(err)
	}
	lines := make([]string, len(all))
	for i, r := range all {
		lines[i] = r.Action
		if r.LogID != 0 {
			lines[i] += fmt.Sprint(" ", r.LogID)
		}
		if r.Rate != 0 {
			lines[i] += fmt.Sprint(" ", r.Rate)
		}
		if r.Types != nil {
			lines[i] += fmt.Sprint(" ", r.Types)
		}
	}
	return strings.Join(lines, ", ")
}

// parkOneOfEach fills the desk of relay "test", and puts a stranger's beside it.
func (f *fixture) parkOneOfEach() {
	f.putParked("test", 1, "order", "order.placed", "o-1", "HTTP 500: 50% of_it", ParkedGivenUp, ParkedWaiting)
	f.putParked("test", 3, "order", "order_line.added", "o-2", `a \ backslash`, ParkedRetrying, ParkedDiscarded)
	f.putParked("test", 5, "stock", "stock.moved", "o-1", "", ParkedWaiting)
	f.putParked("test", 6, "stock", "stock.moved", "s-1", "http 500: 50x of it", ParkedGivenUp)
	f.putParked("other", 1, "order", "order.placed", "o-1", "HTTP 500", ParkedGivenUp)
}

func TestFilterOfParkedEvents(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.parkOneOfEach()
	d := f.desk()
	for name, c := range map[string]struct {
		filter ParkedFilter
		want   string
	}{
		"nothing":             {ParkedFilter{}, "[1 2 3 4 5 6]"},
		"all":                 {ParkedFilter{All: true}, "[1 2 3 4 5 6]"},
		"a pattern":           {ParkedFilter{Types: []string{"order.*"}}, "[1 2]"},
		"an underscore":       {ParkedFilter{Types: []string{"order_line.*"}}, "[3 4]"},
		"two types":           {ParkedFilter{Types: []string{"order.placed", "stock.moved"}}, "[1 2 5 6]"},
		"every type":          {ParkedFilter{Types: []string{"*"}}, "[1 2 3 4 5 6]"},
		"a topic":             {ParkedFilter{Topic: "stock"}, "[5 6]"},
		"a key":               {ParkedFilter{Key: "o-1"}, "[1 2 5]"},
		"key and topic":       {ParkedFilter{Key: "o-1", Topic: "stock"}, "[5]"},
		"an error":            {ParkedFilter{Error: "http 500"}, "[1 2 6]"},
		"a per cent":          {ParkedFilter{Error: "50%"}, "[1 2]"},
		"a literal _":         {ParkedFilter{Error: "OF_it"}, "[1 2]"},
		"a backslash":         {ParkedFilter{Error: `\`}, "[3 4]"},
		"a quote":             {ParkedFilter{Error: `'; DROP`}, "[]"},
		"a state":             {ParkedFilter{States: []ParkedState{ParkedGivenUp}}, "[1 6]"},
		"two states":          {ParkedFilter{States: []ParkedState{ParkedGivenUp, ParkedDiscarded}}, "[1 4 6]"},
		"since":               {ParkedFilter{Since: parkedDay.Add(5 * time.Hour)}, "[5 6]"},
		"until":               {ParkedFilter{Until: parkedDay.Add(5 * time.Hour)}, "[1 2 3 4]"},
		"between":             {ParkedFilter{Since: parkedDay.Add(3 * time.Hour), Until: parkedDay.Add(5 * time.Hour)}, "[3 4]"},
		"everything together": {ParkedFilter{Types: []string{"stock.*"}, Topic: "stock", Key: "s-1", Error: "X OF", States: []ParkedState{ParkedGivenUp}, Since: parkedDay, Until: parkedDay.Add(24 * time.Hour)}, "[6]"},
	} {
		found, err := d.Parked(t.Context(), c.filter, 0, 100)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		ids := []int64{}
		for _, e := range found {
			ids = append(ids, e.LogID)
		}
		if got := fmt.Sprint(ids); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		m, err := d.Matching(t.Context(), c.filter)
		if err != nil || m.Events != len(ids) || m.Bytes != int64(4*len(ids)) || m.GivenUp+m.Retrying+m.Waiting+m.Discarded != m.Events {
			t.Errorf("%s: counted %+v, %v", name, m, err)
		}
	}
	page, err := d.Parked(t.Context(), ParkedFilter{Types: []string{"order.*", "stock.*"}}, 1, 2)
	if err != nil || len(page) != 2 || page[0].LogID != 2 || page[1].LogID != 5 {
		t.Errorf("a page: %v, %v", page, err)
	}
	if m, err := d.Matching(t.Context(), ParkedFilter{}); err != nil || m != (Matched{Events: 6, Bytes: 24, GivenUp: 2, Retrying: 1, Waiting: 2, Discarded: 1}) {
		t.Errorf("counted %+v, %v", m, err)
	}
}

func TestFilterThatCannotBeMeantIsRefused(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.parkOneOfEach()
	d := f.desk()
	wrong := ParkedFilter{Types: []string{"Order.*", "a*"}, Topic: "a\x00", Key: "\xff", Error: "\x00", States: []ParkedState{"lost"}, Since: parkedDay, Until: parkedDay, All: true}
	_, list := d.Parked(t.Context(), wrong, 0, 1)
	_, count := d.Matching(t.Context(), wrong)
	_, replay := d.ReplayMatching(t.Context(), wrong)
	_, discard := d.DiscardMatching(t.Context(), wrong)
	for _, err := range []error{list, count, replay, discard} {
		if !errors.Is(err, ErrInvalidRequest) {
			t.Fatalf("got %v", err)
		}
		for _, fault := range []string{`"test"`, `"Order.*"`, `"a*" has a star`, "ParkedFilter.Topic has a NUL byte", "ParkedFilter.Key is not valid UTF-8",
			"ParkedFilter.Error has a NUL byte", `ParkedFilter.States has "lost"`, "ParkedFilter.Since is 2026-03-01T00:00:00Z", "ParkedFilter.All is set beside"} {
			if !strings.Contains(err.Error(), fault) {
				t.Errorf("%q is not reported in %v", fault, err)
			}
		}
	}
	if n := f.count(`SELECT count(*) FROM ` + f.table("relay_request")); n != 0 {
		t.Errorf("%d requests were noted", n)
	}
}
