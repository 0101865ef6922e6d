package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"

	"github.com/postbus/postbus/internal/pooler"
	"github.com/postbus/postbus/migrations"
)

// shift is one Run of a relay or durable handler: a holder that stands by, takes
// the lease, works, loses it, takes it again.
type shift struct {
	who    owner
	db     *database
	holder uuid.UUID // fresh per Run
	lease  time.Duration
	log    *slog.Logger // names the owner
	told   bool         // that this holder is active
	had    *bool        // a position of this name has been there since Run began

	hooks Hooks

	active, standsBy string // what is logged

	// work moves the position until ctx is done (nil), or hard is (the lease is
	// lost), or an error. errSteered: work on, from what is stored.
	work  func(ctx, hard context.Context, l *lease, source string, wakeC <-chan struct{}) error
	wakeC <-chan struct{}
}

// run returns nil when ctx is done, and an error for what waiting does not mend.
func (s *shift) run(ctx context.Context) error {
	if err := s.db.check(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("run %s: %w", s.who, pooler.Explain(err))
	}
	_, found, err := s.db.readControl(ctx, s.who)
	if err != nil && isFinal(err) {
		return fmt.Errorf("run %s: %w", s.who, err)
	}
	// What is dropped while we stand by is not begun anew by us.
	*s.had = *s.had || found
	wakeC, unlisten := listenWake(s.db.schema)
	defer unlisten()
	s.wakeC = wakeC

	pace := backoff.NewExponentialBackOff()
	pace.InitialInterval, pace.MaxInterval = 50*time.Millisecond, 5*time.Second
	var pause time.Duration
	for ctx.Err() == nil {
		began := time.Now()
		err := s.once(ctx)
		switch {
		case ctx.Err() != nil && err == nil:
			return nil
		case isFinal(err):
			return fmt.Errorf("run %s: %w", s.who, err)
		case s.db.pooled && pooler.Lost(err): // it will again
			return fmt.Errorf("run %s: %w", s.who, pooler.Explain(err))
		case errors.Is(err, errLeaseLost):
			s.log.Warn("lease lost, standing by")
		case err != nil:
			s.log.Warn("starting over from the stored position", "error", err)
		}
		if time.Since(began) > 2*pause {
			pace.Reset() // it worked for a while: another trouble
		}
		pause = pace.NextBackOff()
		sleep(ctx, pause)
	}
	return nil
}

// isFinal: waiting does not mend it.
func isFinal(err error) bool {
	for _, final := range []error{
		migrations.ErrNotMigrated, migrations.ErrFromTheFuture, ErrReadReplica, ErrOtherCluster, ErrMissingPrivilege,
		ErrNameTaken, ErrDropped, ErrPositionLost,
	} {
		if errors.Is(err, final) {
			return true
		}
	}
	return false
}

// once waits for the lease and works until ctx is done or something breaks.
func (s *shift) once(ctx context.Context) error {
	l := newLease(s.db, s.who, allSlots, s.holder, s.lease)
	if err := s.standBy(ctx, l); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return l.giveUp(ctx) // it may just have been taken
	}
	hit(fpLeaseTaken)
	if !s.told {
		s.told = true // once per Run, however often the position is loaded anew
		s.log.Info(s.active, "holder", s.holder)
		told(s.log, s.hooks.LeaseWon, LeaseInfo{s.who.name, s.holder})
	}
	// The work outlives ctx by the drain, and not the lease.
	hard, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		if err := l.keep(hard); err != nil {
			stop(err)
		}
	}()
	defer func() { stop(nil); <-kept }()

	source, err := s.db.source(hard)
	if err != nil {
		return err
	}
	for err = errSteered; errors.Is(err, errSteered) && ctx.Err() == nil; {
		err = s.work(ctx, hard, l, source, s.wakeC)
	}
	if errors.Is(err, errSteered) {
		err = nil
	}
	if errors.Is(context.Cause(hard), errLeaseLost) {
		s.unheld()
		return errLeaseLost
	}
	if ctx.Err() != nil {
		defer s.unheld()
		stop(nil)
		<-kept // or a renewal could undo the giving up
		if giveUpErr := l.giveUp(ctx); giveUpErr != nil && err == nil {
			s.log.Warn("the lease could not be given up and runs out by itself", "error", giveUpErr)
		}
		if err != nil {
			s.log.Warn("stopped without a last link: some events may be published again", "error", err)
		}
		return nil
	}
	return err
}

// unheld notes that the lease is not ours any more.
func (s *shift) unheld() {
	if s.told {
		s.told = false
		told(s.log, s.hooks.LeaseLost, LeaseInfo{s.who.name, s.holder})
	}
}

// standBy returns when the lease is taken or ctx is done.
func (s *shift) standBy(ctx context.Context, l *lease) error {
	every := min(time.Second, l.length/3)
	for first := true; ctx.Err() == nil; first = false {
		ok, err := l.take(ctx)
		if ok || err != nil {
			if ctx.Err() != nil && !ok {
				return nil
			}
			return err
		}
		if first {
			s.unheld()
			s.log.Info(s.standsBy, "holder", s.holder)
		}
		sleep(ctx, time.Duration((0.8+0.4*rand.Float64())*float64(every)))
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
