package typepattern

import (
	"strings"
	"testing"

	"github.com/postbus/postbus/internal/testkit"
)

var (
	patterns = []string{"*", "order.*", "order.line.*", "order", "order.placed", "order_line.*", "a_b", "x1.*"}
	types    = []string{"order", "order.placed", "order.placed_late", "order.line", "order.line.added", "orders.placed",
		"order_line.added", "orderxline.added", "a_b", "axb", "a_b.c", "x1.y", "x", "x1"}
)

func TestMatch(t *testing.T) {
	t.Parallel()
	want := map[string]string{
		"*":            strings.Join(types, " "),
		"order.*":      "order.placed order.placed_late order.line order.line.added",
		"order.line.*": "order.line.added",
		"order":        "order",
		"order.placed": "order.placed",
		"order_line.*": "order_line.added",
		"a_b":          "a_b",
		"x1.*":         "x1.y",
	}
	for _, p := range patterns {
		if err := Valid(p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
		var got []string
		for _, eventType := range types {
			if Match([]string{p}, eventType) {
				got = append(got, eventType)
			}
		}
		if s := strings.Join(got, " "); s != want[p] {
			t.Errorf("%q matches %s, want %s", p, s, want[p])
		}
	}
	if Match(nil, "order") || Match([]string{"Order", ""}, "order") || !Match([]string{"stock.*", "order"}, "order") || (Pattern{}).Matches("") {
		t.Error("no pattern, invalid ones, or several")
	}
}

// The same question, asked of the database.
func TestLikeIsMatch(t *testing.T) {
	t.Parallel()
	pool := testkit.Postgres(t, testkit.PG15)
	for _, set := range append([][]string{nil, {"order", "a_b"}, {"*", "order"}, {"Order"}}, one(patterns)...) {
		for _, eventType := range types {
			var like bool
			if err := pool.QueryRow(t.Context(), `SELECT $1::text LIKE ANY ($2::text[])`, eventType, Like(set)).Scan(&like); err != nil {
				t.Fatal(err)
			}
			if like != Match(set, eventType) {
				t.Errorf("%q and %s: LIKE says %v", set, eventType, like)
			}
		}
	}
}

func one(patterns []string) (sets [][]string) {
	for _, p := range patterns {
		sets = append(sets, []string{p})
	}
	return sets
}

func TestValid(t *testing.T) {
	t.Parallel()
	for p, part := range map[string]string{
		"": "is empty", "**": "star", "order*": "star", "*.placed": "star", "order.*.added": "star", "*.*": "star",
		".*": "is empty", "Order.*": "'O' at byte 0", "order..*": "ends with a dot", "order.": "ends with a dot",
		"order%": "'%' at byte 5", strings.Repeat("x", 1000) + ".*": "1000 bytes",
	} {
		err := Valid(p)
		if err == nil || !strings.Contains(err.Error(), part) || !strings.Contains(err.Error(), `use "*" for every event`) {
			t.Errorf("%.20q: %v, want %q and the grammar", p, err, part)
		}
		if len(Like([]string{p})) != 0 {
			t.Errorf("%.20q: it has a LIKE", p)
		}
	}
}
