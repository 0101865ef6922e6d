package bus

import (
	"context"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

// scope is what the bus knows of one transaction: what is to be announced once
// it has committed, and why it must not commit. Like the transaction itself it
// belongs to one goroutine at a time.
//
// Savepoints need no tree. Rolling back to a savepoint undoes all that was done
// after it, in whichever savepoint and through whichever handle; so the lists
// only grow, and a rollback cuts them off where the savepoint began.
type scope struct {
	conn   *pgx.Conn // identifies the transaction behind a wrapper of the user's
	owner  owner
	ended  bool // fn or a handler has rolled it back: its connection may be somebody else's by now
	closed atomic.Bool

	chain *link // the innermost event being handled; nil outside handlers

	announcements []announcement
	published     []uuid.UUID
	dooms         []error
	logs          []appender // appended to, each once; those of rolled-back savepoints too
	reminder      *reminder  // of a followed transaction
}

// owner is who commits a transaction.
type owner uint8

const (
	ours     owner = iota // InTx
	followed              // the user, who tells us: Follow
	borrowed              // the user, and we do not hear of it
)

// mark is a point in the life of a scope.
type mark struct{ announcements, published, dooms int }

func newScope(ctx context.Context, tx pgx.Tx, owner owner) *scope {
	return &scope{conn: tx.Conn(), owner: owner, chain: frameOf(ctx).chain}
}

// scopeOf finds the scope that a tx belongs to: by the handle, or, if the user
// has wrapped the handle in a pgx.Tx of their own, by ctx and connection. It is
// nil for a transaction that the bus does not follow.
func scopeOf(ctx context.Context, tx pgx.Tx) *scope {
	switch tx := tx.(type) {
	case *followedTx:
		return tx.scope
	case *Tx:
		return tx.scope
	case *savepoint:
		return tx.scope
	}
	// A closed scope's connection may serve another transaction by now.
	if s := frameOf(ctx).scope; s != nil && !s.closed.Load() && s.conn != nil && s.conn == tx.Conn() {
		return s
	}
	return nil
}

func (s *scope) close() { s.closed.Store(true) }

func (s *scope) mark() mark {
	return mark{len(s.announcements), len(s.published), len(s.dooms)}
}

func (s *scope) rewind(m mark) {
	s.announcements = s.announcements[:min(m.announcements, len(s.announcements))]
	s.published = s.published[:min(m.published, len(s.published))]
	s.dooms = s.dooms[:min(m.dooms, len(s.dooms))]
	s.reminder.rewind(len(s.announcements))
}

func (s *scope) announce(a announcement) {
	s.announcements = append(s.announcements, a)
	s.reminder.note(a)
}

func (s *scope) appended(log appender, evs []events.DomainEvent) {
	for i := range evs {
		s.published = append(s.published, evs[i].EventID)
	}
	for _, known := range s.logs {
		if known == log {
			return
		}
	}
	s.logs = append(s.logs, log)
}

// hint lets the relays look for what somebody else will commit.
func (s *scope) hint() {
	if s.owner != ours {
		for _, log := range s.logs {
			log.Hint()
		}
	}
}

func (s *scope) wake() {
	for _, log := range s.logs {
		log.Wake()
	}
}

// doomed notes a reason why the transaction must not commit.
func (s *scope) doomed(err error) { s.dooms = append(s.dooms, err) }

// doom is the first reason why the transaction must not commit, or nil. Later
// ones are mostly its consequences.
func (s *scope) doom() error {
	if len(s.dooms) == 0 {
		return nil
	}
	return &DoomedError{Err: s.dooms[0]}
}
