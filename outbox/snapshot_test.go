package outbox

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/postbus/postbus/internal/testkit"
)

// What a snapshot sees is what Postgres says it sees.
func TestSnapshotAgainstPostgres(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	for range 40 {
		xmin := 1 + rand.Uint64N(1<<40)
		xmax := xmin + rand.Uint64N(30)
		var xip, probes []string
		for x := xmin; x < xmax; x++ {
			if rand.IntN(3) == 0 {
				xip = append(xip, fmt.Sprint(x))
			}
		}
		for x := max(xmin, 4) - 3; x < xmax+4; x++ {
			probes = append(probes, fmt.Sprint(x))
		}
		text := fmt.Sprintf("%d:%d:%s", xmin, xmax, strings.Join(xip, ","))
		s, err := parseSnapshot(text)
		if err != nil {
			t.Fatal(err)
		}
		var want []bool
		if err := f.pool.QueryRow(t.Context(), `SELECT array_agg(pg_visible_in_snapshot(x::xid8, $1::text::pg_snapshot) ORDER BY n)
			FROM unnest($2::text[]) WITH ORDINALITY AS u (x, n)`, text, probes).Scan(&want); err != nil {
			t.Fatal(err)
		}
		for i, p := range probes {
			var xid uint64
			fmt.Sscan(p, &xid)
			if s.sees(xid) != want[i] {
				t.Errorf("snapshot %s sees %d: %v, Postgres says %v", text, xid, s.sees(xid), want[i])
			}
		}
	}
}

func TestFinishedSince(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		prev, now string
		want      []uint64
	}{
		{"1:1:", "10:20:10,12", nil},
		{"10:20:10,12,15", "12:30:12,25", []uint64{10, 15}},
		{"10:20:10,12,15", "30:30:", []uint64{10, 12, 15}},
		{"10:20:10,12,15", "10:20:10,12,15", nil},
		{"10:20:19", "19:20:19", nil},
		{"10:20:19", "10:12:10,11", nil}, // a crash of the server has put the xids back
	} {
		prev, err1 := parseSnapshot(c.prev)
		now, err2 := parseSnapshot(c.now)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if got := now.finishedSince(&prev); !slices.Equal(got, c.want) {
			t.Errorf("of %s finished in %s: %v, want %v", c.prev, c.now, got, c.want)
		}
	}
}

func TestParseSnapshotRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", ":", "::", "1", "1:2", "2:1:", "1:5:5", "3:5:2", "1:5:2,", "1:5:,2", "1:5:x", "-1:5:", "1:99999999999999999999:", "1:5:2:3"} {
		if s, err := parseSnapshot(text); err == nil {
			t.Errorf("%q is taken for %+v", text, s)
		}
	}
}

func FuzzParseSnapshot(f *testing.F) {
	for _, text := range []string{"1:1:", "10:20:10,12,15", "10:20:15,10", "1:5:,", "18446744073709551615:18446744073709551615:"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseSnapshot(text)
		if err != nil {
			return
		}
		if s.xmin > s.xmax || !slices.IsSorted(s.xip) {
			t.Fatalf("%q is taken for %+v", text, s)
		}
		for _, xid := range s.xip {
			if s.sees(xid) || xid < s.xmin || xid >= s.xmax {
				t.Fatalf("%q sees the running transaction %d, or it lies outside", text, xid)
			}
		}
		if s.finishedSince(&s) != nil {
			t.Fatalf("%q: something has finished since itself", text)
		}
	})
}
