package redisstream

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// once is a command that go-redis must not send twice. By default go-redis
// sends a command again after a broken connection or a timeout (MaxRetries is
// 3), although the first one may have been carried out: an XADD then stands in
// the stream twice, and behind later ones; what an XREADGROUP had read stays
// with this consumer unseen. The redirects of a Redis Cluster are still
// followed: a node that answers MOVED or ASK has done nothing.
type once struct{ redis.Cmder }

func (once) NoRetry() bool { return true }

// runOnce sends the commands that build queues, once, in one round trip, and
// waits for the answers. The error is the first of theirs; each has its own too.
func runOnce(ctx context.Context, client redis.UniversalClient, build func(redis.Pipeliner)) error {
	queue := client.Pipeline()
	build(queue)
	cmds := queue.Cmds()
	if len(cmds) == 1 {
		return client.Process(ctx, once{cmds[0]})
	}
	pipe := client.Pipeline()
	for _, cmd := range cmds {
		_ = pipe.Process(ctx, once{cmd}) // queues it
	}
	_, err := pipe.Exec(ctx)
	return err
}

// clientFaults are the settings of a client under which this package cannot
// keep what it promises; config is the name of the Config that holds it. A
// client of another type than go-redis' own cannot be looked into and is taken
// as it is.
func clientFaults(config string, client redis.UniversalClient) (faults []error) {
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s.Client "+format, append([]any{config}, args...)...))
	}
	timeouts := func(read, write time.Duration) {
		// go-redis keeps "no timeout" as 0 and "no deadlines at all" as -1.
		if read <= 0 || write <= 0 {
			fault("has its ReadTimeout or WriteTimeout switched off, so that a server that stops answering would hold " +
				"goroutines and connections for ever: leave both at go-redis' default, or set them")
		}
	}
	switch c := client.(type) {
	case nil:
		fault("is nil: give a client of go-redis v9, such as redis.NewClient(...)")
	case *redis.Client:
		if c == nil {
			fault("is a nil %T: give the result of redis.NewClient(...)", c)
			return faults
		}
		timeouts(c.Options().ReadTimeout, c.Options().WriteTimeout)
	case *redis.ClusterClient:
		if c == nil {
			fault("is a nil %T: give the result of redis.NewClusterClient(...)", c)
			return faults
		}
		o := c.Options()
		timeouts(o.ReadTimeout, o.WriteTimeout)
		if o.ReadOnly || o.RouteByLatency || o.RouteRandomly {
			fault("reads from replicas (ReadOnly, RouteByLatency or RouteRandomly), whose pending entries are behind " +
				"the master's: give a client without these options")
		}
	case *redis.Ring:
		fault("is a %T, which moves a stream to another server while one is down, so that its entries lie in two "+
			"places: give a *redis.Client or a *redis.ClusterClient", c)
	}
	return faults
}
