package sqs

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	awssns "github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sns/types"

	"github.com/postbus/postbus/outbox"
)

var (
	_ message.Publisher     = (*SNSPublisher)(nil)
	_ outbox.BatchPublisher = (*SNSPublisher)(nil)
)

// SNSPublisher sends messages to SNS topics, which give a copy to every queue that
// is subscribed: one SNS topic per topic. It creates nothing. Safe for use by
// several goroutines.
type SNSPublisher struct{ engine }

// SNSPublisherConfig: Client and ARNPrefix are required.
type SNSPublisherConfig struct {
	// Client is a client of aws-sdk-go-v2/service/sns; region, credentials, endpoint
	// and HTTP transport are its. Its retries may be on: they are kept away from our
	// calls.
	Client *awssns.Client

	// ARNPrefix is what the ARNs of all topics begin with: partition, service, region
	// and account, such as "arn:aws:sns:eu-central-1:123456789012".
	ARNPrefix string

	// TopicName is the SNS topic of a topic. Defaults to the function QueueName: the
	// topic itself. FIFOQueueName puts ".fifo" behind it: a FIFO topic, which gives
	// its copies to FIFO queues in order.
	TopicName func(topic string) string

	// Requests is how many requests of up to ten messages are under way at once, over
	// all calls. Defaults to 10; see PublisherConfig.Requests.
	Requests int

	// Timeout bounds each Publish and PublishBatch call, together with its context.
	// Defaults to 10 s. What has been sent by then and not answered is outbox.Unknown.
	Timeout time.Duration

	// MaxMessageBytes is the largest message accepted: body plus names, types and
	// values of its attributes. Defaults to 1 MiB. The topic's own MaximumMessageSize,
	// 256 KiB unless it was raised, is heeded besides.
	MaxMessageBytes int
}

var arnPrefix = regexp.MustCompile(`^arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}$`)

// NewSNSPublisher checks the configuration, connects to nothing, and starts no
// goroutine. The error wraps ErrInvalidConfig and names every fault.
func NewSNSPublisher(cfg SNSPublisherConfig) (*SNSPublisher, error) {
	var faults []error
	if cfg.Client == nil {
		faults = append(faults, errors.New("SNSPublisherConfig.Client is nil: give a client of aws-sdk-go-v2/service/sns, such as sns.NewFromConfig(...)"))
	} else {
		faults = clientFaults("SNSPublisherConfig", cfg.Client.Options().Region, cfg.Client.Options().BaseEndpoint)
	}
	prefix := strings.TrimSuffix(cfg.ARNPrefix, ":")
	if !arnPrefix.MatchString(prefix) {
		faults = append(faults, fmt.Errorf("SNSPublisherConfig.ARNPrefix is %q: give partition, service, region and account, such as arn:aws:sns:eu-central-1:123456789012", cfg.ARNPrefix))
	}
	p := new(SNSPublisher)
	faults = append(faults, p.configure("SNSPublisherConfig", cfg.TopicName, cfg.Requests, cfg.Timeout, cfg.MaxMessageBytes)...)
	if len(faults) > 0 {
		return nil, fmt.Errorf("sqs.NewSNSPublisher: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	p.targets.of = snsService{cfg.Client, prefix}
	return p, nil
}

// onceSNS is what once is for SQS.
func onceSNS(o *awssns.Options) { o.Retryer = aws.NopRetryer{} }

// snsDefaultBytes is a topic's MaximumMessageSize unless it is set, and a batch's; source:
// https://docs.aws.amazon.com/sns/latest/dg/large-message-payloads.html.
const snsDefaultBytes = 256 << 10

type snsService struct {
	client *awssns.Client
	prefix string
}

func (s snsService) nameFault(name string) string { return topicNameFault(name) }

func (s snsService) find(ctx context.Context, name string) (*target, error) {
	t := &target{name: name, address: s.prefix + ":" + name, fifo: isFIFO(name), maxBytes: snsDefaultBytes, maxBatch: snsDefaultBytes}
	out, err := s.client.GetTopicAttributes(ctx, &awssns.GetTopicAttributesInput{TopicArn: &t.address}, onceSNS)
	if err != nil {
		// Who may only publish is not told the limit, and lets SNS refuse.
		if v, _, _, answered := judgeCall(err); answered && v.is(outbox.ErrPermanent) && !v.is(ErrNoQueue) {
			return t, nil
		}
		return nil, err
	}
	if n, err := strconv.Atoi(out.Attributes["MaximumMessageSize"]); err == nil && n > 0 {
		t.maxBytes, t.maxBatch = n, n
	}
	return t, nil
}

func (s snsService) send(ctx context.Context, t *target, entries []entry) ([]reply, error) {
	in := &awssns.PublishBatchInput{TopicArn: &t.address, PublishBatchRequestEntries: make([]types.PublishBatchRequestEntry, len(entries))}
	for i := range entries {
		e, r := &entries[i], &in.PublishBatchRequestEntries[i]
		r.Id, r.Message = &entryIDs[i], &e.body
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
	out, err := s.client.PublishBatch(ctx, in, onceSNS)
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
