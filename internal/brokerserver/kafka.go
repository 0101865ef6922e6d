package brokerserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/postbus/postbus/internal/testkit/process"
)

// Kafka is one Apache Kafka 4 in KRaft mode, broker and controller in one
// process.
type Kafka struct {
	Server
	SASLPort int // of a second listener, which asks for a name and a password; 0 for none
}

// Names and passwords on the listener of SASLPort, by SASL/PLAIN: one that may
// everything, and one that may nothing. Whoever comes by Port may everything.
const (
	KafkaUser, KafkaPassword         = "postbus", "postbus-secret"
	KafkaPowerless, KafkaPowerlessPw = "powerless", "powerless-secret"
)

// kafkaCluster is any id: 16 bytes in base64, of which the tool refuses all
// that begin with a dash.
const kafkaCluster = "UG9zdGJ1c1Bvc3RidXNQQQ"

// kafkaSettings: nothing is created by being named; one broker holds all
// replicas; a test does not wait for a rebalance or for a dead consumer longer
// than it must. The numbers of partitions keep the start short.
const kafkaSettings = `process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT
inter.broker.listener.name=PLAINTEXT
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=500
group.consumer.heartbeat.interval.ms=1000
log.index.size.max.bytes=1048576
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:` + KafkaUser + `
sasl.enabled.mechanisms=PLAIN
`

// Start starts it, and makes its data folder the first time.
func (k Kafka) Start() (*process.Process, error) {
	controller, err := process.FreePort()
	if err != nil {
		return nil, err
	}
	if err := k.write("server.properties", k.properties(controller)); err != nil {
		return nil, err
	}
	if _, err := os.Stat(k.path("data/meta.properties")); errors.Is(err, os.ErrNotExist) {
		err := process.Run(k.Account, k.Dir, "", k.Program, k.java("128m", "kafka.tools.StorageTool",
			"format", "--cluster-id", kafkaCluster, "--config", k.path("server.properties"))...)
		if err != nil {
			return nil, fmt.Errorf("make Kafka's data folder: %w", err)
		}
	}
	return process.Start(process.Spec{
		Program: k.Program,
		Args:    k.java("512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "kafka.Kafka", k.path("server.properties")),
		Dir:     k.Dir, Log: k.path("log"), Account: k.Account,
		DieWithParent: k.DieWithParent, ParentDeath: syscall.SIGKILL,
	})
}

// properties is its configuration. The one voter is told by its address, not
// written into the data: its port is another one at each start.
func (k Kafka) properties(controller int) string {
	var b strings.Builder
	b.WriteString(kafkaSettings)
	listeners := "PLAINTEXT://" + k.Addr()
	if k.SASLPort != 0 {
		listeners += ",SASL://" + addr(k.SASLPort)
		fmt.Fprintf(&b, "listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_%s=%q user_%s=%q;\n",
			KafkaUser, KafkaPassword, KafkaPowerless, KafkaPowerlessPw)
	}
	fmt.Fprintf(&b, "listeners=%s,CONTROLLER://%s\nadvertised.listeners=%s\ncontroller.quorum.voters=1@%s\nlog.dirs=%s\n",
		listeners, addr(controller), listeners, addr(controller), k.path("data"))
	for _, line := range k.Settings {
		fmt.Fprintln(&b, line)
	}
	return b.String()
}

// KafkaAnswers returns nil if a Kafka broker at host:port takes requests: it
// opens its port before it does.
func KafkaAnswers(addr string) error {
	conn, err := dial(addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	// ApiVersions, version 0: size, key 18, version, correlation id, no client id.
	request := []byte{0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff}
	if _, err := conn.Write(request); err != nil {
		return fmt.Errorf("ask %s for Kafka's versions: %w", addr, err)
	}
	var answer [10]byte // size, correlation id, error code
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return fmt.Errorf("ask %s for Kafka's versions: %w", addr, err)
	}
	if id := binary.BigEndian.Uint32(answer[4:]); id != 7 {
		return fmt.Errorf("ask %s for Kafka's versions: the answer is not Kafka's", addr)
	}
	if code := binary.BigEndian.Uint16(answer[8:]); code != 0 {
		return fmt.Errorf("ask %s for Kafka's versions: error code %d", addr, code)
	}
	return nil
}

// dial opens a connection with three seconds for all that happens on it.
func dial(addr string) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", addr, 3*time.Second)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}
