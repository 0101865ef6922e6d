package testkit

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/postbus/postbus/internal/brokerserver"
	"github.com/postbus/postbus/internal/testkit/process"
)

// PrivateKafkaBroker is a Kafka of one test's own. It acknowledges what it has
// handed to the kernel: its own death loses nothing of that, the machine's would.
type PrivateKafkaBroker struct {
	*PrivateBroker
	// SASLAddr is a second listener that asks for a name and a password by
	// SASL/PLAIN: brokerserver.KafkaUser may everything, and KafkaPowerless
	// nothing.
	SASLAddr string
}

// PrivateKafka makes and starts a Kafka: about six seconds. Settings are lines
// of its server.properties, and overrule ours.
func PrivateKafka(t testing.TB, settings ...string) *PrivateKafkaBroker {
	t.Helper()
	k := brokerserver.Kafka{Server: newServer(t, "Kafka", javaProgram, settings), SASLPort: freePort(t)}
	k.Jars = jars(t, brokerserver.KafkaJars)
	b := &PrivateBroker{t: t, name: "Kafka", addr: k.Addr(), url: k.Addr(), log: filepath.Join(k.Dir, "log"), start: k.Start}
	b.answers = func() error { return brokerserver.KafkaAnswers(b.addr) }
	b.run()
	return &PrivateKafkaBroker{PrivateBroker: b, SASLAddr: net.JoinHostPort("127.0.0.1", strconv.Itoa(k.SASLPort))}
}

// PrivateRabbitMQNode is a RabbitMQ of one test's own. A kill loses what a
// client has no confirm for, and messages that are not persistent. RabbitMQ
// confirms a declaration before it is on the disk: a queue declared in the last
// three seconds before a kill may be gone, or, a quorum queue, be there and answer
// nothing for ever (seen with 3.10). See Settle.
type PrivateRabbitMQNode struct {
	*PrivateBroker
	node *brokerserver.RabbitMQ
}

// PrivateRabbitMQ makes and starts a RabbitMQ: about seven seconds. Settings are
// lines of its rabbitmq.conf.
func PrivateRabbitMQ(t testing.TB, settings ...string) *PrivateRabbitMQNode {
	t.Helper()
	r := &brokerserver.RabbitMQ{Server: newServer(t, "RabbitMQ", rabbitmqProgram, settings)}
	b := &PrivateBroker{t: t, name: "RabbitMQ", addr: r.Addr(), url: r.URL(), log: filepath.Join(r.Dir, "log"), start: r.Start}
	b.answers = func() error { return brokerserver.RabbitMQAnswers(b.addr) }
	b.run()
	return &PrivateRabbitMQNode{PrivateBroker: b, node: r}
}

// Control runs rabbitmqctl on it, about two seconds, and returns what it
// prints. For a memory alarm: "set_vm_memory_high_watermark", "0"; to end it,
// the same with "0.4".
func (n *PrivateRabbitMQNode) Control(args ...string) string {
	n.t.Helper()
	out, err := n.node.Control(args...)
	if err != nil {
		n.t.Fatalf("control a private RabbitMQ: %v", err)
	}
	return out
}

// Settle has the node write down what has been declared so far, about two
// seconds: call it between declaring and the first Kill, unless the test is about
// just that.
func (n *PrivateRabbitMQNode) Settle() {
	n.t.Helper()
	n.Control("eval", "mnesia:sync_log(), [dets:sync(Table) || Table <- dets:all()], ok.")
}

// PrivateElasticMQ makes and starts an ElasticMQ, which speaks SQS: about four
// seconds. Other than the shared one it keeps queues and messages in files, and
// writes them, for the kernel to keep, before it answers; a kill makes it forget
// who had received what.
func PrivateElasticMQ(t testing.TB, settings ...string) *PrivateBroker {
	t.Helper()
	e := brokerserver.ElasticMQ{Server: newServer(t, "ElasticMQ", javaProgram, settings), Keep: true}
	e.Jars = jars(t, brokerserver.ElasticMQJars)
	b := &PrivateBroker{t: t, name: "ElasticMQ", addr: e.Addr(), url: brokerserver.HTTPURL(e.Addr()), log: filepath.Join(e.Dir, "log"), start: e.Start}
	b.answers = func() error { return brokerserver.HTTPAnswers(b.url) }
	b.run()
	return b
}

// newServer finds the program, and makes a folder and finds a port for it.
func newServer(t testing.TB, name string, program programOf, settings []string) brokerserver.Server {
	t.Helper()
	path, err := brokerserver.Find(program.name, program.folders())
	if err != nil {
		t.Fatalf("start a private %s: %v; %s", name, err, program.wayOut)
	}
	account, err := process.ServiceAccount()
	if err != nil {
		t.Fatalf("start a private %s: %v", name, err)
	}
	s := brokerserver.Server{Program: path, Dir: privateDir(t, account), Port: freePort(t), Settings: settings, Account: account, DieWithParent: true}
	if err := account.MakeDir(s.Dir); err != nil {
		t.Fatalf("start a private %s: %v", name, err)
	}
	return s
}

// programOf is what a server is started with, and what to do without it.
type programOf struct {
	name    string
	folders func() []string
	wayOut  string
}

var (
	javaProgram     = programOf{"java", brokerserver.JavaFolders, "install the Debian package default-jre-headless, or any Java of 17 or later"}
	rabbitmqProgram = programOf{"rabbitmq-server", brokerserver.RabbitMQFolders, "install the Debian package rabbitmq-server: Docker's is for the shared server only"}
)

// jars is the folder that the variable or .dev/env names.
func jars(t testing.TB, name string) string {
	t.Helper()
	folder, err := variable(name)
	if err == nil && folder == "" {
		err = fmt.Errorf("nothing names the folder of its jars")
	}
	if err != nil {
		what := strings.TrimSuffix(strings.TrimPrefix(name, "POSTBUS_"), "_JARS")
		t.Fatalf("start a private server (%s): %v; run `make servers-up`, which downloads them with Maven, or set %s", what, err, name)
	}
	return folder
}

func freePort(t testing.TB) int {
	t.Helper()
	port, err := process.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}
