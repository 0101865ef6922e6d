package rabbitmq

import (
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"
)

// version is that of the server: what it has depends on it.
type version struct{ major, minor int }

// serverNow stands for a server that has everything.
var serverNow = version{4, 0}

func (v version) before(major, minor int) bool {
	return v.major < major || v.major == major && v.minor < minor
}

// versionOf reads what the server has said of itself. One that is silent is
// taken for a new one.
func versionOf(server amqp.Table) version {
	text, _ := server["version"].(string)
	var v version
	if _, err := fmt.Sscanf(text, "%d.%d", &v.major, &v.minor); err != nil {
		return serverNow
	}
	return v
}
