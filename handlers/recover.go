package handlers

import "github.com/ThreeDotsLabs/watermill/message"

// Recover turns a panic of the handler into a *[PanicError] with its stack. It
// belongs innermost.
//
// The handler runs on a goroutine of its own, since runtime.Goexit, which a
// failed assertion of a test calls, can't be survived in any other way: the
// message would be neither acked nor nacked. That is an ErrGoexit.
func Recover() message.HandlerMiddleware {
	type result struct {
		out []*message.Message
		err error
	}
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			done := make(chan result, 1)
			go func() {
				r := result{err: ErrGoexit} // unless the handler returns
				defer func() {
					if v := recover(); v != nil {
						r = result{err: newPanicError(v)}
					}
					done <- r
				}()
				out, err := next(msg)
				r = result{out, err}
			}()
			r := <-done
			return r.out, r.err
		}
	}
}
