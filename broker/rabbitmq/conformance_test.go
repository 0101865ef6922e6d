package rabbitmq_test

import (
	"testing"

	"github.com/postbus/postbus/internal/brokertest"
	"github.com/postbus/postbus/internal/brokertest/onrabbitmq"
)

func TestConformance(t *testing.T) { brokertest.Run(t, onrabbitmq.Ours()) }

func init() { brokertest.Register(onrabbitmq.Ours()) }
