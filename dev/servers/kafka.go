package main

import (
	"net"
	"strings"
	"syscall"

	"github.com/postbus/postbus/internal/brokerserver"
	"github.com/postbus/postbus/internal/testkit/process"
)

var kafka = &server{
	key: "kafka", title: "Kafka 4", variable: "POSTBUS_KAFKA_BROKERS",
	answers: answersAsKafka,
	start:   startKafka,
	missing: kafkaJars.missing("POSTBUS_KAFKA_BROKERS=host:9092,host:9092"),
	stop:    syscall.SIGTERM,

	composePort:  9092,
	composeURL:   func(addr string) string { return addr },
	composeKnows: "POSTBUS_KAFKA_PORT",
}

func startKafka(l local) (record, *process.Process, error) {
	program, dir, err := kafkaJars.obtain(l)
	if err != nil {
		return record{}, nil, err
	}
	k := brokerserver.Kafka{Server: l.broker(program, dir)}
	p, err := k.Start()
	return record{URL: k.Addr()}, p, err
}

// broker is what the servers of package brokerserver are started with.
func (l local) broker(program, jars string) brokerserver.Server {
	return brokerserver.Server{Program: program, Jars: jars, Dir: l.dir, Port: l.port, Account: l.account}
}

// answersAsKafka asks each broker of a list. Of one of somebody else's it only
// knows that it is there: it may want TLS.
func answersAsKafka(address string, foreign bool) error {
	for _, addr := range strings.Split(address, ",") {
		if !foreign {
			if err := brokerserver.KafkaAnswers(addr); err != nil {
				return err
			}
			continue
		}
		conn, err := net.DialTimeout("tcp", strings.TrimSpace(addr), dialPatience)
		if err != nil {
			return err
		}
		conn.Close()
	}
	return nil
}
