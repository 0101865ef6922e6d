package outbox

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/postbus/postbus/internal/testkit"
)

// However snapshots lie, what is brought over with one renumbering agrees as it did
// before, snapshots and transactions taken here see and do not see it as they must,
// and Postgres computes the same numbers.
func TestRenumberingKeepsWhatSnapshotsCanTellApart(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	draw := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	for i := range 2000 {
		base := []uint64{3, 700, 1 << 33}[draw.IntN(3)]
		snapshots := []snapshot{emptySnapshot}
		var kept []uint64
		for range draw.IntN(5) {
			s := snapshot{xmin: base + draw.Uint64N(60)}
			s.xmax = s.xmin + draw.Uint64N(40)
			for x := s.xmin; x < s.xmax; x++ {
				if draw.IntN(4) == 0 {
					s.xip = append(s.xip, x)
					if draw.IntN(3) > 0 {
						kept = append(kept, x)
					}
				}
			}
			snapshots = append(snapshots, s)
		}
		slices.Sort(kept)
		kept = slices.Compact(kept)
		limit := uint64(600 + draw.IntN(300))
		if base == 3 && draw.IntN(2) == 0 {
			limit = uint64(3 + draw.IntN(300))
		}
		r, ok := newRenumbering(snapshots, kept, limit)
		if !ok {
			if r.last < limit || len(r.above) > 2*(len(snapshots)+len(kept)) {
				t.Fatalf("run %d: refused without need: %+v", i, r)
			}
			continue
		}
		var xids []uint64
		for x := base; x < base+110; x++ {
			xids = append(xids, x)
		}
		for k, s := range snapshots {
			n := r.snapshot(&s, kept)
			if p, err := parseSnapshot(n.text); err != nil || !slices.Equal(p.xip, n.xip) || p.xmin != n.xmin || p.xmax != n.xmax || n.xmax > limit {
				t.Fatalf("run %d: snapshot %d became %+v: %v", i, k, n, err)
			}
			for _, x := range xids {
				_, ran := slices.BinarySearch(s.xip, x)
				_, stays := slices.BinarySearch(kept, x)
				if ran && !stays {
					continue // it has left no rows
				}
				if got, want := n.sees(r.xid(x)), s.sees(x); got != want {
					t.Fatalf("run %d: of %d, now %d, snapshot %d (now %s) thinks %v, want %v", i, x, r.xid(x), k, n.text, got, want)
				}
				if _, runs := slices.BinarySearch(n.xip, r.xid(x)); runs != ran {
					t.Fatalf("run %d: %d, now %d, runs in %s: %v, want %v", i, x, r.xid(x), n.text, runs, ran)
				}
				if r.xid(x) >= limit {
					t.Fatalf("run %d: %d became %d, which may run here: the limit is %d", i, x, r.xid(x), limit)
				}
			}
			// What was never read here is unseen, and so is all that is yet to run.
			if n.sees(r.last) || n.sees(limit) {
				t.Fatalf("run %d: %s sees %d, the number of what is unseen, or the limit %d", i, n.text, r.last, limit)
			}
		}
		if r.same || i%40 != 0 {
			continue
		}
		var same bool
		var want []uint64
		for _, x := range xids {
			want = append(want, r.xid(x))
		}
		if err := f.pool.QueryRow(t.Context(), `SELECT array_agg(`+r.sql("$1")+` ORDER BY xid) = $3::text[]::xid8[] FROM unnest($2::text[]::xid8[]) AS t (xid)`,
			texts(r.above), texts(xids), texts(want)).Scan(&same); err != nil || !same {
			t.Fatalf("run %d: Postgres renumbers otherwise (%v)", i, err)
		}
	}
}
