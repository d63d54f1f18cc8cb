package consumer

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/domain"
)

// Message is an event as it came from Kafka.
type Message struct {
	Event     domain.Event
	Topic     string
	Partition int32
	Offset    int64
	Record    *kgo.Record // as it came; not to be changed
}

// Handler does what a worker does with a batch of messages: those of one key
// are in their order, those of different keys in any. It answers per message:
// nil for done, a [Permanent] error to park it, any other error to get it
// again after a pause, which [After] can set. A nil slice answers done for all; any other slice has
// the batch's length.
//
// A message that wasn't handled holds back what follows it in its key: from
// the first error of a key on, that key's messages in the batch count as not
// handled, whatever was answered for them, and come again (or are parked
// behind it). A handler therefore has to be idempotent, by entity version or
// event id, and had better stop at the first error of a key.
//
// ctx ends when the batch has taken too long for a rebalance or a stop that
// waits for it. Heartbeats go on meanwhile, however slow the handler is.
type Handler func(ctx context.Context, batch []Message) []error

// Each makes a [Handler] of a function that handles one message: up to workers
// keys at once, each key in order and up to its first error.
func Each(workers int, handle func(context.Context, Message) error) Handler {
	return func(ctx context.Context, batch []Message) []error {
		type key struct{ topic, key string }
		keys := map[key][]int{}
		var order []key
		for i, m := range batch {
			k := key{m.Topic, m.Event.Key}
			if keys[k] == nil {
				order = append(order, k)
			}
			keys[k] = append(keys[k], i)
		}
		errs := make([]error, len(batch))
		next := make(chan []int)
		var wg sync.WaitGroup
		for range min(max(workers, 1), len(order)) {
			wg.Go(func() {
				for indexes := range next {
					var failed error
					for _, i := range indexes {
						if failed == nil {
							failed = handleOne(ctx, batch[i], handle)
							errs[i] = failed
						} else {
							errs[i] = errBehind
						}
					}
				}
			})
		}
		for _, k := range order {
			next <- keys[k]
		}
		close(next)
		wg.Wait()
		return errs
	}
}

var errBehind = errors.New("behind another message of its key")

func handleOne(ctx context.Context, m Message, handle func(context.Context, Message) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return handle(ctx, m)
}

// ErrUnknownVersion is the error of handlers, permanent, about an event of a
// version that came after them.
var ErrUnknownVersion = errors.New("event of an unknown version")

// Permanent marks an error that trying again can't mend: the message is
// parked, and with it what follows it in its key. It returns nil for nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

// IsPermanent reports whether [Permanent] marked err or what it wraps.
func IsPermanent(err error) bool {
	_, ok := errors.AsType[*permanentError](err)
	return ok
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// After sets the pause before the message that err is about comes again. It is
// for handlers that know when that is worth while, and is no failure: nothing is
// logged, and pauses after failures don't get longer by it. It returns nil for
// nil.
func After(pause time.Duration, err error) error {
	if err == nil {
		return nil
	}
	return &laterError{err, pause}
}

type laterError struct {
	err   error
	pause time.Duration
}

func (e *laterError) Error() string { return e.err.Error() }
func (e *laterError) Unwrap() error { return e.err }
