package main

import (
	"syscall"

	"github.com/postbus/postbus/internal/brokerserver"
	"github.com/postbus/postbus/internal/testkit/process"
)

// elasticmq serves SQS.
var elasticmq = &server{
	key: "elasticmq", title: "ElasticMQ (SQS)", variable: "POSTBUS_SQS_URL",
	answers: answersAsAWS,
	start:   startElasticMQ,
	missing: elasticmqJars.missing("POSTBUS_SQS_URL=http://host:9324"),
	stop:    syscall.SIGTERM,

	composePort: 9324,
	composeURL:  brokerserver.HTTPURL,
}

func startElasticMQ(l local) (record, *process.Process, error) {
	program, dir, err := elasticmqJars.obtain(l)
	if err != nil {
		return record{}, nil, err
	}
	e := brokerserver.ElasticMQ{Server: l.broker(program, dir)}
	p, err := e.Start()
	return record{URL: brokerserver.HTTPURL(e.Addr())}, p, err
}

func answersAsAWS(address string, _ bool) error {
	if _, err := hostPort(address, "80"); err != nil {
		return err
	}
	return brokerserver.HTTPAnswers(address)
}
