package sqs_test

import (
	"testing"

	"github.com/postbus/postbus/internal/brokertest"
	"github.com/postbus/postbus/internal/brokertest/onsqs"
)

func TestConformance(t *testing.T) { brokertest.Run(t, onsqs.FIFO()) }

// Standard queues differ in what SQS promises of them, and in little that is ours.
func TestConformanceOfStandardQueues(t *testing.T) {
	if !brokertest.Long {
		t.Skip("in the long form only, POSTBUS_TEST_LONG=1: the short one measures FIFO queues")
	}
	brokertest.Run(t, onsqs.Standard())
}

func init() { brokertest.Register(onsqs.FIFO(), onsqs.Standard()) }
