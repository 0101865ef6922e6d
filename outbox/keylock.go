package outbox

import (
	"context"
	"hash/fnv"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

const (
	// KeyLockClass is the class of the advisory locks of LogConfig.LockKeys, the first
	// of two int4 (classid in pg_locks): "pkey" in ASCII. An application that takes
	// advisory locks of two keys itself leaves this class alone.
	KeyLockClass = 0x706b6579
	// KeyLocks is how many of them there are: their second int4 is 0 to KeyLocks-1. One
	// for each key would fill the lock table, which all databases of a server share
	// (max_locks_per_transaction times max_connections, 6,400 by default).
	KeyLocks = 1024
)

// lockKeysSQL takes the locks in the order of the array. It is a statement of its
// own, and before the rows: their ids must be drawn behind the wait.
const lockKeysSQL = `SELECT pg_advisory_xact_lock($1::int4, k) FROM unnest($2::int4[]) AS k`

// lockKeys waits until no other transaction that has appended to one of the keys is
// open, if LogConfig.LockKeys says so. It takes each lock once, in ascending order,
// so that two calls never wait for each other.
func (l *Log) lockKeys(ctx context.Context, tx pgx.Tx, evs ...events.DomainEvent) error {
	if !l.locksKeys {
		return nil
	}
	locks := make([]int32, len(evs))
	for i := range evs {
		locks[i] = l.keyLock(evs[i].Key())
	}
	slices.Sort(locks)
	_, err := tx.Exec(ctx, lockKeysSQL, int32(KeyLockClass), slices.Compact(locks))
	return err
}

// keyLock is the lock of a key: FNV-1a, 32 bit, of schema, NUL and key, modulo
// KeyLocks. All programs that write to one log have to agree on it: it never changes.
func (l *Log) keyLock(key string) int32 {
	h := fnv.New32a()
	h.Write([]byte(l.schema))
	h.Write([]byte{0})
	h.Write([]byte(key))
	return int32(h.Sum32() % KeyLocks)
}
