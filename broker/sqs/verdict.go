package sqs

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/postbus/postbus/outbox"
)

// A verdict is what an error code of SQS or SNS means for the messages it is
// about. Sources: the errors of SendMessageBatch in
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html#API_SendMessageBatch_Errors,
// those of PublishBatch in https://docs.aws.amazon.com/sns/latest/api/API_PublishBatch.html#API_PublishBatch_Errors,
// and the errors common to all of AWS in
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html.
// SQS gives some codes in two spellings, that of its JSON and that of its former
// query protocol.
type verdict struct {
	status outbox.Status
	kinds  []error
	wayOut string

	throttled bool // nothing was accepted, and the same request may be soon
	about     scope
}

// scope is whose fault an answer to a whole request is.
type scope uint8

const (
	aboutAll scope = iota // of all its messages alike
	aboutOne              // of one of them, and it does not say which
	aboutSum              // of their sum
)

func down(wayOut string) verdict {
	return verdict{status: outbox.Passing, kinds: []error{outbox.ErrUnavailable}, wayOut: wayOut}
}

func never(wayOut string) verdict {
	return verdict{status: outbox.Permanent, kinds: []error{outbox.ErrPermanent}, wayOut: wayOut}
}

func (v verdict) of(about scope) verdict { v.about = about; return v }

func (v verdict) throttle() verdict { v.throttled = true; return v }

func (v verdict) is(kind error) bool { return slices.Contains(v.kinds, kind) }

func (v verdict) noQueue() verdict { v.kinds = append([]error{ErrNoQueue}, v.kinds...); return v }

const (
	createIt   = "declare it with a Topology, or correct the name, the region or the account"
	allowIt    = "allow this user or role the action on it, in its IAM policy or that of the queue or topic"
	ownsNoKeys = "the credentials are wrong or have expired: look at where the client takes them from"
	slower     = "the rate is above its quota: spread the load, lower Requests, or for a FIFO queue switch on its high throughput mode"
	kmsRights  = "allow this user or role kms:GenerateDataKey and kms:Decrypt on the queue's key"
	mendIt     = "the message will not be accepted as it is"
)

var verdicts = map[string]verdict{
	// The pace.
	"RequestThrottled":         down(slower).throttle(),
	"ThrottlingException":      down(slower).throttle(),
	"Throttling":               down(slower).throttle(),
	"Throttled":                down(slower).throttle(),
	"ThrottledException":       down(slower).throttle(),
	"RequestLimitExceeded":     down(slower).throttle(),
	"TooManyRequestsException": down(slower).throttle(),
	"SlowDown":                 down(slower).throttle(),
	"KmsThrottled":             down("the key's KMS quota is used up: raise it, or the queue's KmsDataKeyReusePeriodSeconds").throttle(),
	"KMS.ThrottlingException":  down("the key's KMS quota is used up: raise it, or the queue's KmsDataKeyReusePeriodSeconds").throttle(),
	"KMSThrottling":            down("the key's KMS quota is used up: raise it").throttle(),
	"OverLimit":                down("too many messages are in flight, or another limit of the queue is reached"),
	"ServiceUnavailable":       down("the service is not available").throttle(),

	// Who we are.
	"InvalidClientTokenId":        down(ownsNoKeys),
	"UnrecognizedClientException": down(ownsNoKeys),
	"SignatureDoesNotMatch":       down(ownsNoKeys),
	"InvalidSignatureException":   down(ownsNoKeys),
	"IncompleteSignature":         down(ownsNoKeys),
	"ExpiredToken":                down(ownsNoKeys),
	"ExpiredTokenException":       down(ownsNoKeys),
	"MissingAuthenticationToken":  down("the client has no credentials: give it some"),
	"RequestExpired":              down("this machine's clock is wrong"),
	"InvalidSecurity":             down("the request must go by HTTPS and be signed"),
	"OptInRequired":               down("the account is not subscribed to the service"),

	// The queue or topic, or our rights on it: the same answer every time.
	"QueueDoesNotExist":                       never(createIt).noQueue(),
	"AWS.SimpleQueueService.NonExistentQueue": never(createIt).noQueue(),
	"NonExistentQueue":                        never(createIt).noQueue(),
	"NotFound":                                never(createIt).noQueue(),
	"NotFoundException":                       never(createIt).noQueue(),
	"InvalidAddress":                          never("the queue's URL or account is wrong"),
	"AccessDenied":                            never(allowIt),
	"AccessDeniedException":                   never(allowIt),
	"AuthorizationError":                      never(allowIt),
	"KmsAccessDenied":                         never(kmsRights),
	"KMS.AccessDeniedException":               never(kmsRights),
	"KMSAccessDenied":                         never(kmsRights),
	"KmsNotFound":                             never("the queue's KMS key does not exist"),
	"KMS.NotFoundException":                   never("the queue's KMS key does not exist"),
	"KMSNotFound":                             never("the topic's KMS key does not exist"),
	"KmsInvalidKeyUsage":                      never("the queue's KMS key is not one for encryption"),
	"KmsOptInRequired":                        never("the account is not subscribed to KMS"),
	"KMSOptInRequired":                        never("the account is not subscribed to KMS"),
	"UnsupportedOperation":                    never("the queue does not support this"),
	"EndpointDisabled":                        never("the topic's endpoint is switched off"),

	// A key that somebody can switch on again: tried again, and parked at the end.
	"KmsDisabled":                  {status: outbox.Passing, wayOut: "the queue's KMS key is switched off"},
	"KMS.DisabledException":        {status: outbox.Passing, wayOut: "the queue's KMS key is switched off"},
	"KMSDisabled":                  {status: outbox.Passing, wayOut: "the topic's KMS key is switched off"},
	"KmsInvalidState":              {status: outbox.Passing, wayOut: "the queue's KMS key cannot be used in its present state"},
	"KMS.KMSInvalidStateException": {status: outbox.Passing, wayOut: "the queue's KMS key cannot be used in its present state"},
	"KMSInvalidState":              {status: outbox.Passing, wayOut: "the topic's KMS key cannot be used in its present state"},

	// The message; of a whole request, it is one of its messages.
	"InvalidMessageContents": never(mendIt).of(aboutOne),
	"InvalidParameterValue":  never(mendIt).of(aboutOne),
	"InvalidParameter":       never(mendIt).of(aboutOne),
	"ParameterValueInvalid":  never(mendIt).of(aboutOne),
	"InvalidAttributeValue":  never(mendIt).of(aboutOne),
	"InvalidAttributeName":   never(mendIt).of(aboutOne),
	"MissingParameter":       never(mendIt).of(aboutOne),
	"ValidationException":    never(mendIt).of(aboutOne),
	"ValidationError":        never(mendIt).of(aboutOne),
	"MessageTooLong":         never("it is larger than the queue's MaximumMessageSize").of(aboutOne),

	"BatchRequestTooLong":                        never("it is larger than the queue's MaximumMessageSize").of(aboutSum),
	"AWS.SimpleQueueService.BatchRequestTooLong": never("it is larger than the queue's MaximumMessageSize").of(aboutSum),
}

// judge finds the verdict on an error code.
func judge(code string) (v verdict, known bool) {
	v, known = verdicts[code]
	if !known { // "com.amazonaws.sqs#QueueDoesNotExist", "AWS.SimpleQueueService.OverLimit"
		v, known = verdicts[code[strings.LastIndexAny(code, "#.")+1:]]
	}
	return v, known
}

// judgeEntry is about one message that was refused while others of its request
// were not.
func judgeEntry(code string, senderFault bool) verdict {
	v, known := judge(code)
	switch {
	case known:
		return v
	case senderFault:
		return never(mendIt)
	}
	return verdict{status: outbox.Passing, wayOut: "it may pass"}
}

// judgeCall is about the error of a whole call. answered is false if nothing came
// back: then the messages may have been accepted, if they were sent.
func judgeCall(err error) (v verdict, code, reply string, answered bool) {
	var api smithy.APIError
	if errors.As(err, &api) {
		code, reply = api.ErrorCode(), api.ErrorMessage()
		if v, known := judge(code); known {
			return v, code, reply, true
		}
	}
	status := 0
	if response := (*awshttp.ResponseError)(nil); errors.As(err, &response) {
		status = response.HTTPStatusCode()
	}
	strange := code == "" || code == "UnknownError"
	switch {
	case api == nil && status == 0:
		return v, "", "", false
	case status >= 500 || strange && status < 300:
		// It does not say how far it came.
		v = down("it may have been accepted all the same")
		v.status = outbox.Unknown
	case strange:
		v = down("what answers there does not speak like the service: look at the client's endpoint, and at proxies before it")
	default:
		v = verdict{status: outbox.Passing, wayOut: "it may pass"}
	}
	if api == nil {
		code, reply = fmt.Sprintf("HTTP status %d", status), "an answer that cannot be read"
	}
	return v, code, reply, true
}

func refused(target, messageID, code, reply string, v verdict) outbox.Result {
	return outbox.Result{Status: v.status, Err: &RefusedError{
		Target: target, MessageID: messageID, Code: code, Reply: reply, kinds: v.kinds, wayOut: v.wayOut}}
}
