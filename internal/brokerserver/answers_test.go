package brokerserver

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// answering listens on a port and answers whatever it is asked with the same bytes.
func answering(t *testing.T, answer string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 100)) // what is asked does not matter
			_, _ = io.WriteString(conn, answer)
			conn.Close()
		}
	}()
	return l.Addr().String()
}

// Who does not speak the protocol is not taken for the server.
func TestStrangersAreToldFromServers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, answer string
		ask          func(addr string) error
		fits         bool
	}{
		{"Kafka", "\x00\x00\x00\x06\x00\x00\x00\x07\x00\x00", KafkaAnswers, true},
		{"Kafka with an error", "\x00\x00\x00\x06\x00\x00\x00\x07\x00\x23", KafkaAnswers, false},
		{"Redis for Kafka", "-ERR unknown command\r\n", KafkaAnswers, false},
		{"nobody for Kafka", "", KafkaAnswers, false},
		{"RabbitMQ", "\x01\x00\x00\x00\x00\x01\xf0\x00\x0a\x00\x0a", RabbitMQAnswers, true},
		{"AMQP 1.0 for RabbitMQ", "AMQP\x00\x01\x00\x00....", RabbitMQAnswers, false},
		{"nobody for RabbitMQ", "", RabbitMQAnswers, false},
	} {
		if err := c.ask(answering(t, c.answer)); (err == nil) != c.fits {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestHTTPAnswersWhateverIsNotAFault(t *testing.T) {
	t.Parallel()
	for status, fits := range map[int]bool{200: true, 403: true, 400: true, 500: false, 503: false} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		if err := HTTPAnswers(server.URL); (err == nil) != fits {
			t.Errorf("status %d: %v", status, err)
		}
		server.Close()
	}
}

func TestFindNamesWhereItHasLooked(t *testing.T) {
	if path, err := Find("sh", []string{"/nowhere"}); err != nil || path == "" {
		t.Errorf("from PATH: %q, %v", path, err)
	}
	t.Setenv("PATH", "")
	if path, err := Find("sh", []string{"/nowhere", "/bin"}); err != nil || path != "/bin/sh" {
		t.Errorf("from a folder: %q, %v", path, err)
	}
	if _, err := Find("sh", []string{"/nowhere"}); err == nil {
		t.Error("found in an empty PATH")
	}
}
