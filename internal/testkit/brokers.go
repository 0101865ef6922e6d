package testkit

import (
	"net/url"
	"strings"
	"testing"

	"github.com/postbus/postbus/internal/brokerserver"
)

// Kafka are the addresses, host:port, of the shared Kafka. Nothing there is
// created by being named.
func Kafka(t testing.TB) []string {
	t.Helper()
	addresses := strings.Split(URL(t, KafkaServer), ",")
	for i := range addresses {
		addresses[i] = strings.TrimSpace(addresses[i])
	}
	return addresses
}

// RabbitMQ is the address of the shared RabbitMQ, for a user that may
// everything.
func RabbitMQ(t testing.TB) string {
	t.Helper()
	return URL(t, RabbitMQServer)
}

// RabbitMQPowerless is an address of RabbitMQ for a user that may log in to the
// same virtual host, and neither configure nor write nor read there. It needs a
// server that we have started ourselves.
func RabbitMQPowerless(t testing.TB, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal("change the user of RabbitMQ's address: it is not a URL")
	}
	u.User = url.UserPassword(brokerserver.RabbitMQPowerless, brokerserver.RabbitMQPowerlessPw)
	return u.String()
}

// SQS is the endpoint of the shared ElasticMQ, http://host:port. Any region and
// any credentials will do.
func SQS(t testing.TB) string {
	t.Helper()
	return URL(t, SQSServer)
}

// SNS is the endpoint of the shared moto, http://host:port, which is that of
// the SQS that its topics deliver to, too. Any region and any credentials will
// do.
func SNS(t testing.TB) string {
	t.Helper()
	return URL(t, SNSServer)
}
