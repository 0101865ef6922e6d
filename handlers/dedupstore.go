package handlers

import (
	"context"
	"errors"

	"github.com/google/uuid"
)

// DedupStore is what DedupBy remembers events in, for handlers whose effects are
// not in Postgres. Mark an event before its handler, and a failure loses it; mark
// it behind the handler, and two consumers handle it at once. So there are two
// steps: a claim, which runs out by itself soon unless it is completed, and its
// completion, which lasts.
//
// Whatever is stored is stored per (handler, event). All methods may be called by
// several goroutines at once, and return in bounded time, without a deadline in
// ctx too. An error means that nothing is known: any of them may have happened.
type DedupStore interface {
	// Claim asks for an event in a handler. With ClaimFresh it is the caller's, until
	// the claim is completed, released, or runs out; token proves that, and is
	// nobody else's.
	Claim(ctx context.Context, handler string, event uuid.UUID) (state ClaimState, token string, err error)
	// Complete records that the handler has succeeded. It works as well if the claim
	// has run out and nobody else has one, and if it was completed before. It
	// changes nothing, and its error wraps ErrClaimLost, while somebody else has the
	// event.
	Complete(ctx context.Context, handler string, event uuid.UUID, token string) error
	// Release gives the event back to whoever claims it next. It changes nothing, and
	// that is no error, unless the claim is still the token's.
	Release(ctx context.Context, handler string, event uuid.UUID, token string) error
}

// ClaimState is what became of a claim.
type ClaimState uint8

const (
	ClaimFresh ClaimState = iota + 1 // it is the caller's to handle
	ClaimBusy                        // somebody has it in hand, or had and died; ask again
	ClaimDone                        // it was handled
)

var (
	// ErrInProgress is wrapped by the *PostponedError of an event that somebody else
	// has in hand: he may fail yet, so it is neither handled nor a duplicate.
	ErrInProgress = errors.New("it is in progress elsewhere, or was when its consumer died")
	// ErrClaimLost is wrapped by DedupStore.Complete's error when the claim has run
	// out under the handler, and somebody else has the event now.
	ErrClaimLost = errors.New("the claim ran out before the handler was done, and somebody else has the event")
)
