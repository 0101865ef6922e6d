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
	"github.com/redis/go-redis/v9"
)

// errNoServers is what keeps a demonstration from beginning.
var errNoServers = errors.New("type `make demo`, which starts Postgres and Redis and tells this program where they are")

// errLeftBehind: a run could not be cleared away.
var errLeftBehind = errors.New("it is left behind")

// stage is where one run takes place: connections, and a schema and a prefix of
// streams that nobody else has.
type stage struct {
	name   string // of the schema, and the prefix of all streams
	pool   *pgxpool.Pool
	books  *pgxpool.Pool // the ledger's own, so that counting does not wait for the shop
	client *redis.Client
}

// What is only watched needs no fsync, since no server dies here; and its
// questions are answered in less time than the compiling of them would take.
var ledgerSettings = []string{"synchronous_commit", "off", "jit", "off"}

func openStage(ctx context.Context) (*stage, error) {
	s := &stage{name: "shop_demo_" + randomHex(4)}
	var err error
	if s.pool, err = openPostgres(ctx, s.name, 16); err != nil {
		return nil, err
	}
	if s.books, err = openPostgres(ctx, s.name, 6, ledgerSettings...); err != nil {
		s.close()
		return nil, err
	}
	if s.client, err = openRedis(ctx); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// prefix is before the names of all streams of the run.
func (s *stage) prefix() string { return s.name + "." }

// clear removes what the run has made. Everything that writes has ended by now.
func (s *stage) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	_, err := s.pool.Exec(ctx, `DROP SCHEMA IF EXISTS `+pgx.Identifier{s.name}.Sanitize()+` CASCADE`)
	if err != nil {
		err = fmt.Errorf("drop schema %s: %w: %w", s.name, errLeftBehind, err)
	}
	keys := s.client.Scan(ctx, 0, s.prefix()+"*", 1000).Iterator()
	for keys.Next(ctx) {
		if delErr := s.client.Del(ctx, keys.Val()).Err(); delErr != nil {
			err = errors.Join(err, fmt.Errorf("remove stream %s: %w: %w", keys.Val(), errLeftBehind, delErr))
		}
	}
	if keys.Err() != nil {
		err = errors.Join(err, fmt.Errorf("remove the streams %s*: %w: %w", s.prefix(), errLeftBehind, keys.Err()))
	}
	return err
}

func (s *stage) close() {
	if s.client != nil {
		_ = s.client.Close() // nothing is under way on it
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

func openRedis(ctx context.Context) (*redis.Client, error) {
	url, err := address("POSTBUS_REDIS_URL")
	if err != nil {
		return nil, err
	}
	options, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("POSTBUS_REDIS_URL is no address of a Redis server: %w", errNoServers)
	}
	options.ContextTimeoutEnabled = true
	redis.SetLogger(quiet{})
	client := redis.NewClient(options)
	if err := client.Ping(ctx).Err(); err != nil {
		_ = client.Close()
		return nil, noAnswer("Redis", options.Addr, err)
	}
	return client, nil
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

// quiet keeps go-redis from writing between our lines: what goes wrong comes as
// an error, too.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
