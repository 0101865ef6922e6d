package rabbitmq

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func TestConfigFaults(t *testing.T) {
	good := ConnectionConfig{URL: "amqp://u:p@h/"}
	publisher := func(change func(*PublisherConfig)) error {
		c := PublisherConfig{Connection: good}
		change(&c)
		_, err := NewPublisher(c)
		return err
	}
	subscriber := func(change func(*SubscriberConfig)) error {
		c := SubscriberConfig{Connection: good}
		change(&c)
		_, err := NewSubscriber(c)
		return err
	}
	for text, err := range map[string]error{
		"ConnectionConfig.URL is empty":         publisher(func(c *PublisherConfig) { c.Connection.URL = "" }),
		"ConnectionConfig.URL is no AMQP URL":   publisher(func(c *PublisherConfig) { c.Connection.URL = "http://h" }),
		"percent-encoded":                       subscriber(func(c *SubscriberConfig) { c.Connection.URL = "amqp://u:s3cr#t@h:x/" }),
		"nothing would be encrypted":            publisher(func(c *PublisherConfig) { c.Connection.TLS = &tls.Config{} }),
		"ConnectTimeout is -1s":                 publisher(func(c *PublisherConfig) { c.Connection.ConnectTimeout = -time.Second }),
		"Heartbeat is 1ms":                      publisher(func(c *PublisherConfig) { c.Connection.Heartbeat = time.Millisecond }),
		"nothing at index 0":                    publisher(func(c *PublisherConfig) { c.Connection.SASL = []amqp.Authentication{nil} }),
		"PublisherConfig.Kind is Kind(9)":       publisher(func(c *PublisherConfig) { c.Kind = 9 }),
		"PublisherConfig.RoutingKey is Routing": publisher(func(c *PublisherConfig) { c.RoutingKey = 9 }),
		"which has no name":                     publisher(func(c *PublisherConfig) { c.Kind, c.Exchange = DefaultExchange, "x" }),
		"which is the topic":                    publisher(func(c *PublisherConfig) { c.Kind, c.RoutingKey = DefaultExchange, ByPartitionKey }),
		"reserved for RabbitMQ itself":          publisher(func(c *PublisherConfig) { c.Exchange = "amq.fanout" }),
		"PublisherConfig.Timeout is -1ns":       publisher(func(c *PublisherConfig) { c.Timeout = -1 }),
		"PublisherConfig.MaxMessageBytes":       publisher(func(c *PublisherConfig) { c.MaxMessageBytes = 1 << 30 }),
		"Topology.Queues":                       publisher(func(c *PublisherConfig) { c.Topology = &Topology{Queues: []Queue{{}}} }),
		"both name the queue":                   subscriber(func(c *SubscriberConfig) { c.Group, c.QueueName = "g", func(s string) string { return s } }),
		"SubscriberConfig.MaxInFlight is -1":    subscriber(func(c *SubscriberConfig) { c.MaxInFlight, c.Prefetch = -1, 1 }),
		"leave handlers idle":                   subscriber(func(c *SubscriberConfig) { c.MaxInFlight, c.Prefetch = 10, 5 }),
		"SubscriberConfig.DeadLetterAfter":      subscriber(func(c *SubscriberConfig) { c.DeadLetterAfter = -1 }),
		"SubscriberConfig.NackDelay is":         subscriber(func(c *SubscriberConfig) { c.NackDelay = -1 }),
		"SubscriberConfig.CloseTimeout is":      subscriber(func(c *SubscriberConfig) { c.CloseTimeout = -1 }),
		"raise consumer_timeout":                subscriber(func(c *SubscriberConfig) { c.HandlerLimit = 20 * time.Minute }),
	} {
		if !errors.Is(err, ErrInvalidConfig) || !strings.Contains(fmt.Sprint(err), text) || strings.Count(fmt.Sprint(err), "\n") != 0 {
			t.Errorf("want one fault with %q, got %v", text, err)
		}
		if strings.Contains(fmt.Sprint(err), "s3cr") {
			t.Errorf("the text tells the password: %v", err)
		}
	}
	if err := publisher(func(c *PublisherConfig) { c.Timeout, c.Kind, c.Connection.URL = -1, 9, "" }); strings.Count(fmt.Sprint(err), "\n") != 2 {
		t.Errorf("want three faults: %v", err)
	}
}

// A password appears nowhere, however a config or what is made of it is printed.
func TestSecretsStaySecret(t *testing.T) {
	const secret = "s3cr3t-Pa55"
	for _, address := range []string{"amqp://user:" + secret + "@host:1/v", "amqp://user:" + secret + "@ho st", "://" + secret} {
		c := ConnectionConfig{URL: address, SASL: []amqp.Authentication{&amqp.PlainAuth{Username: "u", Password: secret}}}
		pc, sc := PublisherConfig{Connection: c}, SubscriberConfig{Connection: c}
		p, err1 := NewPublisher(pc)
		s, err2 := NewSubscriber(sc)
		var told lines
		told.logger().Info("x", "connection", c, "publisher", pc, "subscriber", sc, "pointer", &c)
		slog.New(slog.NewJSONHandler(&told, nil)).Info("x", "connection", c)
		texts := []string{told.String(), fmt.Sprint(err1, err2)}
		for _, v := range []any{c, &c, pc, &pc, sc, &sc, p, s} {
			texts = append(texts, fmt.Sprintf("%v", v), fmt.Sprintf("%+v", v), fmt.Sprintf("%#v", v), fmt.Sprintf("%s", v))
		}
		for _, text := range texts {
			if strings.Contains(text, secret) {
				t.Errorf("told: %s", text)
			}
		}
		if p != nil {
			p.Close()
			s.Close()
		}
	}
}
