package inflight

import "context"

// Offer takes deliveries, in the broker's order, and hands them on as handlers
// become free. It blocks while the room is full, and returns when all are in;
// else with the number of those that are, the first ones, and ErrClosed or the
// cause of ctx's end: the others are not the room's.
func (r *Room[T]) Offer(ctx context.Context, ds []Delivery[T]) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := 0; ; {
		if r.closing {
			return n, ErrClosed
		}
		n += r.admit(ds[n:], true)
		if n == len(ds) {
			return n, nil
		}
		for !r.closing && !r.roomy(len(ds)-n) {
			if err := r.wait(ctx); err != nil {
				return n, err
			}
		}
	}
}

// Add takes deliveries whether there is room or not, for an adapter that cannot
// leave half of what it has read: let it read again when AwaitRoom has returned.
// The error is ErrClosed, and then none of them was taken.
func (r *Room[T]) Add(ds []Delivery[T]) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closing {
		return ErrClosed
	}
	r.admit(ds, false)
	return nil
}

// Free is how many deliveries the room would take now, as long as their sizes allow; 0
// when it is full by count or by bytes.
func (r *Room[T]) Free() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.free()
}

func (r *Room[T]) free() int {
	if r.bytes >= r.cfg.MaxBufferedBytes {
		return 0
	}
	return max(0, r.cfg.MaxBuffered-r.count)
}

// AwaitRoom blocks until n more deliveries fit, and bytes below the bound; n is
// at most half of MaxBuffered, and one that is higher is taken as that. The error is ErrClosed
// or the cause of ctx's end.
func (r *Room[T]) AwaitRoom(ctx context.Context, n int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.closing {
		if r.free() >= max(1, min(n, r.cfg.MaxBuffered/2)) {
			return nil
		}
		if err := r.wait(ctx); err != nil {
			return err
		}
	}
	return ErrClosed
}

// roomy says that it is worth while to wake someone who has n more.
func (r *Room[T]) roomy(n int) bool {
	return r.free() >= max(1, min(n, r.cfg.MaxBuffered/4))
}

// chunk is how many deliveries are allocated at once: they are freed together.
const chunk = 64

func (r *Room[T]) admit(ds []Delivery[T], bounded bool) (n int) {
	var block []delivery[T]
	for n < len(ds) && !(bounded && r.free() == 0) {
		if len(block) == 0 {
			block = make([]delivery[T], min(chunk, len(ds)-n))
		}
		d := &block[0]
		block = block[1:]
		d.Delivery = ds[n]
		d.seq = r.seq
		r.seq++
		r.count++
		r.bytes += d.Size
		r.all.push(d)
		r.join(d)
		n++
	}
	r.wake()
	return n
}
