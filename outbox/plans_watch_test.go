package outbox

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
)

// watch collects the plans by which the server has really run what the code under test
// has sent, with what each has touched: the server's auto_explain tells them with each
// reply. So no statement is written down a second time, and each stands under the
// settings of its own transaction.
type watch struct {
	mu    sync.Mutex
	on    bool
	plans []ranPlan
	wrong []string
}

// ranPlan is one statement as it was run.
type ranPlan struct {
	SQL  string `json:"Query Text"`
	Root node   `json:"Plan"`
}

// node is one step of a plan. What it counts, it counts for one loop, its buffers apart.
type node struct {
	Type     string  `json:"Node Type"`
	Table    string  `json:"Relation Name"`
	Index    string  `json:"Index Name"`
	Rows     float64 `json:"Actual Rows"`
	Loops    float64 `json:"Actual Loops"`
	Filtered float64 `json:"Rows Removed by Filter"`
	Hit      int     `json:"Shared Hit Blocks"`
	Read     int     `json:"Shared Read Blocks"`
	Plans    []node  `json:"Plans"`
}

// watched is f with pools whose plans are told, all of one kind: with the values of the
// call in them (custom), or as they are made once for all values (generic), which the
// server takes to after five calls if it thinks them no worse.
func (f *fixture) watched(which testkit.Server, mode string) (*fixture, *watch) {
	f.t.Helper()
	w := &watch{}
	pool := testkit.Postgres(f.t, which, func(c *pgxpool.Config) {
		for name, value := range map[string]string{
			"session_preload_libraries": "auto_explain", "auto_explain.log_min_duration": "0", "auto_explain.log_analyze": "on",
			"auto_explain.log_buffers": "on", "auto_explain.log_timing": "off", "auto_explain.log_format": "json",
			"auto_explain.log_level": "notice", "client_min_messages": "notice", "plan_cache_mode": "force_" + mode + "_plan",
		} {
			c.ConnConfig.RuntimeParams[name] = value
		}
		c.ConnConfig.OnNotice = w.told
	})
	g := *f
	g.pool = pool
	return &g, w
}

func (w *watch) told(_ *pgconn.PgConn, n *pgconn.Notice) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := strings.Index(n.Message, "plan:\n{")
	if !w.on || at < 0 {
		return
	}
	var p ranPlan
	if err := json.Unmarshal([]byte(n.Message[at+len("plan:\n"):]), &p); err != nil {
		w.wrong = append(w.wrong, fmt.Sprintf("%v: %s", err, n.Message))
		return
	}
	w.plans = append(w.plans, p)
}

// during gives the plans of what do has sent.
func (w *watch) during(t *testing.T, do func()) []ranPlan {
	t.Helper()
	w.mu.Lock()
	w.on, w.plans = true, nil
	w.mu.Unlock()
	do()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on = false
	if len(w.wrong) > 0 || len(w.plans) == 0 {
		t.Fatalf("%d plans were told (contrib's auto_explain must be there), not understood: %v", len(w.plans), w.wrong)
	}
	return w.plans
}

// each calls do for the node and all below it.
func (n *node) each(do func(*node)) {
	do(n)
	for i := range n.Plans {
		n.Plans[i].each(do)
	}
}

// pages is how many the statement has touched, as often as it has.
func (p *ranPlan) pages() int { return p.Root.Hit + p.Root.Read }

// rows is how many the statement has given back, or changed.
func (p *ranPlan) rows() float64 {
	n := p.Root.Rows * p.Root.Loops
	p.Root.each(func(k *node) {
		if k.Type == "ModifyTable" && len(k.Plans) > 0 {
			n = max(n, k.Plans[0].Rows*k.Plans[0].Loops)
		}
	})
	return n
}

// String is the plan in short, one node a line.
func (p *ranPlan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n  %d pages, %.0f rows", spaces.ReplaceAllString(p.SQL, " "), p.pages(), p.rows())
	p.Root.write(&b, "\n  ")
	return b.String()
}

var spaces = regexp.MustCompile(`\s+`)

func (n *node) write(b *strings.Builder, indent string) {
	fmt.Fprintf(b, "%s%s %s %s: %g rows and %g filtered, %g times, %d pages", indent, n.Type, n.Table, n.Index, n.Rows, n.Filtered, n.Loops, n.Hit+n.Read)
	for i := range n.Plans {
		n.Plans[i].write(b, indent+"  ")
	}
}
