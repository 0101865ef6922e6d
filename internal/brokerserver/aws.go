package brokerserver

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/postbus/postbus/internal/testkit/process"
)

// ElasticMQ speaks SQS. Its queues and messages are in its memory, unless Keep
// has it write them down.
type ElasticMQ struct {
	Server
	Keep bool // in a database of the server's folder: slower, and a later start finds them
}

// Start starts it. It holds clients to the limits that the service has.
func (e ElasticMQ) Start() (*process.Process, error) {
	// A queue's address is made of the name that the client has called.
	config := fmt.Sprintf(`include classpath("application.conf")
node-address { protocol = http, host = "*", port = %[1]d, context-path = "" }
rest-sqs { enabled = true, bind-port = %[1]d, bind-hostname = "127.0.0.1", sqs-limits = strict }
rest-stats.enabled = false
`, e.Port)
	if e.Keep {
		config += fmt.Sprintf("queues-storage { enabled = true, path = %q }\n", e.path("queues.conf")) +
			fmt.Sprintf("messages-storage { enabled = true, uri = %q }\n", "jdbc:h2:"+e.path("messages")+";WRITE_DELAY=0")
	}
	if err := e.write("elasticmq.conf", config+strings.Join(e.Settings, "\n")+"\n"); err != nil {
		return nil, err
	}
	return process.Start(process.Spec{
		Program: e.Program,
		Args:    e.java("384m", "-Dconfig.file="+e.path("elasticmq.conf"), "org.elasticmq.server.Main"),
		Dir:     e.Dir, Log: e.path("log"), Account: e.Account,
		DieWithParent: e.DieWithParent, ParentDeath: syscall.SIGKILL,
	})
}

// Moto speaks SNS and SQS, among much else. All is in its memory.
type Moto struct{ Server }

// motoScript is its own main, without a line in the log for each request.
const motoScript = `import logging, moto.server
logging.getLogger("werkzeug").setLevel(logging.WARNING)
moto.server.main()`

// Start starts it.
func (m Moto) Start() (*process.Process, error) {
	return process.Start(process.Spec{
		Program: m.Program, Args: []string{"-c", motoScript, "-H", "127.0.0.1", "-p", fmt.Sprint(m.Port)},
		Dir: m.Dir, Log: m.path("log"), Account: m.Account,
		DieWithParent: m.DieWithParent, ParentDeath: syscall.SIGKILL,
	})
}

// HTTPURL is the address of an AWS service on host:port.
func HTTPURL(addr string) string { return "http://" + addr }

// HTTPAnswers returns nil if the address answers any HTTP request at all: a
// refusal of what is not signed is an answer.
func HTTPAnswers(address string) error {
	client := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(strings.TrimRight(address, "/") + "/?Action=ListQueues")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode >= http.StatusInternalServerError {
		return fmt.Errorf("ask %s for its queues: %s", address, answer.Status)
	}
	return nil
}
