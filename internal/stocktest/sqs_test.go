package stocktest

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-aws/sqs"
	"github.com/ThreeDotsLabs/watermill/message"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/postbus/postbus/internal/brokertest"
	"github.com/postbus/postbus/internal/brokertest/onsqs"
)

func TestSQS(t *testing.T) { brokertest.Run(t, stockSQS()) }

func TestSQSToOurs(t *testing.T) { brokertest.Exchange(t, stockSQS(), onsqs.Standard()) }

func TestSQSFromOurs(t *testing.T) { brokertest.Exchange(t, onsqs.Standard(), stockSQS()) }

func init() { brokertest.Register(stockSQS()) }

func stockSQS() brokertest.Broker {
	b := onsqs.Server()
	b.Name = "stock sqs"
	b.Capabilities = brokertest.Capabilities{
		HoldsBack:        brokertest.Yes, // it stops at the first failure
		OrderPerKey:      brokertest.NotAssured,
		OrderOverMembers: brokertest.NotAssured,
		SurvivesKill:     brokertest.Yes,
		PublisherCut:     brokertest.Yes,
		SubscriberCut:    brokertest.Yes,
		SubscriberFrozen: brokertest.NotAssured,
		ConsumerKilled:   brokertest.Yes,
		Foreign:          brokertest.Yes, // as it is: the format has no encoding
		ManyTopics:       brokertest.Yes,
		UnderRelay:       brokertest.Yes,
		NoLeaks:          brokertest.NotAssured,
	}
	b.Publisher = func(o brokertest.Options) (message.Publisher, error) {
		return sqs.NewPublisher(sqs.PublisherConfig{AWSConfig: onsqs.Config(o), DoNotCreateQueueIfNotExists: true}, watermill.NopLogger{})
	}
	b.Subscriber = func(o brokertest.Options) (message.Subscriber, error) {
		return sqs.NewSubscriber(sqs.SubscriberConfig{AWSConfig: onsqs.Config(o), DoNotCreateQueueIfNotExists: true, ReconnectRetrySleep: 100 * time.Millisecond,
			GenerateReceiveMessageInput: func(ctx context.Context, queue sqs.QueueURL) (*awssqs.ReceiveMessageInput, error) {
				in, err := sqs.GenerateReceiveMessageInputDefault(ctx, queue)
				if err == nil {
					in.WaitTimeSeconds = 1 // closing takes as long
				}
				return in, err
			}}, watermill.NopLogger{})
	}
	return b
}
