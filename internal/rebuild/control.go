package rebuild

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"outflow/internal/consumer"
	"outflow/internal/mongodb"
)

const controlCollection = "_rebuilds"

// phase is how far a rebuild is.
type phase string

const (
	filling  phase = "filling"
	pausing  phase = "pausing"
	swapping phase = "swapping"
)

// control is the record of a rebuild.
type control struct {
	ID      string    `bson:"_id"` // the job's name
	Run     string    `bson:"run"` // what the shadow's name ends with
	Owner   string    `bson:"owner"`
	Who     string    `bson:"who"`  // the owner, for people
	Beat    int64     `bson:"beat"` // raised by every write
	Phase   phase     `bson:"phase"`
	From    Source    `bson:"from"`
	Started time.Time `bson:"started"`

	Shadow string  `bson:"shadow"` // the shadow's identity when it was made
	Places []place `bson:"places"` // how far it is
	Scan   scan    `bson:"scan"`   // how far it is in the outbox
	Held   []held  `bson:"held"`   // keys whose events are left out
	Done   int64   `bson:"done"`   // how many events were applied

	Attempt    int64    `bson:"attempt"`           // when pausing: tells the answers to this pause from others
	Answers    []string `bson:"answers,omitempty"` // of the workers that wait; only they write it
	Handover   []place  `bson:"handover"`          // when swapping: what the positions are going to be
	Generation int64    `bson:"generation"`        // and theirs
}

// place is a position in a partition.
type place struct {
	Topic     string `bson:"topic"`
	Partition int32  `bson:"partition"`
	Log       string `bson:"log"`
	Next      int64  `bson:"next"`
	Epoch     int32  `bson:"epoch"`
}

// scan is a position in the outbox.
type scan struct {
	Position int64 `bson:"position"`
	Done     bool  `bson:"done"`
}

// held is a key whose events are left out from one on.
type held struct {
	Topic     string `bson:"topic"`
	Partition int32  `bson:"partition"`
	Key       string `bson:"key"`
	Retried   bool   `bson:"retried"` // whether it was left out although the workers were handling the key again
	Offset    int64  `bson:"offset"`  // of that event; -1 when it was read from the outbox
	Version   int64  `bson:"version"` // and then its version
	Before    int64  `bson:"before"`  // and, unless the key was parked, what the workers have passed once they have passed it
}

func (h held) lock() lock { return lock{h.Topic, h.Key} }

// lock names a key of a topic.
type lock struct{ topic, key string }

func holds(all []held, l lock) bool {
	return slices.ContainsFunc(all, func(h held) bool { return h.lock() == l })
}

// firstHeld is the first offset of a partition that was left out, -1 for none.
func firstHeld(all []held, id consumer.Partition) int64 {
	first := int64(-1)
	for _, h := range all {
		if h.Topic == id.Topic && h.Partition == id.Partition && h.Offset >= 0 && (first < 0 || h.Offset < first) {
			first = h.Offset
		}
	}
	return first
}

// ErrTakenOver says that another rebuild has gone on with this one's work,
// because it was silent for too long.
var ErrTakenOver = errors.New("another rebuild has taken over")

// errMoved says that somebody else changed the record: it is to be read again.
var errMoved = errors.New("the rebuild's record was changed by someone else")

func (j *Job) controls() *mongo.Collection { return j.DB.Collection(controlCollection) }

// read returns a job's record, nil when there is none.
func (j *Job) read(ctx context.Context) (*control, error) {
	var c control
	err := j.controls().FindOne(ctx, bson.D{{Key: "_id", Value: j.Name}}).Decode(&c)
	switch {
	case errors.Is(err, mongo.ErrNoDocuments):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", controlCollection, err)
	}
	return &c, nil
}

// write writes the record with change, provided that it is as it was read; c
// is as it was when it returns an error.
func (j *Job) write(ctx context.Context, c *control, change func(*control)) error {
	next := *c
	if change != nil {
		change(&next)
	}
	next.Answers = nil
	next.Beat++
	// What workers have answered stays as it is.
	done, err := j.controls().UpdateOne(ctx, bson.D{
		{Key: "_id", Value: c.ID}, {Key: "run", Value: c.Run}, {Key: "owner", Value: c.Owner}, {Key: "beat", Value: c.Beat},
	}, bson.D{{Key: "$set", Value: next}})
	switch {
	case err != nil:
		return fmt.Errorf("write %s: %w", controlCollection, err)
	case done.MatchedCount == 0:
		return errMoved
	}
	*c = next
	return nil
}

// create writes the first record of a rebuild; errMoved when there is one.
func (j *Job) create(ctx context.Context, c *control) error {
	if err := mongodb.Create(ctx, j.DB, controlCollection); err != nil {
		return err
	}
	_, err := j.controls().InsertOne(ctx, c)
	switch {
	case mongodb.HasCode(err, mongodb.CodeDuplicateKey):
		return errMoved
	case err != nil:
		return fmt.Errorf("write %s: %w", controlCollection, err)
	}
	return nil
}

// forget removes the record of a run.
func (j *Job) forget(ctx context.Context, run string) error {
	_, err := j.controls().DeleteOne(ctx, bson.D{{Key: "_id", Value: j.Name}, {Key: "run", Value: run}})
	if err != nil {
		return fmt.Errorf("write %s: %w", controlCollection, err)
	}
	return nil
}

// Running returns the run of a job that is under way, empty when none is: what
// is named by it isn't to be cleared away.
func Running(ctx context.Context, db *mongo.Database, job string) (string, error) {
	c, err := (&Job{Name: job, DB: db}).read(ctx)
	if c == nil {
		return "", err
	}
	return c.Run, nil
}

func newName() string { return strings.ToLower(rand.Text()[:10]) }

func whoami() string {
	host, err := os.Hostname()
	if err != nil {
		host = "?"
	}
	return fmt.Sprintf("process %d on %s", os.Getpid(), host)
}
