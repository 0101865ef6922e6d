package redisstream_test

import (
	"testing"

	"github.com/postbus/postbus/internal/brokertest"
	"github.com/postbus/postbus/internal/brokertest/onredis"
)

func TestConformance(t *testing.T) { brokertest.Run(t, onredis.Ours()) }

func TestConformanceInShards(t *testing.T) { brokertest.Run(t, onredis.Sharded()) }

func init() { brokertest.Register(onredis.Ours(), onredis.Sharded()) }
