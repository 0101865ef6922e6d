package sqs

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

const fifoSuffix = ".fifo"

// QueueName is the default of the configs' QueueName: the queue, or SNS topic, of
// a topic of events. A topic that is a possible queue name is that queue.
// Otherwise every dot, which queue names must not have, becomes a hyphen, and a
// ".fifo" inside goes to the end: "order.poison" is queue "order-poison", and
// "order.fifo.poison" is "order-poison.fifo".
func QueueName(topic string) string {
	if nameFault(topic) == "" {
		return topic
	}
	fifo := strings.HasSuffix(topic, fifoSuffix) || strings.Contains(topic, fifoSuffix+".")
	name := strings.TrimSuffix(strings.ReplaceAll(topic, fifoSuffix+".", "."), fifoSuffix)
	name = strings.ReplaceAll(name, ".", "-")
	if fifo {
		name += fifoSuffix
	}
	return name
}

// FIFOQueueName is a QueueName for those who publish all topics to FIFO queues:
// "order" goes to "order.fifo".
func FIFOQueueName(topic string) string {
	name := QueueName(topic)
	if isFIFO(name) {
		return name
	}
	return name + fifoSuffix
}

func isFIFO(name string) bool { return strings.HasSuffix(name, fifoSuffix) }

// nameFault is what is wrong with the name of a queue, or "". Source:
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-queues.html.
func nameFault(name string) string { return faultOfName(name, 80) }

// topicNameFault is the same for an SNS topic; source: Name of
// https://docs.aws.amazon.com/sns/latest/api/API_CreateTopic.html.
func topicNameFault(name string) string { return faultOfName(name, 256) }

func faultOfName(name string, longest int) string {
	switch {
	case name == "":
		return "the name is empty"
	case len(name) > longest:
		return fmt.Sprintf("the name %.100q has %d characters: %d are allowed", name, len(name), longest)
	}
	base := strings.TrimSuffix(name, fifoSuffix)
	for _, c := range []byte(base) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return fmt.Sprintf("the name %q has a %q: letters, digits, hyphens and underscores are allowed, and %s at the end", name, c, fifoSuffix)
		}
	}
	if base == "" {
		return fmt.Sprintf("the name %q is nothing but a suffix", name)
	}
	return ""
}

// GroupID is the MessageGroupId of a partition key: the key itself, or, if it has
// more than 128 characters or others than SQS allows there (printable ASCII
// without the space), "sha256-" and its SHA-256 in hex.
func GroupID(key string) string {
	if isToken(key) {
		return key
	}
	return digest(key)
}

// isToken says whether s can be a MessageGroupId or MessageDeduplicationId; source:
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html.
func isToken(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256-" + hex.EncodeToString(sum[:])
}
