package harness

import (
	"bytes"
	"context"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

var known = []Comparison{{Name: "drain.null"}, {Name: "wake"}, {Name: "drain.kafka", Group: Brokers}, {Name: "retention", Group: Soaks}}

func selected(t *testing.T, only string, group Group) []string {
	t.Helper()
	cs, err := Select(known, only, group)
	if err != nil {
		t.Fatal(err)
	}
	return names(cs)
}

func TestSelect(t *testing.T) {
	for _, c := range []struct {
		only  string
		group Group
		want  []string
	}{
		{"", Plain, []string{"drain.null", "wake"}},
		{"", Brokers, []string{"drain.kafka"}},
		{"", Soaks, []string{"retention"}},
		{"wake", Plain, []string{"wake"}},
		{" wake , retention", Plain, []string{"wake", "retention"}},
	} {
		if got := selected(t, c.only, c.group); !slices.Equal(got, c.want) {
			t.Errorf("Select(%q, group %d) = %v, want %v", c.only, c.group, got, c.want)
		}
	}
}

func TestSelectListsTheNames(t *testing.T) {
	_, err := Select(known, "drain.nul", Plain)
	if err == nil || !strings.Contains(err.Error(), "drain.null, wake, drain.kafka, retention") || !strings.Contains(err.Error(), `"drain.nul"`) {
		t.Fatalf("an unknown name: %v", err)
	}
}

func TestMissingServersAreReportedTogether(t *testing.T) {
	t.Setenv(string(Postgres), "")
	t.Setenv(string(Redis), "")
	err := CheckServers(context.Background(), []Comparison{
		{Name: "a", Needs: []Server{Postgres}}, {Name: "b", Needs: []Server{Postgres, Redis}},
	})
	if err == nil || strings.Count(err.Error(), "is not set") != 2 {
		t.Fatalf("want one sentence a server: %v", err)
	}
}

func TestMedianAndSpread(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want float64
	}{{[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}, {[]float64{7}, 7}} {
		before := slices.Clone(c.of)
		if got := Median(c.of); got != c.want {
			t.Errorf("Median(%v) = %v, want %v", c.of, got, c.want)
		}
		if !slices.Equal(before, c.of) {
			t.Errorf("Median has sorted its argument")
		}
	}
	if !math.IsNaN(Median(nil)) {
		t.Error("the median of nothing is a number")
	}
	if got := SpreadOf([]float64{0.62, 0.5, 0.71}).String(); got != "0.50..0.71" {
		t.Errorf("the spread is printed as %s", got)
	}
}

func TestPercentile(t *testing.T) {
	var ds []time.Duration
	for i := 100; i > 0; i-- {
		ds = append(ds, time.Duration(i)*time.Millisecond)
	}
	for p, want := range map[float64]time.Duration{0.5: 50 * time.Millisecond, 0.99: 99 * time.Millisecond, 1: 100 * time.Millisecond, 0: time.Millisecond} {
		if got := Percentile(ds, p); got != want {
			t.Errorf("Percentile(%v) = %s, want %s", p, got, want)
		}
	}
}

func TestLine(t *testing.T) {
	o := &Outcome{rounds: 3, peers: []string{"slow", "fast"}, rates: map[string][]float64{
		Ours: {100, 200, 300}, Again: {100, 210, 300}, Limit: {200, 250, 1000}, "slow": {10}, "fast": {50, 400, 150},
	}}
	want := "bench drain.null ours=200 limit=250 ratio_limit=0.50 slow=10.0 ratio_slow=20.0 fast=150 ratio_fast=2.00 aa=1.00" +
		" spread_fast=0.50..2.00 spread_limit=0.30..0.80 spread_aa=0.95..1.00 rounds=3 p50_ms=1.50 p99_ms=12.0"
	if got := o.Line("drain.null").Latency("", 1.5, 12).String(); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

func TestBar(t *testing.T) {
	for _, c := range []struct {
		bar     Bar
		demand  string
		verdict string
	}{
		{Bar{Value: 0.6, Least: 0.6}, ">= 0.60", "met"},
		{Bar{Value: 0.59, Least: 0.6}, ">= 0.60", "missed"},
		{Bar{Value: 2.1, Most: 2}, "<= 2.00", "missed"},
		{Bar{Value: 0, Most: 2}, "<= 2.00", "met"},
		{Bar{Value: 1, Least: 0.9, Most: 1.1}, ">= 0.90, <= 1.10", "met"},
		{Bar{Value: math.NaN(), Most: 2}, "<= 2.00", "missed"},
		{Bar{Value: 1, Least: 100000, Target: true}, ">= 100000", "not reached"},
	} {
		if c.bar.Demand() != c.demand || c.bar.Verdict() != c.verdict {
			t.Errorf("%+v: %s, %s; want %s, %s", c.bar, c.bar.Demand(), c.bar.Verdict(), c.demand, c.verdict)
		}
	}
}

// Every program runs in every round, and a slow peer once; ratios are taken by rounds.
func TestContest(t *testing.T) {
	var order []string
	var rowsOf []int
	runner := func(name string, rate float64) Runner {
		return Runner{Name: name, Run: func(_ context.Context, rows int) (float64, error) {
			order = append(order, name)
			rowsOf = append(rowsOf, rows)
			return rate, nil
		}}
	}
	o, err := Contest{Rounds: 3, Rows: 1000, SlowRows: 10, Ours: runner("ours", 300), Limit: runner("limit", 600),
		Peers: []Runner{runner("slow", 99), runner("fast", 101)}}.Run(context.Background(), quietEnv())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"ours", "slow", "fast",
		"ours", "limit", "ours", "fast",
		"limit", "ours", "fast", "ours",
		"ours", "fast", "ours", "limit"}
	if !slices.Equal(order, want) {
		t.Errorf("in turn:\n%v, want\n%v", order, want)
	}
	if rowsOf[0] != 1000 || rowsOf[1] != 10 || rowsOf[2] != 10 || slices.Contains(rowsOf[3:], 10) {
		t.Errorf("rows of each turn: %v", rowsOf)
	}
	if r := o.Ratio(Limit); r != 0.5 {
		t.Errorf("ratio to the limit %v", r)
	}
	if r := o.Ratio("slow"); math.Abs(r-300.0/99) > 1e-9 {
		t.Errorf("ratio to the slow one %v", r)
	}
}

func TestResultsKeepOtherSections(t *testing.T) {
	one := section(known[0], &Report{Line: NewLine("drain.null").Figure("ours", 1)}, "a machine", true, time.Unix(0, 0))
	two := section(known[1], &Report{Line: NewLine("wake").Figure("ours", 2)}, "a machine", false, time.Unix(0, 0))
	content := merge(merge("", "drain.null", one), "wake", two)
	newer := strings.Replace(one, "ours=1", "ours=3", 1)
	content = merge(content, "drain.null", newer)
	if strings.Contains(content, "ours=1") || !strings.Contains(content, "ours=3") || !strings.Contains(content, "ours=2") {
		t.Fatalf("sections:\n%s", content)
	}
	if strings.Index(content, "## drain.null") > strings.Index(content, "## wake") {
		t.Error("a section has changed its place")
	}
	if again := merge(content, "drain.null", newer); again != content {
		t.Errorf("writing the same again changes the file:\n%q\n%q", content, again)
	}
}

func quietEnv() *Env { return &Env{Progress: NewProgress(new(bytes.Buffer), false, 1)} }
