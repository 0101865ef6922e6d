package kafka_test

import (
	"testing"

	"github.com/postbus/postbus/internal/brokertest"
	"github.com/postbus/postbus/internal/brokertest/onkafka"
)

func TestConformance(t *testing.T) { brokertest.Run(t, onkafka.Ours()) }

func init() { brokertest.Register(onkafka.Ours()) }
