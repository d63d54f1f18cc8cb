// Package mongodb is what the workers that keep their state in MongoDB share:
// a client made of a URI, documents that are replaced only by newer ones, and
// positions in Kafka that are kept beside what was made of the events.
package mongodb

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/connstring"
)

const (
	selectTimeout  = 5 * time.Second  // how long to look for a server that can be written to
	requestTimeout = 30 * time.Second // how long one bulk write may take
)

// Target is a database that was named by a URI.
type Target struct {
	client   *options.ClientOptions
	database string
}

// Parse reads a URI that names a database too. app tells the server's log who
// connects. Reads go to the primary, whatever the URI says: a secondary's answer
// about a position or a rebuild may be one that no longer holds.
func Parse(uri, app string) (Target, error) {
	parsed, err := connstring.ParseAndValidate(uri)
	if err != nil {
		return Target{}, fmt.Errorf("read the MongoDB URI: %w", err)
	}
	if parsed.Database == "" {
		return Target{}, errors.New("the MongoDB URI names no database")
	}
	client := options.Client().ApplyURI(uri).SetAppName(app).
		SetServerSelectionTimeout(selectTimeout).SetWriteConcern(writeconcern.Majority()).SetReadPreference(readpref.Primary())
	if err := client.Validate(); err != nil {
		return Target{}, fmt.Errorf("read the MongoDB URI: %w", err)
	}
	return Target{client, parsed.Database}, nil
}

// Open makes a client, which connects when it is used. closing disconnects it.
func (t Target) Open() (db *mongo.Database, closing func(context.Context) error, err error) {
	client, err := mongo.Connect(t.client)
	if err != nil {
		return nil, nil, fmt.Errorf("configure the MongoDB client: %w", err)
	}
	return client.Database(t.database), func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), selectTimeout)
		defer cancel()
		if err := client.Disconnect(ctx); err != nil {
			return fmt.Errorf("disconnect from MongoDB: %w", err)
		}
		return nil
	}, nil
}

// The codes of MongoDB's errors that mean something here. Servers differ in
// everything else that they say about an error.
const (
	CodeDuplicateKey      = 11000
	CodeWriteConflict     = 112
	CodeNamespaceExists   = 48
	CodeNamespaceNotFound = 26
)

// HasCode reports whether err came from the server and has a code.
func HasCode(err error, code int) bool {
	server, ok := errors.AsType[mongo.ServerError](err)
	return ok && server.HasErrorCode(code)
}

// Identities returns which collections there are, by name, each with its UUID:
// one that was dropped and came back is another. Where a server has no UUIDs, a
// collection that is there has the identity "there".
func Identities(ctx context.Context, db *mongo.Database) (map[string]string, error) {
	all, err := db.ListCollectionSpecifications(ctx, bson.D{}, options.ListCollections())
	if err != nil {
		return nil, fmt.Errorf("list the collections: %w", err)
	}
	found := map[string]string{}
	for _, c := range all {
		found[c.Name] = "there"
		if c.UUID != nil {
			found[c.Name] = fmt.Sprintf("%x", c.UUID.Data)
		}
	}
	return found, nil
}

// Create makes a collection with indexes, unless they are there.
func Create(ctx context.Context, db *mongo.Database, name string, indexes ...mongo.IndexModel) error {
	if err := db.CreateCollection(ctx, name); err != nil && !HasCode(err, CodeNamespaceExists) {
		return fmt.Errorf("create collection %s: %w", name, err)
	}
	if len(indexes) == 0 {
		return nil
	}
	if _, err := db.Collection(name).Indexes().CreateMany(ctx, indexes); err != nil {
		return fmt.Errorf("create the indexes of %s: %w", name, err)
	}
	return nil
}

// Rename gives a collection another name, in the place of the one that has it
// now. It does nothing when there is no such collection.
func Rename(ctx context.Context, db *mongo.Database, from, to string) error {
	err := db.Client().Database("admin").RunCommand(ctx, bson.D{
		{Key: "renameCollection", Value: db.Name() + "." + from}, {Key: "to", Value: db.Name() + "." + to}, {Key: "dropTarget", Value: true},
	}).Err()
	if err == nil || HasCode(err, CodeNamespaceNotFound) {
		return nil
	}
	// Servers differ in what they call a collection that isn't there.
	if found, lerr := Identities(ctx, db); lerr == nil && found[from] == "" {
		return nil
	}
	return fmt.Errorf("rename collection %s to %s: %w", from, to, err)
}
