package consumer

import (
	"time"
)

// part is a partition that this member has.
type part struct {
	id    Partition
	log   string
	next  int64 // the offset after the last record that was polled
	epoch int32 // of that record
	end   int64 // the offset after the last record that can be polled
	saved Position

	keys   map[string]*queue // keys whose messages wait to be handled again
	bytes  int               // of what waits
	count  int               // of what waits
	paused bool
}

// queue is what waits in one key, in order.
type queue struct {
	messages []Message
	attempt  int       // how often in a row the first message failed
	due      time.Time // when it is to be tried again
}

// What waits in a partition is kept in memory, so that other keys can go on;
// beyond this, the partition waits as a whole.
const (
	maxWaiting      = 2000
	maxWaitingBytes = 16 << 20
)

// position is the offset of the first record that wasn't handled.
func (p *part) position() Position {
	at := Position{Log: p.log, Next: p.next, Epoch: p.epoch}
	for _, q := range p.keys {
		if first := q.messages[0]; first.Offset < at.Next {
			at.Next, at.Epoch = first.Offset, first.Record.LeaderEpoch
		}
	}
	return at
}

// wait puts messages behind those of their key.
func (p *part) wait(key string, messages ...Message) *queue {
	q := p.keys[key]
	if q == nil {
		q = &queue{}
		p.keys[key] = q
	}
	q.messages = append(q.messages, messages...)
	p.count += len(messages)
	for _, m := range messages {
		p.bytes += len(m.Record.Value)
	}
	return q
}

// done takes the first n messages of a key from those that wait.
func (p *part) done(key string, n int) {
	q := p.keys[key]
	for _, m := range q.messages[:n] {
		p.bytes -= len(m.Record.Value)
	}
	p.count -= n
	q.messages = q.messages[n:]
	if len(q.messages) == 0 {
		delete(p.keys, key)
	}
}

func (p *part) full() bool { return p.count >= maxWaiting || p.bytes >= maxWaitingBytes }
