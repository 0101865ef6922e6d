package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/handlers"
)

// errNoServers is what keeps a demonstration from beginning.
var errNoServers = errors.New("type `make demo`, or `make demo BROKER=...`, which starts the servers and tells this program where they are")

// errLeftBehind: a run could not be cleared away.
var errLeftBehind = errors.New("it is left behind")

// stage is where one run takes place: connections, and a schema and a prefix of
// topics that nobody else has.
type stage struct {
	name   string // of the schema, and the prefix of all topics
	kind   string // of the broker
	pool   *pgxpool.Pool
	books  *pgxpool.Pool // the ledger's own, so that counting does not wait for the shop
	broker broker
}

// What is only watched needs no fsync, since no server dies here; and its
// questions are answered in less time than the compiling of them would take.
var ledgerSettings = []string{"synchronous_commit", "off", "jit", "off"}

func openStage(ctx context.Context, kind string) (*stage, error) {
	s := &stage{name: "shop_demo_" + randomHex(4), kind: kind}
	var err error
	if s.pool, err = openPostgres(ctx, s.name, 16); err != nil {
		return nil, err
	}
	if s.books, err = openPostgres(ctx, s.name, 6, ledgerSettings...); err != nil {
		s.close()
		return nil, err
	}
	if s.broker, err = openBroker(ctx, kind, s.prefix()); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// prefix is before the names of all topics of the run.
func (s *stage) prefix() string { return s.name + "." }

// eventTopics are those of the run.
func (s *stage) eventTopics() []string { return []string{s.prefix() + "order", s.prefix() + "payment"} }

// topics are all, with their poison queues.
func (s *stage) topics() (all []string) {
	for _, topic := range s.eventTopics() {
		all = append(all, topic, handlers.DefaultPoisonTopic(topic))
	}
	return all
}

// clear removes what the run has made. Everything that writes has ended by now.
func (s *stage) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	_, err := s.pool.Exec(ctx, `DROP SCHEMA IF EXISTS `+pgx.Identifier{s.name}.Sanitize()+` CASCADE`)
	if err != nil {
		err = fmt.Errorf("drop schema %s: %w: %w", s.name, errLeftBehind, err)
	}
	if removeErr := s.broker.remove(ctx, s.topics()); removeErr != nil {
		err = errors.Join(err, fmt.Errorf("remove what begins with %s from the broker: %w: %w", s.prefix(), errLeftBehind, removeErr))
	}
	return err
}

func (s *stage) close() {
	if s.broker != nil {
		s.broker.close()
	}
	if s.books != nil {
		s.books.Close()
	}
	s.pool.Close()
}

// openPostgres opens a pool whose tables are those of schema, and waits for the
// server's answer.
func openPostgres(ctx context.Context, schema string, connections int32, settings ...string) (*pgxpool.Pool, error) {
	url, err := address("POSTBUS_POSTGRES_URL")
	if err != nil {
		return nil, err
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("POSTBUS_POSTGRES_URL is no address of a Postgres server: %w", errNoServers)
	}
	cfg.MaxConns = connections
	cfg.ConnConfig.ConnectTimeout = 5 * time.Second
	cfg.ConnConfig.RuntimeParams["search_path"] = schema
	for i := 0; i+1 < len(settings); i += 2 {
		cfg.ConnConfig.RuntimeParams[settings[i]] = settings[i+1]
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err == nil {
		if err = pool.Ping(ctx); err == nil {
			return pool, nil
		}
		pool.Close()
	}
	return nil, noAnswer("Postgres", net.JoinHostPort(cfg.ConnConfig.Host, fmt.Sprint(cfg.ConnConfig.Port)), err)
}

func address(variable string) (string, error) {
	if url := os.Getenv(variable); url != "" {
		return url, nil
	}
	return "", fmt.Errorf("%s is not set: %w", variable, errNoServers)
}

// noAnswer says why a server does not answer, without the chain of all that was
// tried, which may hold a password.
func noAnswer(server, at string, err error) error {
	var refused *pgconn.PgError
	var network *net.OpError
	switch {
	case errors.As(err, &refused):
		err = errors.New(refused.Message)
	case errors.As(err, &network):
		err = network.Err
	case errors.Is(err, context.DeadlineExceeded):
		err = context.DeadlineExceeded
	}
	return fmt.Errorf("%s at %s does not answer (%w): %w", server, at, err, errNoServers)
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
