package outbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/internal/failpoint"
)

const (
	// transactionalIDs are used in turn: a broker that is still writing the
	// markers of an id's last transaction makes its next one wait.
	transactionalIDs = 4
	// batchEvents ends a Kafka transaction at the next edge of a PostgreSQL
	// transaction; what is read meanwhile goes into the next one.
	batchEvents = 10_000
	// These bound what a producer holds; producing more waits.
	bufferedRecords = 50_000
	bufferedBytes   = 64 << 20
)

// A chunk is what a reader hands to the publisher at a time.
type chunk struct {
	records []*kgo.Record
	// marked says that records[:whole], with all before, is published
	// completely when progress stands at at. What follows belongs to a
	// PostgreSQL transaction whose end has not been read.
	marked bool
	whole  int
	at     progress
	force  bool // commit the progress even without records, at once

	xids        []uint64  // the transactions that end in records[:whole], from the stream
	position    int64     // the highest in records[:whole]
	committedAt time.Time // when PostgreSQL committed the last whole transaction
}

// chunkEvents and chunkBytes are when a reader hands over a chunk at the
// latest; chunksAhead is how many may wait. They bound the relay's memory.
const (
	chunkEvents = 512
	chunkBytes  = 256 << 10
	chunksAhead = 32
)

// A publisher writes records and progress in Kafka transactions, one after
// the other: the next one begins when the commit of the last one was
// acknowledged, so if one fails, none that follows it is committed.
type publisher struct {
	*session
	producers []*kgo.Client
	next      int // index of the producer whose turn it is; always 0 first

	done      progress       // the last committed progress
	last      time.Time      // when that was
	idle      *chunk         // a later mark that came without records
	carry     []*kgo.Record  // the beginning of an unfinished PostgreSQL transaction, not produced yet
	committed func(progress) // is told of every commit
	points    *checkpoints   // while streaming
	ends      offsets        // of the topics, as far as was produced
	before    offsets        // the same when the transaction began
	failed    atomic.Pointer[error]
	broken    chan struct{} // closed when something has failed
}

// newPublisher initialises all transactional ids. That fences whoever used
// them before and ends its transactions, so that the progress read next is
// final. A relay always begins with the first id, so of two that initialise at
// the same time (one of them was paused, and lost the lock meanwhile) at most
// one can publish: the one whose first id is newer.
func (s *session) newPublisher(ctx context.Context) (*publisher, error) {
	p := &publisher{session: s, last: time.Now(), broken: make(chan struct{})}
	name := s.cfg.name()
	if failpoint.Mutant("relay.unfenced") {
		name += rand.Text()
	}
	for i := range transactionalIDs {
		opts := s.cfg.kafkaOpts(
			kgo.TransactionalID(fmt.Sprintf("%s-%d", name, i)),
			kgo.TransactionTimeout(s.cfg.TransactionTimeout),
			kgo.RequiredAcks(kgo.AllISRAcks()),
			kgo.ProducerLinger(0),
			kgo.RecordPartitioner(keeper{p}),
			kgo.MaxBufferedRecords(bufferedRecords),
			kgo.MaxBufferedBytes(bufferedBytes),
			kgo.RecordDeliveryTimeout(time.Minute),
			kgo.ConcurrentTransactionsBackoff(5*time.Millisecond),
		)
		if failpoint.Mutant("relay.no-retries") {
			opts = append(opts, kgo.RecordRetries(0))
		}
		k, err := kgo.NewClient(opts...)
		if err != nil {
			p.close()
			return nil, fatalf("make a Kafka producer: %w", err)
		}
		p.producers = append(p.producers, k)
		if _, _, err := k.ProducerID(ctx); err != nil {
			p.close()
			return nil, initError(err, s.cfg.TransactionTimeout)
		}
	}
	return p, nil
}

func initError(err error, timeout time.Duration) error {
	switch {
	case errors.Is(err, kerr.InvalidTransactionTimeout):
		return fatalf("the broker refuses transactions of %v: raise its transaction.max.timeout.ms, or lower the relay's transaction timeout", timeout)
	case errors.Is(err, kerr.TransactionalIDAuthorizationFailed):
		return fatalf("the broker does not allow the relay its transactional ids (<namespace>.relay.<group>-0 to -%d): %w", transactionalIDs-1, err)
	}
	return fmt.Errorf("initialise a transactional id: %w", err)
}

// close gives the producers up, and with them a transaction that is open: the
// next relay ends it.
func (p *publisher) close() {
	for _, k := range p.producers {
		k.Close()
	}
}

// run publishes what comes until the channel is closed. It returns an error
// when it can't say what has been committed; then nothing may be published
// before progress was read again, with newly initialised ids.
func (p *publisher) run(ctx context.Context, in <-chan chunk) error {
	for {
		c, ok, err := p.wait(ctx, in)
		if err != nil || !ok {
			return err
		}
		if err := p.transaction(ctx, c, in); err != nil {
			if errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch) {
				p.update(func(s *Stats) { s.Fences++ })
			}
			return err
		}
	}
}

// wait returns the next chunk that is worth a transaction: one with records,
// or, once nothing was committed for the idle interval, a mark.
func (p *publisher) wait(ctx context.Context, in <-chan chunk) (chunk, bool, error) {
	for {
		var due <-chan time.Time
		if p.idle != nil {
			due = time.After(time.Until(p.last.Add(p.cfg.IdleInterval)))
		}
		select {
		case <-ctx.Done():
			return chunk{}, false, context.Cause(ctx)
		case c, ok := <-in:
			if !ok || len(c.records) > 0 || len(p.carry) > 0 || c.force {
				return c, ok, nil
			}
			if !failpoint.Mutant("relay.no-idle") {
				p.idle = &c
			}
		case <-due:
			return *p.idle, true, nil
		}
	}
}

// transaction publishes c, and what else is there until it would have to wait
// or the batch is large, in one Kafka transaction that ends where a PostgreSQL
// transaction ends.
func (p *publisher) transaction(ctx context.Context, c chunk, in <-chan chunk) error {
	k := p.producers[p.next]
	p.next = (p.next + 1) % len(p.producers)
	if err := p.at(failpoint.RelayProduce); err != nil {
		return err
	}
	if err := k.BeginTransaction(); err != nil {
		return fmt.Errorf("begin a Kafka transaction: %w", err)
	}
	for topic, ends := range p.ends {
		copy(p.before[topic], ends)
	}
	n, at, open, committedAt := 0, p.done, false, time.Time{}
	var xids []uint64
	var position int64
	produce := func(records []*kgo.Record) {
		for _, r := range records {
			k.Produce(ctx, r, p.produced)
		}
		n += len(records)
	}
	if len(p.carry) > 0 {
		produce(p.carry)
		p.carry, open = nil, true
	}
	for more := true; more; {
		if c.marked {
			produce(c.records[:c.whole])
			at, open, committedAt = c.at, false, c.committedAt
			xids = append(xids, c.xids...)
			position = max(position, c.position)
			tail := c.records[c.whole:]
			if n >= batchEvents || c.force || len(in) == 0 {
				p.carry = tail
				break
			}
			c.records = tail
		}
		if len(c.records) > 0 {
			produce(c.records)
			open = true
		}
		if p.failed.Load() != nil {
			break
		}
		// A transaction that is open in the middle waits for its end: there is
		// no other edge to commit at.
		if (!open || failpoint.Mutant("relay.split")) && len(in) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case c, more = <-in:
			if !more && open {
				return errors.New("stopped in the middle of a transaction")
			}
		}
	}
	switch {
	case p.points != nil:
		p.points.apply(&at, &p.done, xids, p.before)
	case at.Phase == phaseStream: // takes over: all that is published is visible in Prev
		at.Xids, at.Offsets, at.Until = nil, p.before.clone(), 0
	}
	at.Ends = p.before
	at.Events = p.done.Events + uint64(n)
	progress := &kgo.Record{Topic: p.cfg.Namespace.Progress(p.cfg.Group), Key: []byte(p.cfg.Group), Value: at.encode()}
	apart := failpoint.Mutant("relay.progress-apart")
	if !apart {
		k.Produce(ctx, progress, p.produced)
	}
	if err := p.flush(ctx, k); err != nil {
		return fmt.Errorf("produce: %w", err)
	}
	if err := p.failed.Load(); err != nil {
		return fmt.Errorf("produce: %w", *err)
	}
	if err := p.at(failpoint.RelayProduced); err != nil {
		return err
	}
	if err := k.EndTransaction(ctx, kgo.TryCommit); err != nil && !failpoint.Mutant("relay.presume-done") {
		// It may be committed all the same.
		return fmt.Errorf("commit a Kafka transaction: %w", err)
	}
	if err := p.at(failpoint.RelayCommitted); err != nil {
		return err
	}
	if apart {
		if err := p.kafka.ProduceSync(ctx, progress).FirstErr(); err != nil {
			return err
		}
	}
	checkpoint := p.points != nil && at.PrevLSN != p.done.PrevLSN
	at.Ends = nil // encoded; the offsets go on changing
	p.done, p.last, p.idle = at, time.Now(), nil
	p.update(func(s *Stats) {
		s.Published += int64(n)
		s.Transactions++
		s.LastCommit = p.last
		if checkpoint {
			s.Checkpoint = p.last
		}
		s.LSN = at.LSN.String()
		s.Position = max(s.Position, position)
		if !committedAt.IsZero() {
			s.Latency = max(0, p.last.Sub(committedAt))
		}
	})
	if p.committed != nil {
		p.committed(at)
	}
	return nil
}

// flush returns once every record is in Kafka, or one is not. The others are not
// waited for then: the client of an id that was fenced may keep some for ever. A
// transaction that takes longer than the broker waits for it can't be committed.
func (p *publisher) flush(ctx context.Context, k *kgo.Client) error {
	ctx, stop := context.WithTimeout(ctx, p.cfg.TransactionTimeout)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- k.Flush(ctx) }()
	select {
	case err := <-done:
		return err
	case <-p.broken:
		stop()
		<-done
		return *p.failed.Load()
	}
}

// produced is told of every record, by the producer's goroutine.
func (p *publisher) produced(r *kgo.Record, err error) {
	if err != nil {
		err = fmt.Errorf("topic %s: %w", r.Topic, err)
		if p.failed.CompareAndSwap(nil, &err) {
			close(p.broken)
		}
		return
	}
	if ends := p.ends[r.Topic]; int(r.Partition) < len(ends) {
		ends[r.Partition] = r.Offset + 1
	}
}
