package outbox

import "context"

// loadHeld finds the events of a rewound round that are put aside, or discarded, and that
// the position has not come to again. They are not taken from the log, and those that are to be
// tried again (the others: nil) are tried when their place comes: behind what the round
// brings of their key before them, and once, since who goes on in the middle of the round
// finds in the table what was not tried yet.
func (t *duty) loadHeld(hard context.Context) error {
	ids, err := t.parkedIDs(hard, max(t.chain.pos.lastID, t.chain.pos.round.prevID))
	if err != nil {
		return err
	}
	t.held = make(map[int64]*item, len(ids))
	for _, id := range ids {
		t.held[id] = t.parked[id]
	}
	return nil
}

func (t *duty) holds(id int64) bool {
	_, ok := t.held[id]
	return ok
}

// passed notes that a link has passed the first n events read ahead, of which waiting
// were put aside.
func (t *duty) passed(n int, waiting []*item) {
	t.waitsBehind(waiting)
	if len(waiting) > 0 {
		told(t.log, t.hooks.Parked, ParkedInfo{Name: t.who.name, Waiting: len(waiting)})
	}
	if len(t.held) > 0 {
		for _, it := range t.ahead[:n] {
			if h := t.held[it.LogID]; h != nil {
				t.put(h)
			}
			delete(t.held, it.LogID)
		}
	}
	t.ahead = t.ahead[n:]
}

// releaseAll lets those be tried that the round did not come to: of types that are not
// handled any more, say.
func (t *duty) releaseAll() {
	for _, h := range t.held {
		if h != nil {
			t.put(h)
		}
	}
	t.held = nil
}
