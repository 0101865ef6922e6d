package sqs

import (
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/postbus/postbus/outbox"
)

var (
	_ message.Publisher     = (*Publisher)(nil)
	_ outbox.BatchPublisher = (*Publisher)(nil)
)

// Publisher sends messages to SQS queues, one queue per topic: as a Watermill
// publisher, or in batches under a relay. It creates nothing. Safe for use by
// several goroutines.
type Publisher struct{ engine }

// PublisherConfig: only Client is required.
type PublisherConfig struct {
	// Client is a client of aws-sdk-go-v2/service/sqs; region, credentials, endpoint
	// and HTTP transport are its. Its retries may be on: they are kept away from our
	// calls.
	Client *awssqs.Client

	// QueueName is the queue of a topic. Defaults to the function QueueName: the topic
	// itself. FIFOQueueName puts ".fifo" behind it. A queue whose name ends so is
	// a FIFO queue: its MessageGroupId is the partition key (see GroupID), its
	// MessageDeduplicationId the event id.
	QueueName func(topic string) string

	// Requests is how many requests of up to ten messages are under way at once, over
	// all calls. Defaults to 10, which is as many connections as the SDK's HTTP
	// client keeps open (MaxIdleConnsPerHost): raise both. At most 1,000.
	Requests int

	// Timeout bounds each Publish and PublishBatch call, together with its context.
	// Defaults to 10 s. What has been sent by then and not answered is outbox.Unknown.
	Timeout time.Duration

	// MaxMessageBytes is the largest message accepted: body plus names, types and
	// values of its attributes. Defaults to what SQS takes, 1 MiB, which is also the
	// highest. The MaximumMessageSize of the queue is heeded besides.
	MaxMessageBytes int
}

const (
	defaultTimeout  = 10 * time.Second
	defaultRequests = 10
	maxRequests     = 1000

	// One call under a relay: some tens of round trips.
	batchMessages = 1000
	batchBytes    = 4 << 20
)

// NewPublisher checks the configuration, connects to nothing, and starts no
// goroutine. The error wraps ErrInvalidConfig and names every fault.
func NewPublisher(cfg PublisherConfig) (*Publisher, error) {
	var faults []error
	if cfg.Client == nil {
		faults = append(faults, errors.New("PublisherConfig.Client is nil: give a client of aws-sdk-go-v2/service/sqs, such as sqs.NewFromConfig(...)"))
	} else {
		faults = clientFaults("PublisherConfig", cfg.Client.Options().Region, cfg.Client.Options().BaseEndpoint)
	}
	p := new(Publisher)
	faults = append(faults, p.configure("PublisherConfig", cfg.QueueName, cfg.Requests, cfg.Timeout, cfg.MaxMessageBytes)...)
	if len(faults) > 0 {
		return nil, fmt.Errorf("sqs.NewPublisher: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	p.targets.of = sqsService{cfg.Client}
	return p, nil
}

func clientFaults(config, region string, endpoint *string) (faults []error) {
	if region == "" && endpoint == nil {
		faults = append(faults, fmt.Errorf("%s.Client has neither a region nor an endpoint: give the SDK's config a region, such as eu-central-1", config))
	}
	return faults
}
