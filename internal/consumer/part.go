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
	lag   int64 // records from position to end, after the last batch; guarded by session.mu, the rest is the loop's
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
	again    *again    // set while what is parked of the key is handled again
}

// again is what was parked of a key and comes before what waits in its queue.
type again struct {
	ask     ask
	loaded  bool
	letters []letter
}

// held reports whether the queue's messages can't be handled yet, whatever the
// time: what was parked before them is still being read.
func (q *queue) held() bool { return q.again != nil && !q.again.loaded }

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
		if len(q.messages) > 0 && q.messages[0].Offset < at.Next {
			at.Next, at.Epoch = q.messages[0].Offset, q.messages[0].Record.LeaderEpoch
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
	if len(q.messages) == 0 && q.again == nil {
		delete(p.keys, key)
	}
}

func (p *part) full() bool { return p.count >= maxWaiting || p.bytes >= maxWaitingBytes }

// first returns up to n messages.
func (q *queue) first(n int) []Message {
	n = min(n, len(q.messages))
	return q.messages[:n:n]
}

// first returns up to n messages.
func (a *again) first(n int) []Message {
	var all []Message
	for _, l := range a.letters[:min(n, len(a.letters))] {
		all = append(all, l.message())
	}
	return all
}
