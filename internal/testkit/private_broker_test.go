package testkit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/postbus/postbus/internal/brokerserver"
)

// seen shows what it returns when it is printed.
type seen func() (int, error)

func (s seen) String() string { n, err := s(); return fmt.Sprintf("%d, %v", n, err) }

// kept freezes, kills and shuts down a broker that holds a message, and asks for it
// each time.
func kept(t *testing.T, b *PrivateBroker, put func(ctx context.Context) error, count func(ctx context.Context) (int, error)) {
	t.Helper()
	ask := func(what string, want int) {
		t.Helper()
		var got int
		var err error
		Eventually(t, time.Minute, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			got, err = count(ctx)
			return err == nil && got == want
		}, "%s: it has %d messages (now %s)", what, want, seen(func() (int, error) { return got, err }))
	}
	add := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if err := put(ctx); err != nil {
			t.Fatal(err)
		}
	}
	add()
	ask("as it was made", 1)

	b.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	if n, err := count(ctx); err == nil {
		t.Errorf("a frozen broker answers: %d messages", n)
	}
	cancel()
	b.Cont()
	ask("after a freeze", 1)

	killed := b.proc.Identity
	b.Kill()
	b.Kill() // of nothing
	if killed.Alive() {
		t.Error("it survived a kill")
	}
	if conn, err := net.Dial("tcp", b.Addr()); err == nil {
		conn.Close()
		t.Error("a killed broker takes connections")
	}
	b.Start()
	ask("after a kill", 1)
	add()
	ask("as it goes on", 2)
	last := b.proc.Identity
	b.Shutdown()
	if last.Alive() {
		t.Error("it survived a shutdown")
	}
}

func TestPrivateKafkaKeepsWhatItHad(t *testing.T) {
	t.Parallel()
	k := PrivateKafka(t)
	client, err := kgo.NewClient(kgo.SeedBrokers(k.URL()), kgo.DefaultProduceTopic("topic"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := client.ProduceSync(ctx, kgo.StringRecord("x")).FirstErr(); !errors.Is(err, kerr.UnknownTopicOrPartition) {
		t.Errorf("a topic that nobody has created: %v", err)
	}
	if _, err := admin.CreateTopic(ctx, 1, 1, nil, "topic"); err != nil {
		t.Fatal(err)
	}
	knowsUsers(t, k)
	kept(t, k.PrivateBroker,
		func(ctx context.Context) error { return client.ProduceSync(ctx, kgo.StringRecord("x")).FirstErr() },
		func(ctx context.Context) (int, error) {
			ends, err := admin.ListEndOffsets(ctx, "topic")
			if err != nil {
				return 0, err
			}
			end, _ := ends.Lookup("topic", 0)
			return int(end.Offset), end.Err
		})
}

// knowsUsers tries the listener that asks for passwords.
func knowsUsers(t *testing.T, k *PrivateKafkaBroker) {
	t.Helper()
	for user, want := range map[plain.Auth]error{
		{User: brokerserver.KafkaUser, Pass: brokerserver.KafkaPassword}:         nil,
		{User: brokerserver.KafkaPowerless, Pass: brokerserver.KafkaPowerlessPw}: kerr.TopicAuthorizationFailed,
		{User: brokerserver.KafkaUser, Pass: "wrong"}:                            kerr.SaslAuthenticationFailed,
	} {
		client, err := kgo.NewClient(kgo.SeedBrokers(k.SASLAddr), kgo.SASL(user.AsMechanism()))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		created, err := kadm.NewClient(client).CreateTopic(ctx, 1, 1, nil, "of_"+user.User)
		if err == nil {
			err = created.Err
		}
		if !errors.Is(err, want) {
			t.Errorf("%s/%s: got %v, want %v", user.User, user.Pass, err, want)
		}
		cancel()
		client.Close()
	}
}

func TestPrivateRabbitMQKeepsWhatItHad(t *testing.T) {
	t.Parallel()
	r := PrivateRabbitMQ(t)
	// One connection per question, which ends with its context: a client that reconnects
	// is not what is tested.
	with := func(ctx context.Context, do func(*amqp.Channel) error) error {
		conn, err := amqp.DialConfig(r.URL(), amqp.Config{Dial: func(network, addr string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if err == nil {
				context.AfterFunc(ctx, func() { c.Close() })
			}
			return c, err
		}})
		if err != nil {
			return err
		}
		defer conn.Close()
		channel, err := conn.Channel()
		if err != nil {
			return err
		}
		return do(channel)
	}
	declare := func(c *amqp.Channel) (amqp.Queue, error) {
		return c.QueueDeclare("queue", true, false, false, false, amqp.Table{"x-queue-type": "quorum"})
	}
	if err := with(t.Context(), func(c *amqp.Channel) error { _, err := declare(c); return err }); err != nil {
		t.Fatal(err)
	}
	r.Settle()
	knowsThePowerless(t, r)
	kept(t, r.PrivateBroker,
		func(ctx context.Context) error {
			return with(ctx, func(c *amqp.Channel) error {
				if err := c.Confirm(false); err != nil {
					return err
				}
				confirm, err := c.PublishWithDeferredConfirm("", "queue", false, false, amqp.Publishing{DeliveryMode: amqp.Persistent})
				if err == nil && !confirm.Wait() {
					err = errors.New("not confirmed")
				}
				return err
			})
		},
		func(ctx context.Context) (n int, err error) {
			err = with(ctx, func(c *amqp.Channel) error {
				q, err := declare(c)
				n = q.Messages
				return err
			})
			return n, err
		})
	if runtime.GOOS != "linux" {
		return // epmd is RabbitMQ's own there, and stays
	}
	Eventually(t, 10*time.Second, func() bool {
		conn, err := net.Dial("tcp", r.node.EpmdAddr())
		if err == nil {
			conn.Close()
		}
		return err != nil
	}, "its epmd has gone with it")
}

// knowsThePowerless tries the second user, and rabbitmqctl.
func knowsThePowerless(t *testing.T, r *PrivateRabbitMQNode) {
	t.Helper()
	if out := r.Control("list_users"); !strings.Contains(out, brokerserver.RabbitMQPowerless) {
		t.Errorf("rabbitmqctl says %q", out)
	}
	conn, err := amqp.Dial(RabbitMQPowerless(t, r.URL()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	channel, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	var refused *amqp.Error
	if _, err := channel.QueueDeclare("another", true, false, false, false, nil); !errors.As(err, &refused) || refused.Code != amqp.AccessRefused {
		t.Errorf("the powerless user: %v", err)
	}
}

func TestPrivateElasticMQKeepsWhatItHad(t *testing.T) {
	t.Parallel()
	e := PrivateElasticMQ(t)
	client := sqs.New(sqs.Options{Region: "eu-west-1", BaseEndpoint: aws.String(e.URL()), Credentials: credentials.NewStaticCredentialsProvider("any", "any", "")})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	created, err := client.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("queue")})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(*created.QueueUrl, e.URL()) {
		t.Errorf("the queue's address is %s, not at %s", *created.QueueUrl, e.URL())
	}
	kept(t, e,
		func(ctx context.Context) error {
			_, err := client.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: created.QueueUrl, MessageBody: aws.String("x")})
			return err
		},
		func(ctx context.Context) (int, error) {
			got, err := client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: created.QueueUrl, AttributeNames: []sqstypes.QueueAttributeName{"ApproximateNumberOfMessages"}})
			if err != nil {
				return 0, err
			}
			return strconv.Atoi(got.Attributes["ApproximateNumberOfMessages"])
		})
}

func TestPrivateRedisKeepsWhatItHad(t *testing.T) {
	t.Parallel()
	r := PrivateRedis(t)
	client := redis.NewClient(&redis.Options{Addr: r.Addr(), ContextTimeoutEnabled: true})
	defer client.Close()
	kept(t, r,
		func(ctx context.Context) error {
			return client.XAdd(ctx, &redis.XAddArgs{Stream: "stream", Values: []string{"a", "b"}}).Err()
		},
		func(ctx context.Context) (int, error) {
			n, err := client.XLen(ctx, "stream").Result()
			return int(n), err
		})
}

// The getters' servers answer, and moto delivers from its topics to its queues.
func TestSharedBrokersAnswer(t *testing.T) {
	t.Parallel()
	for _, addr := range Kafka(t) {
		if err := brokerserver.KafkaAnswers(addr); err != nil {
			t.Error(err)
		}
	}
	if err := brokerserver.HTTPAnswers(SQS(t)); err != nil {
		t.Error(err)
	}
	conn, err := amqp.Dial(RabbitMQ(t))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	any := credentials.NewStaticCredentialsProvider("any", "any", "")
	topics := sns.New(sns.Options{Region: "eu-west-1", BaseEndpoint: aws.String(SNS(t)), Credentials: any})
	queues := sqs.New(sqs.Options{Region: "eu-west-1", BaseEndpoint: aws.String(SNS(t)), Credentials: any})
	name := Name(t)
	topic, err := topics.CreateTopic(ctx, &sns.CreateTopicInput{Name: &name})
	if err != nil {
		t.Fatal(err)
	}
	queue, err := queues.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: &name})
	if err != nil {
		t.Fatal(err)
	}
	arn := strings.Replace(*topic.TopicArn, ":sns:", ":sqs:", 1)
	if _, err := topics.Subscribe(ctx, &sns.SubscribeInput{TopicArn: topic.TopicArn, Protocol: aws.String("sqs"), Endpoint: &arn}); err != nil {
		t.Fatal(err)
	}
	if _, err := topics.Publish(ctx, &sns.PublishInput{TopicArn: topic.TopicArn, Message: aws.String("hello")}); err != nil {
		t.Fatal(err)
	}
	got, err := queues.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: queue.QueueUrl, WaitTimeSeconds: 10})
	if err != nil || len(got.Messages) != 1 || !strings.Contains(*got.Messages[0].Body, "hello") {
		t.Errorf("got %+v, %v", got, err)
	}
}
