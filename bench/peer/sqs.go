package peer

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-aws/sqs"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
)

// SQSPublisher is watermill-aws' with its defaults.
func SQSPublisher(config aws.Config) (message.Publisher, error) {
	return sqs.NewPublisher(sqs.PublisherConfig{AWSConfig: config, DoNotCreateQueueIfNotExists: true}, watermill.NopLogger{})
}

// SQSSubscriber is watermill-aws' with its defaults, but for the time that a request
// waits for messages, and closing with it.
func SQSSubscriber(config aws.Config) (message.Subscriber, error) {
	s, err := sqs.NewSubscriber(sqs.SubscriberConfig{AWSConfig: config, DoNotCreateQueueIfNotExists: true,
		GenerateReceiveMessageInput: func(ctx context.Context, queue sqs.QueueURL) (*awssqs.ReceiveMessageInput, error) {
			in, err := sqs.GenerateReceiveMessageInputDefault(ctx, queue)
			if err == nil {
				in.WaitTimeSeconds = 1
			}
			return in, err
		}}, watermill.NopLogger{})
	return patient{s}, err
}

// patient closes after the request that its subscriber breaks off is over on the server
// too: until then it takes the messages of whoever comes next, for nobody.
type patient struct{ *sqs.Subscriber }

func (p patient) Close() error {
	defer time.Sleep(1200 * time.Millisecond)
	return p.Subscriber.Close()
}
