// Command shop is a small monolith on Postbus, and a demonstration that takes
// it through a bad day: `make demo`.
//
// To learn the library, read in this order:
//
//   - internal/order, payment, stock, mail, sales: domain packages, as you would
//     write them. They publish facts through an interface of their own and import
//     nothing of Postbus.
//   - wiring.go: the file that knows both sides: who publishes, who listens in
//     the transaction, after the commit, behind the broker; and the relay.
//   - broker.go, and that one of broker_redis.go, broker_kafka.go,
//     broker_rabbitmq.go and broker_sqs.go that you use: the adapter's settings.
//   - report.go, rebuild.go: a durable handler that keeps a projection, and how
//     that is written anew.
//   - shop.go: what the shop can do, each in one transaction.
//
// The files demo_*.go are the demonstration: customers, failing parts, processes
// that are killed, and a ledger in Postgres that counts what became of each event.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	if len(os.Args) > 1 && commands[os.Args[1]] != nil {
		os.Exit(childMain(os.Args[1], os.Args[2:]))
	}
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: go run ./example/shop [-broker %s]\nShows Postbus on the servers of `make servers-up` for about half a minute; `make demo BROKER=...` does both.\n", strings.Join(kindNames(), "|"))
	}
	broker := flag.String("broker", kinds[0].name, "")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	os.Exit(run(*broker))
}

// run is the demonstration, from the connections to the last line.
func run(broker string) (status int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // the second Ctrl-C does not wait

	show := newDisplay(os.Stdout)
	result, err := demonstrate(ctx, broker, show)
	show.end()
	switch {
	case ctx.Err() != nil && !errors.Is(err, errLeftBehind):
		fmt.Println("demo: interrupted; schema, topics and processes of this run are gone")
		return 130
	case errors.Is(err, errNoServers):
		fmt.Fprintln(os.Stderr, err)
		return 1
	case err != nil:
		fmt.Println("demo: FAILED " + strings.ReplaceAll(err.Error(), "\n", "; "))
		return 1
	}
	fmt.Println(result.line())
	if !result.ok() {
		return 1
	}
	return 0
}
