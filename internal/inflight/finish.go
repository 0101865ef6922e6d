package inflight

import "context"

// WithdrawBeyond is Withdraw for a source whose progress is one offset, so that
// what is handled beyond a gap would be handled again: look is told first of all
// that is with a handler or on its way there, then match says what else is to go, such
// as what stands beyond the last of these. Both are called with the room's lock
// held and must not call the room. What has been built is with a handler.
func (r *Room[T]) WithdrawBeyond(look func(token T), match func(token T) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.flying {
		if !d.lost {
			look(d.Token)
		}
	}
	r.withdraw(func(token T) bool { return match(token) }, false, nil)
}

// Quiet blocks until nothing that match says moves any more: it is out of the
// room, or nacked and pausing, or behind one that pauses. The error is the cause
// of ctx's end.
func (r *Room[T]) Quiet(ctx context.Context, match func(token T) bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.moves(match) {
		if err := r.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *Room[T]) moves(match func(T) bool) bool {
	for d := r.all.first; d != nil; d = d.after {
		if (d.state == ready || d.state == taken || d.state == handed) && match(d.Token) {
			return true
		}
	}
	return false
}
