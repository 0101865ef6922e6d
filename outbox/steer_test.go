package outbox

import "testing"

// A rewind inside a round that is not finished waits exactly while it would leave
// something out: late events below where it goes back to, or what lies between the
// position and there.
func TestRewindWaitsWhileItWouldLeaveSomethingOut(t *testing.T) {
	running, err := parseSnapshot("5:9:5,7")
	if err != nil {
		t.Fatal(err)
	}
	after, err := parseSnapshot("9:9:")
	if err != nil {
		t.Fatal(err)
	}
	late := round{n: 3, prev: running, prevID: 100, snap: after, seenID: 200, upper: 200}
	none := round{n: 3, prev: after, prevID: 100, snap: after, seenID: 200, upper: 200}
	rewound := round{n: 4, prev: emptySnapshot, prevID: 49, snap: after, seenID: 200, upper: 200}
	for name, c := range map[string]struct {
		round  round
		lastID int64
		to     int64
		ready  bool
	}{
		"finished":                              {late, 200, 50, true},
		"late events left":                      {late, 20, 50, false},
		"late events left, to the beginning":    {late, 20, 1, true},
		"late events done":                      {late, 150, 50, true},
		"late events done, to what is ahead":    {late, 150, 160, false},
		"late events done, to the next":         {late, 150, 151, true},
		"no late events":                        {none, 0, 50, true},
		"no late events, to what is ahead":      {none, 0, 110, false},
		"inside a rewind, further back":         {rewound, 60, 20, true},
		"inside a rewind, to what it has not":   {rewound, 60, 80, false},
		"inside a rewind that has just begun":   {rewound, 0, 50, true},
		"inside a rewind, ahead of what it has": {rewound, 0, 60, false},
	} {
		s := seat{chain: &chain{pos: position{n: 9, round: c.round, lastID: c.lastID}}}
		if got := s.ready(&request{action: actionRewind, logID: c.to}); got != c.ready {
			t.Errorf("%s: ready is %v", name, got)
		}
	}
}
