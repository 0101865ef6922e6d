package outbox

import "strconv"

// owner is whoever has a position in the log. Names are one space: a relay and a
// durable handler cannot share one.
type owner struct{ kind, name string }

const (
	kindRelay   = "relay"
	kindHandler = "handler" // durable
)

// String names it in errors.
func (o owner) String() string {
	if o.kind == kindHandler {
		return "durable handler " + strconv.Quote(o.name)
	}
	return "relay " + strconv.Quote(o.name)
}
