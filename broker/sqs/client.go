package sqs

import (
	"context"
	"errors"
	"net"
	"net/http/httptrace"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
)

// once keeps the SDK's retries away from a call. By default the SDK sends a
// request again after a broken connection or a timeout, although the first one
// may have been carried out, and after its deadline's better part is gone.
func once(o *awssqs.Options) { o.Retryer = aws.NopRetryer{} }

// A flight tells how far a request has come.
type flight struct{ state atomic.Int32 }

const (
	grounded int32 = iota // nothing has been written
	inAir                 // it has a connection: from here on it may arrive
	givenUp               // and it never had a connection, nor will have
)

// watch makes the request of the returned context tell f when it gets a connection.
// One that was given up before finds it closed, so that nothing is sent after
// its deadline.
func (f *flight) watch(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if !f.state.CompareAndSwap(grounded, inAir) && f.state.Load() == givenUp {
			info.Conn.Close()
		}
	}})
}

func (f *flight) sent() bool { return f.state.Load() == inAir }

// giveUp says whether the request may have been sent; if not, it won't be.
func (f *flight) giveUp() (sent bool) {
	return !f.state.CompareAndSwap(grounded, givenUp) && f.sent()
}

// neverConnected: errors that say so, of clients that do not heed httptrace, too.
func neverConnected(err error) bool {
	var dns *net.DNSError
	var op *net.OpError
	return errors.As(err, &dns) || errors.As(err, &op) && op.Op == "dial"
}
