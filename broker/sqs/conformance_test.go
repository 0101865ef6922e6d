package sqs_test

import (
	"testing"

	"github.com/postbus/postbus/internal/brokertest"
	"github.com/postbus/postbus/internal/brokertest/onsqs"
)

func TestConformance(t *testing.T) { brokertest.Run(t, onsqs.FIFO()) }

func TestConformanceOfStandardQueues(t *testing.T) { brokertest.Run(t, onsqs.Standard()) }

func init() { brokertest.Register(onsqs.FIFO(), onsqs.Standard()) }
