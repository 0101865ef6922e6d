package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"
)

// DefaultConnections is how many connections RunDurables opens unless told otherwise.
const DefaultConnections = 6

// minConnections leaves one for a handler, one to read ahead, one for leases and links.
const minConnections = 3

// RunDurables runs all of ds until ctx is done, on a pool of their own of at most
// connections (0: DefaultConnections; at least 3), made from the config of pool and
// closed at the end: however many handlers there are, and however long they take, the
// application finds its own pool as it was. Two of the connections are kept for what
// must not wait behind handlers, such as leases; so connections - 2 handlers work at a
// time.
//
// It returns nil when all have ended cleanly. If one cannot go on, the others are
// stopped, and its error is returned.
func RunDurables(ctx context.Context, pool *pgxpool.Pool, connections int, ds ...*Durable) error {
	if err := checkDurables(pool, connections, ds); err != nil {
		return fmt.Errorf("run durable handlers: %w: %w", ErrInvalidConfig, err)
	}
	if connections == 0 {
		connections = DefaultConnections
	}
	cfg := pool.Config()
	cfg.MaxConns, cfg.MinConns, cfg.MinIdleConns = int32(connections), 0, 0
	own, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("run durable handlers: open a pool for them: %w", err)
	}
	defer own.Close()

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	heavy := make(chan struct{}, connections-2)
	errs := make([]error, len(ds))
	var running sync.WaitGroup
	for i, d := range ds {
		running.Go(func() {
			if errs[i] = d.run(ctx, own, heavy); errs[i] != nil {
				stop()
			}
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

func checkDurables(pool *pgxpool.Pool, connections int, ds []*Durable) error {
	var all []error
	if pool == nil {
		all = append(all, errors.New("the pool is nil: pass an open *pgxpool.Pool"))
	}
	if connections != 0 && connections < minConnections {
		all = append(all, fmt.Errorf("connections is %d: use at least %d, or 0 for the default of %d", connections, minConnections, DefaultConnections))
	}
	if len(ds) == 0 || slices.Contains(ds, nil) {
		all = append(all, errors.New("there is none, or one is nil: make them with outbox.NewDurable"))
	} else {
		names := make([]string, len(ds))
		for i, d := range ds {
			names[i] = d.cfg.Schema + "." + d.cfg.Name
		}
		slices.Sort(names)
		for i := 1; i < len(names); i++ {
			if names[i] == names[i-1] {
				all = append(all, fmt.Errorf("two of them are named %q: each has a position of its own, so give one another name", names[i][strings.IndexByte(names[i], '.')+1:]))
			}
		}
	}
	return errors.Join(all...)
}
