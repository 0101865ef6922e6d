package sqs

import (
	"context"
	"strconv"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/postbus/postbus/outbox"
)

// A target is where messages go: a queue or an SNS topic.
type target struct {
	name     string
	address  string // a queue's URL, a topic's ARN
	fifo     bool
	maxBytes int // of a message, by the target's own MaximumMessageSize
	maxBatch int // of a request
}

// A service is what SQS and SNS have in common for a publisher.
type service interface {
	// find asks for the target of that name.
	find(ctx context.Context, name string) (*target, error)
	// send is one request, without retries. The replies are in the order of the
	// entries; one without an answer stays zero.
	send(ctx context.Context, t *target, entries []entry) ([]reply, error)
	nameFault(name string) string
}

type reply struct {
	accepted bool
	code     string // why it was refused
	message  string
	theirs   bool // the sender's fault
}

// maxEntries of a request, for SQS as for SNS.
const maxEntries = 10

// maxBytes is the largest message, and the largest batch, that SQS takes, and
// SNS where the topic allows it. Sources: SendMessageBatch in
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html,
// https://docs.aws.amazon.com/sns/latest/dg/large-message-payloads.html.
const maxBytes = 1 << 20

type sqsService struct{ client *awssqs.Client }

func (s sqsService) nameFault(name string) string { return nameFault(name) }

func (s sqsService) find(ctx context.Context, name string) (*target, error) {
	out, err := s.client.GetQueueUrl(ctx, &awssqs.GetQueueUrlInput{QueueName: &name}, once)
	if err != nil {
		return nil, err
	}
	t := &target{name: name, address: aws.ToString(out.QueueUrl), fifo: isFIFO(name), maxBytes: maxBytes, maxBatch: maxBytes}
	attributes, err := s.client.GetQueueAttributes(ctx, &awssqs.GetQueueAttributesInput{QueueUrl: out.QueueUrl,
		AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameMaximumMessageSize}}, once)
	if err != nil {
		// Who may only send is not told the limit, and lets SQS refuse.
		if v, _, _, answered := judgeCall(err); answered && v.is(outbox.ErrPermanent) && !v.is(ErrNoQueue) {
			return t, nil
		}
		return nil, err
	}
	if n, err := strconv.Atoi(attributes.Attributes[string(types.QueueAttributeNameMaximumMessageSize)]); err == nil && n > 0 {
		t.maxBytes = n
	}
	return t, nil
}

func (s sqsService) send(ctx context.Context, t *target, entries []entry) ([]reply, error) {
	in := &awssqs.SendMessageBatchInput{QueueUrl: &t.address, Entries: make([]types.SendMessageBatchRequestEntry, len(entries))}
	for i := range entries {
		e, r := &entries[i], &in.Entries[i]
		r.Id, r.MessageBody = &entryIDs[i], &e.body
		if t.fifo {
			r.MessageGroupId, r.MessageDeduplicationId = &e.group, &e.dedup
		}
		if len(e.attributes) > 0 {
			r.MessageAttributes = make(map[string]types.MessageAttributeValue, len(e.attributes))
			for j := range e.attributes {
				r.MessageAttributes[e.attributes[j].name] = types.MessageAttributeValue{DataType: aws.String(dataType), StringValue: &e.attributes[j].value}
			}
		}
	}
	out, err := s.client.SendMessageBatch(ctx, in, once)
	if err != nil {
		return nil, err
	}
	replies := make([]reply, len(entries))
	for _, ok := range out.Successful {
		if i := entryIndex(ok.Id, len(replies)); i >= 0 {
			replies[i].accepted = true
		}
	}
	for _, failed := range out.Failed {
		if i := entryIndex(failed.Id, len(replies)); i >= 0 {
			replies[i] = reply{code: aws.ToString(failed.Code), message: aws.ToString(failed.Message), theirs: failed.SenderFault}
		}
	}
	return replies, nil
}

// entryIDs tell the entries of one request apart.
var entryIDs = [maxEntries]string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}

// entryIndex is the entry of an Id, or -1.
func entryIndex(id *string, n int) int {
	i, err := strconv.Atoi(aws.ToString(id))
	if err != nil || i < 0 || i >= n {
		return -1
	}
	return i
}

// targets remembers what was found.
type targets struct {
	of service

	mu    sync.Mutex
	known map[string]*target
}

func (s *targets) peek(name string) *target {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[name]
}

func (s *targets) get(ctx context.Context, name string) (*target, error) {
	t, err := s.of.find(ctx, name)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = make(map[string]*target)
	}
	s.known[name] = t
	return t, nil
}

// forget: it may have been removed, or changed.
func (s *targets) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, name)
}
