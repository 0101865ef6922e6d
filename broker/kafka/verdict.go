package kafka

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/outbox"
)

// A verdict is what an answer of Kafka means for the message it refused.
// Source of the codes: https://kafka.apache.org/protocol.html#protocol_error_codes
// and what a broker answers to a Produce request, in its ReplicaManager and
// UnifiedLog. Kafka takes a batch whole or not at all.
type verdict struct {
	status outbox.Status
	kind   error
	wayOut string

	// about one record of the batch, and Kafka does not say which: the batch is
	// sent again in smaller ones until it is found.
	oneOfBatch bool
}

var verdicts = map[*kerr.Error]verdict{
	kerr.MessageTooLarge:    {outbox.Permanent, outbox.ErrPermanent, "publish less, or raise the topic's max.message.bytes", true},
	kerr.RecordListTooLarge: {outbox.Permanent, outbox.ErrPermanent, "publish less, or raise the topic's segment.bytes", true},
	kerr.InvalidTimestamp:   {outbox.Permanent, outbox.ErrPermanent, "the event's time lies outside of what the topic's message.timestamp.before.max.ms and .after.max.ms allow", true},
	kerr.InvalidRecord:      {outbox.Permanent, outbox.ErrPermanent, "the topic takes no such record: one without a key on a compacted topic, for example", true},
	kerr.PolicyViolation:    {outbox.Permanent, outbox.ErrPermanent, "a policy of the cluster forbids it", true},

	// The topic, or this user's rights on it: the same answer every time.
	kerr.TopicAuthorizationFailed:           {outbox.Permanent, outbox.ErrPermanent, "allow this user Write and Describe on the topic", false},
	kerr.InvalidTopicException:              {outbox.Permanent, outbox.ErrPermanent, "rename the topic", false},
	kerr.UnsupportedForMessageFormat:        {outbox.Permanent, outbox.ErrPermanent, "raise the topic's message.format.version", false},
	kerr.UnsupportedCompressionType:         {outbox.Permanent, outbox.ErrPermanent, "choose another compression by kgo.ProducerBatchCompression", false},
	kerr.TransactionalIDAuthorizationFailed: {outbox.Permanent, outbox.ErrPermanent, "remove the transactional id", false},

	// It may be created yet, or be known to other brokers already: tried again, and
	// given up by whoever counts.
	kerr.UnknownTopicOrPartition: {outbox.Passing, nil, "create the topic (kafka.Topology does), or correct its name; nothing is created by publishing", false},
	kerr.UnknownTopicID:          {outbox.Passing, nil, "the topic was removed and created again: it may pass", false},

	// This user's rights on the cluster: nothing goes until they are given.
	kerr.ClusterAuthorizationFailed: {outbox.Passing, outbox.ErrUnavailable, "allow this user IdempotentWrite on the cluster", false},
	kerr.SaslAuthenticationFailed:   {outbox.Passing, outbox.ErrUnavailable, "the user or the password is wrong", false},
	kerr.NotEnoughReplicas:          {outbox.Passing, outbox.ErrUnavailable, "fewer replicas are in sync than the topic's min.insync.replicas asks for", false},
	kerr.KafkaStorageError:          {outbox.Passing, outbox.ErrUnavailable, "the leader's disk fails: look at its log", false},
}

// judge finds the verdict on what franz-go says of a record that was not added.
func judge(err error) verdict {
	if answer := (*kerr.Error)(nil); errors.As(err, &answer) {
		if v, known := verdicts[answer]; known {
			return v
		}
		if answer.Retriable {
			return verdict{status: outbox.Passing, kind: outbox.ErrUnavailable, wayOut: "it should pass"}
		}
		return verdict{status: outbox.Passing, wayOut: "it may pass"}
	}
	return verdict{status: outbox.Passing, kind: outbox.ErrUnavailable, wayOut: "it should pass"}
}

// answered says that an error holds what a broker has answered.
func answered(err error) bool {
	answer := (*kerr.Error)(nil)
	return errors.As(err, &answer)
}

// givenUp says that franz-go has not sent a record because it was told not to.
func givenUp(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, kgo.ErrClientClosed)
}
