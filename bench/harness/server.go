package harness

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Server is a server that a comparison needs. Its value is the environment variable
// that holds its address, as `make servers-up` writes it.
type Server string

const (
	Postgres Server = "POSTBUS_POSTGRES_URL"
	Redis    Server = "POSTBUS_REDIS_URL"
	Kafka    Server = "POSTBUS_KAFKA_BROKERS" // host:port, several separated by commas
	RabbitMQ Server = "POSTBUS_RABBITMQ_URL"
	SQS      Server = "POSTBUS_SQS_URL"
)

// URL is the server's address, empty when it is not set.
func (s Server) URL() string { return strings.TrimSpace(os.Getenv(string(s))) }

const answerTimeout = 10 * time.Second

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
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if err := s.ask(ctx); err != nil {
		return fmt.Errorf("%s: %w; `make servers-status` shows what runs", s, err)
	}
	return nil
}

// ask has the server answer whatever is cheapest.
func (s Server) ask(ctx context.Context) error {
	switch s {
	case Redis:
		options, err := redis.ParseURL(s.URL())
		if err != nil {
			return errors.New("no address of a Redis: write redis://host:port/db")
		}
		client := redis.NewClient(options)
		defer client.Close()
		return client.Ping(ctx).Err()
	case Kafka:
		client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(s.URL(), ",")...))
		if err != nil {
			return err
		}
		defer client.Close()
		return client.Ping(ctx)
	case RabbitMQ:
		if _, err := amqp.ParseURI(s.URL()); err != nil { // which would print it, with the password
			return errors.New("no address of a RabbitMQ: write amqp://user:password@host:port/")
		}
		conn, err := amqp.DialConfig(s.URL(), amqp.Config{Dial: amqp.DefaultDial(answerTimeout)})
		if err != nil {
			return err
		}
		return conn.Close()
	case SQS:
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL(), nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		return response.Body.Close() // any answer will do
	}
	conn, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}
