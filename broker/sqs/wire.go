package sqs

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/postbus/postbus/events"
)

// The attributes of a message beside one per header, as watermill-aws'
// DefaultMarshalerUnmarshaler writes it, and two of our own for what that one
// cannot write.
const (
	attrUUID = "_watermill_message_uuid"

	// attrEncoding: the body is not the payload itself.
	attrEncoding   = "postbus_encoding"
	encodingBase64 = "base64" // the payload in base64: it is not text that SQS takes
	encodingEmpty  = "empty"  // the payload is empty, which SQS does not take: the body is a hyphen
	emptyBody      = "-"

	// attrMetadata: a JSON object of the headers that are no attributes of their own.
	attrMetadata = "postbus_metadata"
)

// maxAttributes is what SQS allows, and what SNS hands on raw to SQS: a message
// with more is discarded there. Sources:
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html,
// https://docs.aws.amazon.com/sns/latest/dg/sns-message-attributes.html.
const maxAttributes = 10

const dataType = "String"

// Metadata that the Subscriber sets on the messages it hands over. It is about
// the delivery: what a publisher has written under these names is dropped.
const (
	// HeaderDeliveryCount: how often this message has been received from the queue,
	// this time included ("1" for the first), as SQS counts it
	// (ApproximateReceiveCount): over all consumers.
	HeaderDeliveryCount = "postbus_delivery_count"
	// HeaderQueue: the name of the queue the message was received from.
	HeaderQueue = "postbus_queue"
	// HeaderMessageID: the id that SQS has given the message.
	HeaderMessageID = "postbus_message_id"
	// HeaderGroupID: the MessageGroupId; only on messages that have one.
	HeaderGroupID = "postbus_group_id"
	// HeaderSentTime: when SQS got the message: RFC 3339, UTC.
	HeaderSentTime = "postbus_sent_time"
	// HeaderUndecodable: why the message could not be read. It stands in for what is
	// in the queue: its UUID is derived from the queue and the message's id, its
	// payload is a RawMessage in JSON. It will never be handled: poison it.
	HeaderUndecodable = "postbus_undecodable"
)

// In metadata of messages for Publish, as watermill-aws' SNS publisher reads it:
// they are not attributes, but what they say.
const (
	metadataGroup = "MessageGroupId"
	metadataDedup = "MessageDeduplicationId"
)

type attribute struct{ name, value string }

func (a attribute) size() int { return len(a.name) + len(dataType) + len(a.value) }

// An entry is one message as it goes out.
type entry struct {
	index int // of the call's messages
	id    string

	body         string
	attributes   []attribute
	group, dedup string // of FIFO queues and topics
	bytes        int    // as SQS counts them
}

// encode writes message i of src. The text says what is wrong with it.
func encode(src source, i int, fifo bool) (entry, string) {
	e := entry{index: i, id: src.id(i)}
	if e.id != "" {
		if !isText(e.id) {
			return e, "its UUID has characters that SQS does not allow"
		}
		e.attributes = append(e.attributes, attribute{attrUUID, e.id})
	}
	switch payload := src.payload(i); {
	case len(payload) == 0:
		e.body = emptyBody
		e.attributes = append(e.attributes, attribute{attrEncoding, encodingEmpty})
	case isText(payload):
		e.body = string(payload)
	default:
		e.body = base64.StdEncoding.EncodeToString(payload)
		e.attributes = append(e.attributes, attribute{attrEncoding, encodingBase64})
	}
	if fault := e.addHeaders(src, i); fault != "" {
		return e, fault
	}
	if fifo {
		e.group, e.dedup = src.group(i), src.dedup(i)
		if e.group == "" {
			return e, fmt.Sprintf("it has no %s in its metadata, and a FIFO queue or topic orders by it: set it", events.HeaderPartitionKey)
		}
	}
	e.bytes = len(e.body)
	for _, a := range e.attributes {
		e.bytes += a.size()
	}
	return e, ""
}

// addHeaders makes an attribute of each header. If there are more than fit, only
// those for routing and tracing become attributes; the others, and those that
// cannot be attributes (empty, other characters), go into attrMetadata.
func (e *entry) addHeaders(src source, i int) (fault string) {
	start := len(e.attributes)
	var packed map[string]string
	pack := func(name, value string) {
		if packed == nil {
			packed = make(map[string]string)
		}
		packed[name] = value
	}
	src.eachHeader(i, func(name, value string) {
		switch {
		case name == attrUUID || name == attrEncoding || name == attrMetadata:
			fault = fmt.Sprintf("the metadata name %s is reserved; rename it", name)
		case !utf8.ValidString(name) || !utf8.ValidString(value):
			fault = fmt.Sprintf("its metadata %q is not UTF-8", name)
		case value != "" && isText(value) && isAttributeName(name):
			e.attributes = append(e.attributes, attribute{name, value})
		default:
			pack(name, value)
		}
	})
	if fault != "" {
		return fault
	}
	total := len(e.attributes)
	if packed != nil {
		total++
	}
	if total > maxAttributes {
		kept := e.attributes[:start]
		for _, a := range e.attributes[start:] {
			if isRouting(a.name) {
				kept = append(kept, a)
			} else {
				pack(a.name, a.value)
			}
		}
		e.attributes = kept
	}
	if packed == nil {
		return ""
	}
	object, err := json.Marshal(packed)
	if err != nil || !isText(object) {
		return "its metadata cannot be written as text"
	}
	e.attributes = append(e.attributes, attribute{attrMetadata, string(object)})
	return ""
}

// isRouting: at most seven, so that with attrUUID, attrEncoding and attrMetadata
// they are ten.
func isRouting(name string) bool {
	switch name {
	case events.HeaderEventType, events.HeaderSchemaVersion, events.HeaderPartitionKey, events.HeaderContentType,
		events.HeaderPosition, events.HeaderTraceParent, events.HeaderTraceState:
		return true
	}
	return false
}

// isAttributeName: source is Name of
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html#sqs-message-attributes.
func isAttributeName(name string) bool {
	if name == "" || len(name) > 256 || name[0] == '.' || name[len(name)-1] == '.' || strings.Contains(name, "..") {
		return false
	}
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	lower := strings.ToLower(name)
	return !strings.HasPrefix(lower, "aws.") && !strings.HasPrefix(lower, "amazon.")
}
