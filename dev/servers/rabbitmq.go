package main

import (
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/postbus/postbus/internal/brokerserver"
	"github.com/postbus/postbus/internal/testkit/process"
)

var rabbitmq = &server{
	key: "rabbitmq", title: "RabbitMQ 3", variable: "POSTBUS_RABBITMQ_URL",
	answers: answersAsRabbitMQ,
	start:   startRabbitMQ,
	missing: rabbitmqServer.missing,
	stop:    syscall.SIGTERM,

	composePort: 5672,
	composeURL:  brokerserver.RabbitMQURL,
}

var rabbitmqServer = program{
	name: "rabbitmq-server", folders: brokerserver.RabbitMQFolders(),
	lack: lack{
		debian: "rabbitmq-server", fedora: "rabbitmq-server", brew: "rabbitmq",
		byHand:   "a rabbitmq-server of 3.10 or later, and its Erlang (erl, epmd), anywhere in PATH",
		variable: "POSTBUS_RABBITMQ_URL=amqp://user:password@host:5672/",
	},
}

func startRabbitMQ(l local) (record, *process.Process, error) {
	program, err := l.program(rabbitmqServer)
	if err != nil {
		return record{}, nil, err
	}
	r := brokerserver.RabbitMQ{Server: l.broker(program, "")}
	p, err := r.Start()
	return record{URL: r.URL()}, p, err
}

// dialPatience is how long a server of somebody else's may take to be reached.
const dialPatience = 3 * time.Second

func answersAsRabbitMQ(address string, foreign bool) error {
	secure := strings.HasPrefix(address, "amqps://")
	addr, err := hostPort(address, map[bool]string{false: "5672", true: "5671"}[secure])
	if err != nil {
		return err
	}
	if !secure {
		return brokerserver.RabbitMQAnswers(addr)
	}
	conn, err := net.DialTimeout("tcp", addr, dialPatience) // TLS: that somebody listens has to do
	if err != nil {
		return err
	}
	return conn.Close()
}
