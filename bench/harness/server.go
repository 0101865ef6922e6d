package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
)

// Server is a server that a comparison needs. Its value is the environment variable
// that holds its address, as `make servers-up` writes it.
type Server string

const (
	Postgres Server = "POSTBUS_POSTGRES_URL"
	Redis    Server = "POSTBUS_REDIS_URL"
)

// URL is the server's address, empty when it is not set.
func (s Server) URL() string { return strings.TrimSpace(os.Getenv(string(s))) }

// CheckServers asks every server that one of cs needs for an answer, before anything is
// measured. All that are missing are reported together.
func CheckServers(ctx context.Context, cs []Comparison) error {
	var faults []error
	var asked []Server
	for _, c := range cs {
		for _, s := range c.Needs {
			if slices.Contains(asked, s) {
				continue
			}
			asked = append(asked, s)
			if err := s.answers(ctx); err != nil {
				faults = append(faults, fmt.Errorf("%s needs a server: %w", c.Name, err))
			}
		}
	}
	return errors.Join(faults...)
}

func (s Server) answers(ctx context.Context) error {
	if s.URL() == "" {
		return fmt.Errorf("%s is not set: use `make bench`, which starts the servers, or set it", s)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if s == Redis {
		options, err := redis.ParseURL(s.URL())
		if err != nil {
			return fmt.Errorf("%s is no address of a Redis: write redis://host:port/db", s)
		}
		client := redis.NewClient(options)
		defer client.Close()
		if err := client.Ping(ctx).Err(); err != nil {
			return fmt.Errorf("%s: %w; `make servers-status` shows what runs", s, err)
		}
		return nil
	}
	conn, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		return fmt.Errorf("%s: %w; `make servers-status` shows what runs", s, err)
	}
	return conn.Close(ctx)
}
