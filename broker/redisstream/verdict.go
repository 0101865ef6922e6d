package redisstream

import (
	"strings"

	"github.com/postbus/postbus/outbox"
)

// A verdict is what an error reply of Redis means for the message it refused.
// Source of the codes: the shared error replies and the checks before a command
// runs in Redis' src/server.c (createSharedObjects, processCommand), XADD's own
// in src/t_stream.c, the scripting checks in src/script.c, and
// https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors.
// Redis answers each of them instead of adding, never after.
type verdict struct {
	prefix string
	status outbox.Status
	kind   error
	wayOut string
}

var verdicts = []verdict{
	// The server as a whole: says nothing about the message, so nothing is parked.
	{"OOM", outbox.Passing, outbox.ErrUnavailable, "free memory: trim what every group has consumed, or raise maxmemory"},
	{"READONLY", outbox.Passing, outbox.ErrUnavailable, "this server is a replica: a fail-over is under way, or the address is wrong"},
	{"LOADING", outbox.Passing, outbox.ErrUnavailable, "the server is still loading its data"},
	{"MISCONF", outbox.Passing, outbox.ErrUnavailable, "the server cannot persist: look at its disk and its log"},
	{"NOREPLICAS", outbox.Passing, outbox.ErrUnavailable, "fewer replicas are connected than min-replicas-to-write asks for"},
	{"MASTERDOWN", outbox.Passing, outbox.ErrUnavailable, "the replica has lost its master"},
	{"CLUSTERDOWN", outbox.Passing, outbox.ErrUnavailable, "the cluster does not serve this stream's slot"},
	{"BUSY", outbox.Passing, outbox.ErrUnavailable, "a script has kept the server busy for longer than busy-reply-threshold"},
	{"TRYAGAIN", outbox.Passing, outbox.ErrUnavailable, "the stream's slot is being moved"},
	{"MOVED", outbox.Passing, outbox.ErrUnavailable, "the client followed too many redirects: is it a cluster client?"},
	{"ASK", outbox.Passing, outbox.ErrUnavailable, "the client followed too many redirects: is it a cluster client?"},
	{"NOAUTH", outbox.Passing, outbox.ErrUnavailable, "give the client a user and a password"},
	{"WRONGPASS", outbox.Passing, outbox.ErrUnavailable, "the client's user or password is wrong"},
	{"ERR max number of clients", outbox.Passing, outbox.ErrUnavailable, "raise maxclients, or open fewer connections"},

	// The stream, or this user's rights on it: the same answer every time.
	{"WRONGTYPE", outbox.Permanent, outbox.ErrPermanent, "the key of that name is no stream: rename the topic or the key"},
	{"NOPERM", outbox.Permanent, outbox.ErrPermanent, "allow this ACL user the stream and the commands EVAL, EVALSHA and XADD"},
	{"ERR The user executing the script", outbox.Permanent, outbox.ErrPermanent, "allow this ACL user XADD"},
	{"ERR The stream has exhausted", outbox.Permanent, outbox.ErrPermanent, "the stream's last id is the highest there is: start a new stream"},
	{"ERR Elements are too large", outbox.Permanent, outbox.ErrPermanent, "lower PublisherConfig.MaxMessageBytes"},
}

// judge finds the verdict on a reply. known is false for a reply that is not
// in the table: it may pass, and if it is about the whole script, it does not
// say whether the script had begun.
func judge(reply string) (v verdict, known bool) {
	// Before Redis 7 an error caught by a script begins with "@user_script:1: -".
	if strings.HasPrefix(reply, "@user_script") {
		if _, rest, ok := strings.Cut(reply, ": "); ok {
			reply = rest
		}
	}
	reply = strings.TrimPrefix(reply, "-")
	for _, v := range verdicts {
		if strings.HasPrefix(reply, v.prefix) {
			return v, true
		}
	}
	return verdict{status: outbox.Passing, wayOut: "it may pass"}, false
}

func refused(stream, messageID, reply string, v verdict) outbox.Result {
	return outbox.Result{Status: v.status, Err: &RefusedError{
		Stream: stream, MessageID: messageID, Reply: reply, kind: v.kind, wayOut: v.wayOut}}
}
